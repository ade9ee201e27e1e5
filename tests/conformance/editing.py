# SPDX-License-Identifier: Apache-2.0
"""What every driver that changes volumes in place promises; the rest is in `volume`."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import ClassVar

import pytest

from fsdrivers import driver_of, open_volume
from fsdrivers.device import Device, MemoryDevice
from fsdrivers.editing import Editor, find
from fsdrivers.errors import (
    AlreadyExistsError,
    DeviceError,
    DirectoryNotEmptyError,
    FilesystemError,
    InvalidNameError,
    IsADirectoryError_,
    NoSpaceError,
    NotADirectoryError_,
    NotFoundError,
)
from tests.conformance.damage import draw_damages, metadata_units
from tests.conformance.volume import (
    LONGEST_S,
    NOW_NS,
    PlanningConformance,
    Tree,
    directory_node,
    file_node,
    tree_of,
    try_everything,
)
from tests.fsdrivers.faults import FaultyDevice

NONE = "none: no such file or directory"
NO_DIRECTORY = "object {}: not a directory"


class EditingConformance(PlanningConformance):
    """Changing in place, on volumes that are planned and blank at first."""

    ignores_case: ClassVar[bool] = False
    has_holes: ClassVar[bool] = True
    full_piece: ClassVar[int] = 100_000  # bytes written at a time until the volume is full

    @contextmanager
    def editing(self, device: Device) -> Iterator[Editor]:
        """Open the volume for changes; afterwards it must be clean."""
        editor: Editor = driver_of(self.type).open_editor(device, clock=lambda: NOW_NS)
        yield editor
        editor.close()
        assert self.check(device) == []

    def test_create_read_rename_delete(self) -> None:
        """Objects are made, filled, moved across directories and removed; room comes back."""
        device = self.blank()
        used = [self.make_and_remove(device) for _ in range(3)]
        assert used[1:] == used[:1] * 2  # what the first time took for good (inodes) is enough

    def make_and_remove(self, device: MemoryDevice) -> int:
        """Make something and remove it; return the bytes in use then."""
        with self.editing(device) as editor:
            below = editor.create(editor.root, b"below", directory_node()).number
            made = editor.create(below, b"file", file_node())
            editor.write(made.number, 0, b"content")
            moved = editor.rename(below, b"file", editor.root, b"moved")
            assert editor.lookup(editor.root, b"moved").number == moved.number
            with pytest.raises(NotFoundError):
                editor.lookup(below, b"file")
        assert tree_of(open_volume(device), self.hidden) == {
            b"/below": None,
            b"/moved": b"content",
        }
        with self.editing(device) as editor:
            with pytest.raises(IsADirectoryError_):
                editor.unlink(editor.root, b"below")
            with pytest.raises(NotADirectoryError_):
                editor.rmdir(editor.root, b"moved")
            editor.unlink(editor.root, b"moved")
            editor.rmdir(editor.root, b"below")
        volume = open_volume(device)
        assert tree_of(volume, self.hidden) == {}
        return volume.used_size()

    def test_sizes(self) -> None:
        """Sizes at the steps of a block are kept, whichever way a file gets them."""
        device = self.blank()
        block = open_volume(device).block_size
        sizes = sorted({0, 1, block - 1, block, block + 1, 3 * block, 5 * block + 7, 300})
        expected: Tree = {}
        with self.editing(device) as editor:
            for size in sizes:
                content = random.Random(size).randbytes(size)
                for how in ("whole", "parts", "cut", "grown"):
                    name = b"%d %s" % (size, how.encode())
                    number = editor.create(editor.root, name, file_node()).number
                    step = 997 if how == "parts" else max(size, 1)
                    for at in range(0, size, step):
                        editor.write(number, at, content[at : at + step])
                    if how in ("cut", "grown"):
                        editor.write(number, size, b"more than wanted" * 99)
                        editor.truncate(number, size)
                    expected[b"/" + name] = content
                    if how == "grown":  # what lay behind the end once never shows again
                        editor.truncate(number, size + block)
                        expected[b"/" + name] = content + bytes(block)

        assert tree_of(open_volume(device), self.hidden) == expected

    def test_sparse(self) -> None:
        """What nobody wrote reads as zeros, old content never shows, and holes take no room."""
        device = self.blank()
        with self.editing(device) as editor:
            old = editor.create(editor.root, b"old", file_node()).number
            editor.write(old, 0, b"\xff" * 600_000)
            editor.unlink(editor.root, b"old")
            number = editor.create(editor.root, b"sparse", file_node()).number
            editor.write(number, 400_000, b"end")
            editor.write(number, 100_000, b"middle")
        volume = open_volume(device)
        node = next(entry.node for entry in volume.walk() if entry.name == b"sparse")
        content = volume.read(node, 0, node.size)

        assert content == b"middle".rjust(100_006, b"\0") + bytes(299_994) + b"end"
        mapped = sum(extent.length for extent in volume.extents(node))
        assert (mapped < 200_000) == self.has_holes

    def test_names(self) -> None:
        """The longest name is kept; longer, empty and impossible ones are refused."""
        device = self.blank()
        with self.editing(device) as editor:
            editor.create(editor.root, self.longest_name, file_node())
            for name in (self.longest_name + b"x", b"", b".", b"..", b"a/b", b"a\0b"):
                with pytest.raises((InvalidNameError, AlreadyExistsError)):
                    editor.create(editor.root, name, file_node())

        assert set(tree_of(open_volume(device), self.hidden)) == {b"/" + self.longest_name}

    def test_refusals(self) -> None:
        """The same mistake gets the same sentence from every driver, and changes nothing."""
        device = self.blank()
        with self.editing(device) as editor:
            root = editor.root
            full = editor.create(root, b"full", directory_node()).number
            file = editor.create(root, b"file", file_node()).number
            inner = editor.create(full, b"inner", directory_node()).number
            unit = "UTF-16 units" if driver_of(self.type).names.is_utf16 else "bytes"
            for action, kind, sentence in (
                (lambda: editor.lookup(root, b"none"), NotFoundError, NONE),
                (lambda: editor.unlink(root, b"none"), NotFoundError, NONE),
                (lambda: editor.rmdir(root, b"none"), NotFoundError, NONE),
                (lambda: editor.rename(root, b"none", root, b"x"), NotFoundError, NONE),
                (
                    lambda: editor.create(root, b"file", file_node()),
                    AlreadyExistsError,
                    "file: already exists",
                ),
                (
                    lambda: editor.rename(root, b"full", root, b"file"),
                    AlreadyExistsError,
                    "file: already exists",
                ),
                (lambda: editor.unlink(root, b"full"), IsADirectoryError_, "full: is a directory"),
                (
                    lambda: editor.rename(root, b"file", root, b"full", replace=True),
                    IsADirectoryError_,
                    "full: is a directory",
                ),
                (lambda: editor.rmdir(root, b"file"), NotADirectoryError_, "file: not a directory"),
                (
                    lambda: editor.rename(root, b"full", root, b"file", replace=True),
                    NotADirectoryError_,
                    "file: not a directory",
                ),
                (
                    lambda: editor.rmdir(root, b"full"),
                    DirectoryNotEmptyError,
                    "full: directory not empty",
                ),
                (
                    lambda: editor.rename(root, b"full", inner, b"x"),
                    InvalidNameError,
                    "full: a directory cannot be moved into itself",
                ),
                (
                    lambda: editor.write(full, 0, b"x"),
                    IsADirectoryError_,
                    f"object {full}: not a file, so it has no content",
                ),
                (
                    lambda: editor.remove_xattr(file, b"user.none"),
                    NotFoundError,
                    "user.none: no such extended attribute",
                ),
                (
                    lambda: editor.create(root, b"n" * 256, file_node()),
                    InvalidNameError,
                    "n" * 40 + "...: a name has at most 255 " + unit,
                ),
                (lambda: editor.lookup(file, b"x"), NotADirectoryError_, NO_DIRECTORY),
                (lambda: editor.names(file), NotADirectoryError_, NO_DIRECTORY),
                (
                    lambda: editor.create(file, b"x", file_node()),
                    NotADirectoryError_,
                    NO_DIRECTORY,
                ),
            ):
                with pytest.raises(kind) as caught:
                    action()
                assert str(caught.value) == sentence.format(file)

        assert tree_of(open_volume(device), self.hidden) == {
            b"/file": b"",
            b"/full": None,
            b"/full/inner": None,
        }

    def test_case(self) -> None:
        """Case is kept; whether it tells names apart is a matter of the format."""
        device = self.blank()
        with self.editing(device) as editor:
            first = editor.create(editor.root, b"A Mixed Name", file_node())
            if self.ignores_case:
                assert editor.lookup(editor.root, b"a mixed name").number == first.number
                with pytest.raises(AlreadyExistsError):
                    editor.create(editor.root, b"a MIXED name", file_node())
            else:
                editor.create(editor.root, b"a MIXED name", file_node())
            editor.rename(editor.root, b"A Mixed Name", editor.root, b"A mixed NAME")

        expected = {b"/A mixed NAME"} | ({b"/a MIXED name"} if not self.ignores_case else set())
        assert set(tree_of(open_volume(device), self.hidden)) == expected

    def test_deep_trees(self) -> None:
        """A tree of 60 levels is made, read, and moved as a whole."""
        device = self.blank()
        with self.editing(device) as editor:
            top = editor.create(editor.root, b"top", directory_node()).number
            here = top
            for level in range(60):
                here = editor.create(here, b"level %d" % level, directory_node()).number
            editor.create(here, b"deepest", file_node())
            other = editor.create(editor.root, b"other", directory_node()).number
            editor.rename(editor.root, b"top", other, b"moved")
        path = b"/".join([b"/other/moved", *(b"level %d" % level for level in range(60))])

        assert tree_of(open_volume(device), self.hidden)[path + b"/deepest"] == b""
        with self.editing(device) as editor:
            inner = find(editor, path[1:].split(b"/")[:5]).number
            with pytest.raises(FilesystemError):
                editor.rename(editor.root, b"other", inner, b"into itself")

    def test_full_volume(self) -> None:
        """When room ends, what was there stays; what is removed gives its room back."""
        device = self.blank()
        pieces = 0
        with self.editing(device) as editor:
            number = editor.create(editor.root, b"large", file_node()).number
            with suppress(NoSpaceError):
                while pieces * self.full_piece <= device.size:
                    editor.write(number, pieces * self.full_piece, b"x" * self.full_piece)
                    pieces += 1
            with suppress(NoSpaceError):
                for index in range(10_000):
                    name = b"a long name that takes room %d" % index
                    small = editor.create(editor.root, name, file_node()).number
                    editor.write(small, 0, b"y" * 5000)
        content = tree_of(open_volume(device), self.hidden)[b"/large"]
        assert content is not None
        assert device.size > len(content) >= pieces * self.full_piece
        assert set(content) <= set(b"x")
        with self.editing(device) as editor:
            editor.unlink(editor.root, b"large")
            number = editor.create(editor.root, b"again", file_node()).number
            editor.write(number, 0, b"z" * self.full_piece)

    def prepared(self) -> MemoryDevice:
        """Return a volume for what is cut off half-way."""
        device = self.blank()
        with self.editing(device) as editor:
            for name in (b"kept", b"grown", b"moved"):
                number = editor.create(editor.root, name, file_node()).number
                editor.write(number, 0, name * 800)
            below = editor.create(editor.root, b"directory", directory_node()).number
            number = editor.create(below, b"kept too", file_node()).number
            editor.write(number, 0, b"also" * 800)
            nest = editor.create(editor.root, b"nest", directory_node()).number
            inner = editor.create(nest, b"inner", directory_node()).number
            editor.create(inner, b"innermost", file_node())
        return device

    @staticmethod
    def scenario(editor: Editor) -> None:
        """Do one of everything."""
        root, below = editor.root, editor.lookup(editor.root, b"directory").number
        number = editor.create(root, b"a new file with a long name", file_node()).number
        editor.write(number, 500, b"new" * 3000)
        editor.write(editor.lookup(root, b"grown").number, 2000, b"more" * 2000)
        editor.flush()
        fresh = editor.create(below, b"fresh", directory_node()).number
        editor.rename(root, b"moved", fresh, b"where it moved")
        editor.truncate(editor.lookup(root, b"grown").number, 100)
        nest = editor.lookup(root, b"nest").number
        editor.rename(nest, b"inner", below, b"inner moved")
        editor.unlink(root, b"a new file with a long name")
        editor.close()

    def test_editing_what_is_damaged(self) -> None:
        """Changing a damaged volume works or is refused with one of our errors, and soon."""
        made = self.prepared()
        data = made.read(0, made.size)
        units = metadata_units(made, open_volume(made))
        for damage in draw_damages(made, units, 40, 5):
            device = MemoryDevice.of(data, made.sector_size)
            device.write(damage.position, damage.data)
            started = time.process_time()
            with suppress(FilesystemError):
                self.scenario(driver_of(self.type).open_editor(device, clock=lambda: NOW_NS))
            try_everything(device, self.check)
            assert time.process_time() - started < LONGEST_S, damage

    def test_power_cut_at_each_write(self) -> None:
        """Whichever write is the last: readable, untouched files whole, or flagged as unclean."""
        made = self.prepared()
        data = made.read(0, made.size)
        counting = FaultyDevice(made)
        self.scenario(driver_of(self.type).open_editor(counting, clock=lambda: NOW_NS))
        assert counting.writes > 5
        for cut in range(counting.writes):
            device = MemoryDevice.of(data, made.sector_size)
            faulty = FaultyDevice(device, fail_write=cut, drop_later=True)
            with suppress(FilesystemError):
                self.scenario(driver_of(self.type).open_editor(faulty, clock=lambda: NOW_NS))

            faults: list[FilesystemError] = []
            tree = tree_of(open_volume(device), self.hidden, faults)
            assert not faults or self.check(device), "a directory may have two names, and says so"
            assert tree[b"/kept"] == b"kept" * 800, cut
            assert tree[b"/directory/kept too"] == b"also" * 800, cut
            for places in (
                {b"/moved", b"/directory/fresh/where it moved"},
                {b"/nest/inner/innermost", b"/directory/inner moved/innermost"},
            ):
                assert places & set(tree) or self.check(device), "what is lost is reported"

    def test_failing_write(self) -> None:
        """After a write has failed nothing more is written, and every change raises again."""
        made = self.prepared()
        data = made.read(0, made.size)
        for fail in (0, 1, 4, 9):
            device = MemoryDevice.of(data, made.sector_size)
            faulty = FaultyDevice(device, fail_write=fail)
            editor = driver_of(self.type).open_editor(faulty, clock=lambda: NOW_NS)
            with pytest.raises(DeviceError):
                self.scenario(editor)
            writes = faulty.writes
            with pytest.raises(DeviceError):
                self.scenario(editor)
            with suppress(DeviceError):
                editor.close()
            assert faulty.writes == writes
            assert tree_of(open_volume(device), self.hidden)[b"/kept"] == b"kept" * 800
