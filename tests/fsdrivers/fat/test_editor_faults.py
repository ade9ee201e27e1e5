# SPDX-License-Identifier: Apache-2.0
"""Editing FAT volumes: random operations with a checker after each, power cuts at each write."""

from __future__ import annotations

import copy
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fsdrivers.device import Device, FileDevice, MemoryDevice
from fsdrivers.editing import find
from fsdrivers.errors import FilesystemError, NoSpaceError
from fsdrivers.fat.check import check_volume
from fsdrivers.fat.codepage import fold
from fsdrivers.fat.edit import open_editor
from fsdrivers.fat.edit.editor import FatEditor
from fsdrivers.fat.volume import open_volume
from fsdrivers.volume import Kind, Node
from tests.fsdrivers.ext.editing import RecordingDevice
from tests.fsdrivers.fat.images import (
    NS,
    assert_fsck_clean,
    content_of,
    geometry_for,
    run_tool,
    save,
    seen_on,
    tree_entries,
    volume_in_memory,
)
from tests.fsdrivers.faults import FaultyDevice

CLUSTERS = {12: 300, 16: 4200, 32: 65600}
FILE, DIRECTORY = Node(0, Kind.FILE), Node(0, Kind.DIRECTORY)
NAMES = st.sampled_from(
    [
        "A",
        "b.txt",
        "B.TXT",
        "Mixed.Txt",
        "a longer name.text",
        "a longer name.texture",
        "ALONGE~1.TEX",
        "äöü.é",
        "x" * 60,
        "日本語",
        "no extension at all",
        ".hidden",
        "ß",
    ]
)


def editor_on(device: MemoryDevice | FaultyDevice | RecordingDevice) -> FatEditor:
    return open_editor(device, clock=lambda: 1_800_000_000 * NS)


