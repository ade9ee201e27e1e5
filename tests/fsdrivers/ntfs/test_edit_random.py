# SPDX-License-Identifier: Apache-2.0
"""Random edits of NTFS volumes beside a model; the checker looks after each step."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from fsdrivers.device import MemoryDevice
from fsdrivers.errors import AlreadyExistsError, FilesystemError, NoSpaceError, NotFoundError
from fsdrivers.ntfs.edit import open_editor
from fsdrivers.ntfs.edit.editor import NtfsEditor
from fsdrivers.ntfs.nodes import XATTR_ACL, XATTR_EA, XATTR_OBJECT_ID, XATTR_REPARSE
from fsdrivers.volume import Kind
from tests.fsdrivers.edit_machine import INDEXES, EditMachine, run_machine
from tests.fsdrivers.ntfs.editing import (
    GEOMETRIES,
    Item,
    assert_accepted,
    assert_clean,
    blank,
    clock,
    directory_node,
    dump,
    file_node,
    shown_tree,
)
from tests.fsdrivers.ntfs.volumes import CLOUD, descriptor, ea, reparse

pytestmark = pytest.mark.tools
PROFILES = {"quick": (2, 20), "deep": (60, 40)}  # examples, steps
NAMES = st.sampled_from(
    [b"a", b"B", b"readme.txt", b"UPPER.TXT", b"dir", "naïve 日本".encode(), b"n" * 255, b"x " * 60]
)
STREAMS = st.sampled_from([b"s", b"Zone.Identifier", b"t" * 100])
OFFSETS = st.sampled_from([0, 1, 500, 1024, 4095, 4096, 50_000, 300_000, 900_000])
SIZES = st.sampled_from([1, 100, 700, 1024, 4096, 5000, 60_000])


def _upper(name: bytes) -> bytes:
    return name.decode().upper().encode()


class NtfsMachine(EditMachine):
    """The volume and a model of it."""

    editor: NtfsEditor
    items: dict[int, Item]  # type: ignore[assignment]

    geometry = "4k"

    def __init__(self) -> None:
        super().__init__()
        self.device = MemoryDevice.of(blank(self.geometry))
        self.editor = open_editor(self.device, clock=clock)
        self.names[self.editor.root] = {}
        self.ids = 0

    def teardown(self) -> None:
        self.editor.close()
        self._compare()
        with TemporaryDirectory() as directory:
            path = dump(self.device, Path(directory, "image"))
            assert_accepted(path, Path(directory, "mount"))

    @rule(where=INDEXES, name=NAMES, kind=st.sampled_from([Kind.FILE, Kind.DIRECTORY]))
    def create(self, where: int, name: bytes, kind: Kind) -> None:
        parent = self.a_directory(where)
        node = directory_node() if kind is Kind.DIRECTORY else file_node()
        if name in self.names[parent]:
            with pytest.raises(AlreadyExistsError):
                self.editor.create(parent, _upper(name), node)
            return
        made = self.editor.create(parent, name, node)
        self.names[parent][name] = made.number
        self.items[made.number] = Item(kind)
        if kind is Kind.DIRECTORY:
            self.names[made.number] = {}

    @rule(where=INDEXES, count=st.sampled_from([20, 60]))
    def create_many(self, where: int, count: int) -> None:
        parent = self.a_directory(where)
        first = len(self.names[parent])
        for index in range(first, first + count):
            name = b"one of many names %05d " % index + b"y" * (index % 150)
            if name not in self.names[parent]:
                made = self.editor.create(parent, name, file_node())
                self.names[parent][name] = made.number
                self.items[made.number] = Item(Kind.FILE)

    @rule(where=INDEXES, step=st.sampled_from([1, 2, 3]))
    def remove_many(self, where: int, step: int) -> None:
        self.do_remove_many(self.a_directory(where), step)

    @rule(which=INDEXES, offset=OFFSETS, size=SIZES, byte=st.integers(1, 255))
    def write(self, which: int, offset: int, size: int, byte: int) -> None:
        number = self.an_object(which, Kind.FILE)
        if number is not None:
            self.do_write(number, offset, bytes([byte]) * size)

    @rule(which=INDEXES, size=st.one_of(OFFSETS, SIZES))
    def truncate(self, which: int, size: int) -> None:
        number = self.an_object(which, Kind.FILE)
        if number is not None:
            self.do_truncate(number, size)

    @rule(which=INDEXES, name=STREAMS, offset=OFFSETS, size=SIZES)
    def write_stream(self, which: int, name: bytes, offset: int, size: int) -> None:
        number = self.an_object(which)
        if number is None:
            return
        data = b"s" * size
        try:
            self.editor.write_stream(number, name, offset, data)
        except NoSpaceError:
            return
        old = self.items[number].streams.get(name, b"")
        made = old.ljust(offset, b"\0")[:offset] + data + old[offset + size :]
        self.items[number].streams[name] = made

    @rule(which=INDEXES, name=STREAMS)
    def remove_stream(self, which: int, name: bytes) -> None:
        number = self.an_object(which)
        if number is None:
            return
        if name in self.items[number].streams:
            self.editor.remove_stream(number, name)
            del self.items[number].streams[name]
        else:
            with pytest.raises(NotFoundError):
                self.editor.remove_stream(number, name)

    @rule(which=INDEXES, where=INDEXES, name=NAMES)
    def link(self, which: int, where: int, name: bytes) -> None:
        number = self.an_object(which)
        if number is not None:
            self.do_link(number, self.a_directory(where), name)

    @rule(where=INDEXES, name=NAMES)
    def unlink(self, where: int, name: bytes) -> None:
        self.do_unlink(self.a_directory(where), name, _upper(name))

    @rule(where=INDEXES, name=NAMES)
    def rmdir(self, where: int, name: bytes) -> None:
        self.do_rmdir(self.a_directory(where), name)

    @rule(where=INDEXES, name=NAMES, to=INDEXES, new=NAMES, replace=st.booleans())
    def rename(self, where: int, name: bytes, to: int, new: bytes, replace: bool) -> None:
        self.do_rename(self.a_directory(where), name, self.a_directory(to), new, replace)

    @rule(where=INDEXES, name=NAMES, short=st.sampled_from([b"SHORT~1", b"OTHER.TXT", b""]))
    def short_name(self, where: int, name: bytes, short: bytes) -> None:
        parent = self.a_directory(where)
        if name in self.names[parent]:
            try:
                self.editor.set_short_name(parent, name, short)
            except (FilesystemError, AlreadyExistsError):
                return
            if short:
                assert self.editor.lookup(parent, short).number == self.names[parent][name]

    @rule(which=INDEXES, flags=st.sampled_from([0, 1, 0x26]), time=st.integers(0, 2**60))
    def attributes(self, which: int, flags: int, time: int) -> None:
        number = self.an_object(which)
        if number is not None:
            time_ns = time * 100 % 10**19
            self.editor.set_attributes(number, flags=flags, modified_ns=time_ns)
            node = self.editor.node(number)
            assert (node.flags & 0x27, node.modified_ns) == (flags, time_ns)

    @rule(which=INDEXES, size=st.sampled_from([0, 3, 700, 9000]))
    def set_reparse(self, which: int, size: int) -> None:
        number = self.an_object(which)
        if number is not None:
            value = reparse(CLOUD | 0x80000000, b"d" * size)
            self.editor.set_xattr(number, XATTR_REPARSE, value)
            self.items[number].xattrs[XATTR_REPARSE] = value

    @rule(which=INDEXES, size=st.sampled_from([1, 300, 5000]))
    def set_ea(self, which: int, size: int) -> None:
        number = self.an_object(which)
        if number is not None:
            value = ea(b"NAME", b"v" * size)
            self.editor.set_xattr(number, XATTR_EA, value)
            self.items[number].xattrs[XATTR_EA] = value

    @rule(which=INDEXES)
    def set_object_id(self, which: int) -> None:
        number = self.an_object(which)
        if number is not None:
            self.ids += 1
            value = self.ids.to_bytes(16, "little")
            self.editor.set_xattr(number, XATTR_OBJECT_ID, value)
            self.items[number].xattrs[XATTR_OBJECT_ID] = value + bytes(48)

    @rule(which=INDEXES, name=st.sampled_from([XATTR_REPARSE, XATTR_EA, XATTR_OBJECT_ID]))
    def remove_xattr(self, which: int, name: bytes) -> None:
        number = self.an_object(which)
        if number is None:
            return
        if name in self.items[number].xattrs:
            self.editor.remove_xattr(number, name)
            del self.items[number].xattrs[name]
        else:
            with pytest.raises(NotFoundError):
                self.editor.remove_xattr(number, name)

    @rule(which=INDEXES, who=st.integers(0, 30))
    def set_acl(self, which: int, who: int) -> None:
        number = self.an_object(which)
        if number is not None:
            value = descriptor(f"S-1-5-21-{who}", "S-1-5-18")
            self.editor.set_xattr(number, XATTR_ACL, value)
            assert dict(self.editor.node(number).xattrs)[XATTR_ACL] == value

    @rule(label=st.sampled_from([b"x", b"", "träge".encode(), b"L" * 32]))
    def label(self, label: bytes) -> None:
        self.editor.set_label(label)
        assert self.editor.label == label

    @rule()
    def reopen(self) -> None:
        self.editor.close()
        self._compare()
        self.editor = open_editor(self.device, clock=clock)

    @invariant()
    def is_clean(self) -> None:
        self.editor.flush()
        assert_clean(self.device)

    def _compare(self) -> None:
        """The volume holds exactly what the model holds."""
        assert shown_tree(self.device) == self.expected()


def _run(geometry: str, profile: str) -> None:
    examples, steps = PROFILES[profile]
    made = type(f"Edit_{geometry}", (NtfsMachine,), {"geometry": geometry})
    run_machine(made, examples, steps)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_random_edits_leave_a_clean_volume(geometry: str) -> None:
    """After each of some random operations nothing is wrong, and the volume is as the model."""
    _run(geometry, "quick")


@pytest.mark.slow
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_many_random_edits_leave_a_clean_volume(geometry: str) -> None:
    """The same with many more examples."""
    _run(geometry, "deep")