class EditingMachine(RuleBasedStateMachine):
    """Every operation on a volume and on a model of it; they agree, and the volume is sound."""

    bits = 12

    def __init__(self) -> None:
        super().__init__()
        geometry = geometry_for(self.bits, CLUSTERS[self.bits])
        self.device = volume_in_memory(geometry, tree_entries([]))
        self.editor = editor_on(self.device)
        self.model: dict[tuple[str, ...], bytes | None] = {(): None}  # None for a directory

    def directories(self) -> list[tuple[str, ...]]:
        return [path for path, data in self.model.items() if data is None]

    def files(self) -> list[tuple[str, ...]]:
        return [path for path, data in self.model.items() if data is not None]

    def number(self, path: tuple[str, ...]) -> int:
        return find(self.editor, [name.encode() for name in path]).number

    def taken(self, path: tuple[str, ...]) -> bool:
        """Whether a directory has the name, in any case, or an 8.3 name like it."""
        try:
            self.number(path)
        except FilesystemError:
            return False
        return True

    @rule(data=st.data(), name=NAMES, is_directory=st.booleans())
    def create(self, data: st.DataObject, name: str, is_directory: bool) -> None:
        parent = data.draw(st.sampled_from(self.directories()))
        path = (*parent, name)
        try:
            node = DIRECTORY if is_directory else FILE
            self.editor.create(self.number(parent), name.encode(), node)
        except NoSpaceError:
            return
        except FilesystemError:
            assert self.taken(path)
            return
        self.model[path] = None if is_directory else b""

    @precondition(lambda self: self.files())
    @rule(data=st.data(), offset=st.integers(0, 9000), length=st.integers(0, 9000))
    def write(self, data: st.DataObject, offset: int, length: int) -> None:
        path = data.draw(st.sampled_from(self.files()))
        new = bytes([offset % 251 + 1]) * length
        try:
            self.editor.write(self.number(path), offset, new)
        except NoSpaceError:
            return
        old = self.model[path]
        assert old is not None
        if new:
            self.model[path] = old[:offset].ljust(offset, b"\0") + new + old[offset + length :]

    @precondition(lambda self: self.files())
    @rule(data=st.data(), size=st.integers(0, 20000))
    def truncate(self, data: st.DataObject, size: int) -> None:
        path = data.draw(st.sampled_from(self.files()))
        try:
            self.editor.truncate(self.number(path), size)
        except NoSpaceError:
            return
        old = self.model[path]
        assert old is not None
        self.model[path] = old[:size].ljust(size, b"\0")

    @precondition(lambda self: len(self.model) > 1)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from([path for path in self.model if path]))
        parent = self.number(path[:-1])
        if self.model[path] is not None:
            self.editor.unlink(parent, path[-1].encode())
        else:
            try:
                self.editor.rmdir(parent, path[-1].encode())
            except FilesystemError:
                assert any(other[:-1] == path for other in self.model if other)
                return
        del self.model[path]

    @precondition(lambda self: len(self.model) > 1)
    @rule(data=st.data(), name=NAMES, replace=st.booleans())
    def rename(self, data: st.DataObject, name: str, replace: bool) -> None:
        path = data.draw(st.sampled_from([path for path in self.model if path]))
        target = data.draw(st.sampled_from(self.directories()))
        old, parent, new_parent = path[-1].encode(), self.number(path[:-1]), self.number(target)
        there = [p for p in self.model if p and p[:-1] == target and p != path]
        before = {p: self.number(p) for p in there}
        try:
            self.editor.rename(parent, old, new_parent, name.encode(), replace=replace)
        except FilesystemError:
            return  # the invariant checks that nothing has changed
        moved = {p: d for p, d in self.model.items() if p[: len(path)] == path}
        self.model = {p: d for p, d in self.model.items() if p not in moved}
        new = (*target, name)
        for p in before:
            names = [n.decode() for n, _ in self.editor.names(self.number(target))]
            if p[-1] not in names or fold(p[-1]) == fold(name):
                self.model.pop(p, None)
        shown = {n.decode(): k for n, k in self.editor.names(self.number(target))}
        if name not in shown:  # it took the place, and the name, of another one
            kept = self.editor.lookup(self.number(target), name.encode()).number
            new = (*target, next(n for n, k in shown.items() if k == kept))
            self.model.pop(new, None)
        for p, d in moved.items():
            self.model[(*new, *p[len(path) :])] = d

    @rule()
    def open_again(self) -> None:
        self.editor.close()
        self.editor = editor_on(self.device)

    @invariant()
    def agrees(self) -> None:
        self.editor.flush()
        assert check_volume(self.device) == []
        seen = {path: item.content for path, item in seen_on(open_volume(self.device)).items()}
        expected = {
            b"/" + "/".join(path).encode(): data for path, data in self.model.items() if path
        }
        assert seen == expected

    def teardown(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "image")
            save(self.device, path)
            assert_fsck_clean(path)


class EditingMachine16(EditingMachine):
    """The same on FAT16."""

    bits = 16


TestEditing12 = pytest.mark.tools(EditingMachine.TestCase)
TestEditing16 = pytest.mark.tools(EditingMachine16.TestCase)
TestEditing12.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestEditing16.settings = settings(TestEditing12.settings, max_examples=10)


KEPT = [("kept.txt", 3000), ("dir/", 0), ("dir/another file kept.text", 2000), ("last", 600)]
MOVED = [("moved.txt", 2500), ("grown", 700), ("dir/sub/", 0), ("dir/sub/inside", 900)]


def scenario(editor: FatEditor) -> None:
    """Every operation once; what an interrupted one leaves may make the next impossible."""

    def number(*path: bytes) -> int:
        return find(editor, path).number

    steps: list[Callable[[], object]] = [
        lambda: editor.create(1, b"a new file with a long name", FILE),
        lambda: editor.write(number(b"a new file with a long name"), 600, b"x" * 3000),
        lambda: editor.write(number(b"grown"), 500, b"y" * 4000),
        lambda: editor.flush(),
        lambda: editor.create(1, b"fresh", DIRECTORY),
        lambda: [editor.create(number(b"dir"), b"name number %d" % i, FILE) for i in range(6)],
        lambda: editor.rename(1, b"moved.txt", number(b"dir"), b"where it moved.txt"),
        lambda: editor.rename(number(b"dir"), b"sub", 1, b"subdirectory"),
        lambda: editor.truncate(number(b"grown"), 1000),
        lambda: editor.rename(1, b"grown", 1, b"a new file with a long name", replace=True),
        lambda: editor.unlink(1, b"a new file with a long name"),
        lambda: editor.rmdir(1, b"fresh"),
        lambda: editor.set_label(b"OTHER"),
        lambda: editor.close(),
    ]
    for step in steps:
        try:
            step()
        except FilesystemError:
            return


@pytest.mark.tools
@pytest.mark.parametrize("bits", [12, 16, 32])
def test_power_cut_at_each_write(bits: int, tmp_path: Path) -> None:
    """Whichever write is the last, fsck.fat -a repairs the volume, and no other file is hurt."""
    entries = tree_entries([*KEPT, *MOVED])
    made = volume_in_memory(geometry_for(bits, CLUSTERS[bits]), entries)
    contents = {name: content_of(entries[i + 1].node) for i, (name, _) in enumerate(KEPT)}
    inside = content_of(entries[-1].node)
    whole = FaultyDevice(copy.deepcopy(made))
    scenario(editor_on(whole))
    image = tmp_path / "image"
    for cut in range(whole.writes):
        device = copy.deepcopy(made)
        scenario(editor_on(FaultyDevice(device, fail_write=cut, drop_later=True)))
        save(device, image)

        check_volume(device)
        _assert_kept(device, contents)
        for _ in range(2):  # of a directory with two names it empties one, then removes that
            run_tool("fsck.fat", "-a", image, status=None)
        run_tool("fsck.fat", "-n", image)
        with FileDevice.open(image) as repaired:
            seen_on(open_volume(repaired))
            _assert_kept(repaired, contents)
            _assert_moved(repaired, inside)


@pytest.mark.tools
@pytest.mark.parametrize("bits", [12, 16, 32])
@pytest.mark.parametrize("rounds", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_any_writes_between_two_flushes_may_be_lost(
    bits: int, rounds: int, run_seed: int, tmp_path: Path
) -> None:
    """Whichever of the writes since the last flush reached the medium, no other file is hurt."""
    entries = tree_entries([*KEPT, *MOVED])
    made = volume_in_memory(geometry_for(bits, CLUSTERS[bits]), entries)
    contents = {name: content_of(entries[i + 1].node) for i, (name, _) in enumerate(KEPT)}
    inside = content_of(entries[-1].node)
    recorder = RecordingDevice(copy.deepcopy(made))
    scenario(editor_on(recorder))
    chance = random.Random(bits + rounds + run_seed)
    epoch: list[tuple[int, bytes]] = []
    image = tmp_path / "image"
    for entry in recorder.log:
        if entry is not None:
            epoch.append(entry)
            continue
        for lost in (0.1, 0.5, 0.9):
            for _ in range(rounds if epoch else 0):
                device = copy.deepcopy(made)
                for position, data in epoch:
                    if chance.random() > lost:
                        device.write(position, data)
                save(device, image)
                check_volume(device)
                _assert_kept(device, contents)
                for _ in range(2):
                    run_tool("fsck.fat", "-a", image, status=None)
                run_tool("fsck.fat", "-n", image)
                with FileDevice.open(image) as repaired:
                    _assert_kept(repaired, contents)
                    _assert_moved(repaired, inside)
        for position, data in epoch:
            made.write(position, data)
        epoch.clear()


def _assert_kept(device: Device, contents: dict[str, bytes]) -> None:
    reader = open_editor(device)
    for name, content in contents.items():
        if not name.endswith("/"):
            node = find(reader, name.encode().split(b"/"))
            assert reader.read(node, 0, node.size) == content


def _assert_moved(device: Device, content: bytes) -> None:
    """A directory that was being moved still holds what was in it, under one of its names."""
    seen = seen_on(open_volume(device))
    places = (b"/dir/sub/inside", b"/subdirectory/inside")
    assert [seen[place].content for place in places if place in seen] == [content]
