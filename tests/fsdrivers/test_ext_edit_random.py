# SPDX-License-Identifier: Apache-2.0
"""Random edits of ext volumes beside a model; e2fsck looks after each step."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from tempfile import mkdtemp

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fsdrivers.device import MemoryDevice
from fsdrivers.errors import (
    AlreadyExistsError,
    DirectoryNotEmptyError,
    FilesystemError,
    InvalidNameError,
    IsADirectoryError_,
    NoSpaceError,
    NotADirectoryError_,
    NotFoundError,
)
from fsdrivers.ext import open_editor
from fsdrivers.ext.editor import ExtEditor
from fsdrivers.volume import Kind, Node
from tests.fsdrivers.ext_editing import (
    FEATURES,
    Item,
    blank,
    clock,
    complaints,
    directory_node,
    dump,
    file_node,
    link_node,
    shown_tree,
)

pytestmark = pytest.mark.tools
PROFILES = {"quick": (3, 15), "deep": (60, 40)}  # examples, steps
NAMES = st.sampled_from([b"a", b"b", b"c", b"dir", b"\xff odd", b"n" * 255, b"long " + b"x" * 100])
INDEXES = st.integers(0, 1000)
OFFSETS = st.sampled_from([0, 1, 1000, 1024, 4095, 4096, 50_000, 300_000, 900_000])
SIZES = st.sampled_from([1, 100, 1024, 4096, 5000, 60_000])
XATTRS = st.sampled_from([b"user.a", b"user.bb", b"trusted.c", b"security.d"])


class EditMachine(RuleBasedStateMachine):
    """The volume and a model of it: objects by number, directories as dicts of numbers."""

    features = "ext4"

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
        self.device = MemoryDevice.of(blank(self.features))
        self.editor: ExtEditor = open_editor(self.device, clock=clock)
        self.names: dict[int, dict[bytes, int]] = {self.editor.root: {}}
        self.items: dict[int, Item] = {}

    def teardown(self) -> None:
        self.editor.close()
        self._compare()
        shutil.rmtree(self.directory)

    # Choices.

    def _a_directory(self, index: int) -> int:
        return sorted(self.names)[index % len(self.names)]

    def _an_object(self, index: int, kind: Kind | None = None) -> int | None:
        numbers = [n for n, item in sorted(self.items.items()) if kind in (None, item.kind)]
        return numbers[index % len(numbers)] if numbers else None

    def _is_below(self, number: int, directory: int) -> bool:
        if number == directory:
            return True
        return any(
            self._is_below(number, parent)
            for parent, names in self.names.items()
            if directory in names.values()
        )

    def _forget(self, number: int) -> None:
        if not any(number in names.values() for names in self.names.values()):
            del self.items[number]
            self.names.pop(number, None)

    # Operations.

    @rule(where=INDEXES, name=NAMES, kind=st.sampled_from([Kind.FILE, Kind.DIRECTORY, Kind.FIFO]))
    def create(self, where: int, name: bytes, kind: Kind) -> None:
        parent = self._a_directory(where)
        node = directory_node() if kind is Kind.DIRECTORY else file_node()
        node.kind = kind
        if name in self.names[parent]:
            with pytest.raises(AlreadyExistsError):
                self.editor.create(parent, name, node)
            return
        made = self.editor.create(parent, name, node)
        self.names[parent][name] = made.number
        self.items[made.number] = Item(kind, mode=node.mode)
        if kind is Kind.DIRECTORY:
            self.names[made.number] = {}

    @rule(where=INDEXES, name=NAMES, size=st.sampled_from([1, 59, 60, 61, 900]))
    def symlink(self, where: int, name: bytes, size: int) -> None:
        parent = self._a_directory(where)
        if name not in self.names[parent]:
            made = self.editor.create(parent, name, link_node(b"t" * size))
            self.names[parent][name] = made.number
            self.items[made.number] = Item(Kind.SYMLINK, target=b"t" * size, mode=0o777)

    @rule(where=INDEXES, count=st.sampled_from([20, 60]))
    def create_many(self, where: int, count: int) -> None:
        parent = self._a_directory(where)
        first = len(self.names[parent])
        for index in range(first, first + count):
            name = b"one of many names %05d " % index + b"y" * (index % 150)
            if name not in self.names[parent]:
                made = self.editor.create(parent, name, file_node())
                self.names[parent][name] = made.number
                self.items[made.number] = Item(Kind.FILE)

    @rule(where=INDEXES, step=st.sampled_from([1, 2, 3]))
    def remove_many(self, where: int, step: int) -> None:
        parent = self._a_directory(where)
        for name, number in list(self.names[parent].items())[::step]:
            if number not in self.names:
                self.editor.unlink(parent, name)
                del self.names[parent][name]
                self._forget(number)

    @rule(which=INDEXES, offset=OFFSETS, size=SIZES, byte=st.integers(1, 255))
    def write(self, which: int, offset: int, size: int, byte: int) -> None:
        number = self._an_object(which, Kind.FILE)
        if number is None:
            return
        data = bytes([byte]) * size
        try:
            self.editor.write(number, offset, data)
        except NoSpaceError:
            return
        old = self.items[number].content
        self.items[number].content = old.ljust(offset, b"\0")[:offset] + data + old[offset + size :]

    @rule(which=INDEXES, size=st.one_of(OFFSETS, SIZES))
    def truncate(self, which: int, size: int) -> None:
        number = self._an_object(which, Kind.FILE)
        if number is not None:
            self.editor.truncate(number, size)
            self.items[number].content = self.items[number].content[:size].ljust(size, b"\0")

    @rule(which=INDEXES, where=INDEXES, name=NAMES)
    def link(self, which: int, where: int, name: bytes) -> None:
        number, parent = self._an_object(which), self._a_directory(where)
        if number is None:
            return
        if number in self.names:
            with pytest.raises(IsADirectoryError_):
                self.editor.link(number, parent, name)
        elif name not in self.names[parent]:
            self.editor.link(number, parent, name)
            self.names[parent][name] = number

    @rule(where=INDEXES, name=NAMES)
    def unlink(self, where: int, name: bytes) -> None:
        parent = self._a_directory(where)
        number = self.names[parent].get(name)
        if number is None:
            with pytest.raises(NotFoundError):
                self.editor.unlink(parent, name)
        elif number in self.names:
            with pytest.raises(IsADirectoryError_):
                self.editor.unlink(parent, name)
        else:
            self.editor.unlink(parent, name)
            del self.names[parent][name]
            self._forget(number)

    @rule(where=INDEXES, name=NAMES)
    def rmdir(self, where: int, name: bytes) -> None:
        parent = self._a_directory(where)
        number = self.names[parent].get(name)
        if number is None or number not in self.names:
            with pytest.raises((NotFoundError, NotADirectoryError_)):
                self.editor.rmdir(parent, name)
        elif self.names[number]:
            with pytest.raises(DirectoryNotEmptyError):
                self.editor.rmdir(parent, name)
        else:
            self.editor.rmdir(parent, name)
            del self.names[parent][name]
            self._forget(number)

    @rule(where=INDEXES, name=NAMES, to=INDEXES, new=NAMES, replace=st.booleans())
    def rename(self, where: int, name: bytes, to: int, new: bytes, replace: bool) -> None:
        parent, target = self._a_directory(where), self._a_directory(to)
        number, taken = self.names[parent].get(name), self.names[target].get(new)
        expected: type[FilesystemError] | None = None
        if number is None:
            expected = NotFoundError
        elif taken == number:
            expected = None if replace or (parent, name) == (target, new) else AlreadyExistsError
        elif taken is not None and not replace:
            expected = AlreadyExistsError
        elif number in self.names and self._is_below(number, target):
            expected = InvalidNameError
        elif taken is not None and (taken in self.names) != (number in self.names):
            expected = IsADirectoryError_ if taken in self.names else NotADirectoryError_
        elif taken is not None and self.names.get(taken):
            expected = DirectoryNotEmptyError
        if expected is not None:
            with pytest.raises(expected):
                self.editor.rename(parent, name, target, new, replace=replace)
            return
        moved = self.editor.rename(parent, name, target, new, replace=replace)
        assert moved.number == number
        if taken == number:
            return
        del self.names[parent][name]
        self.names[target][new] = moved.number
        if taken is not None:
            self._forget(taken)

    @rule(which=INDEXES, mode=st.integers(0, 0o7777), uid=st.integers(0, 2**32 - 1))
    def attributes(self, which: int, mode: int, uid: int) -> None:
        number = self._an_object(which)
        if number is not None:
            self.editor.set_attributes(number, mode=mode, uid=uid, modified_ns=uid * 10**9 + mode)
            self.items[number].mode = mode
            assert self.editor.node(number).uid == uid

    @rule(which=INDEXES, name=XATTRS, size=st.sampled_from([0, 1, 40, 90, 500, 700]))
    def set_xattr(self, which: int, name: bytes, size: int) -> None:
        number = self._an_object(which)
        if number is None:
            return
        try:
            self.editor.set_xattr(number, name, b"v" * size)
        except NoSpaceError:
            return
        self.items[number].xattrs[name] = b"v" * size

    @rule(which=INDEXES, name=XATTRS)
    def remove_xattr(self, which: int, name: bytes) -> None:
        number = self._an_object(which)
        if number is None:
            return
        if name in self.items[number].xattrs:
            self.editor.remove_xattr(number, name)
            del self.items[number].xattrs[name]
        else:
            with pytest.raises(NotFoundError):
                self.editor.remove_xattr(number, name)

    @rule(label=st.sampled_from([b"x", b"root", b"sixteen bytes 16", b"\xff\xfe"]))
    def label(self, label: bytes) -> None:
        self.editor.set_label(label)
        assert self.editor.label == label

    @precondition(lambda self: "inline" not in self.features)
    @rule(uuid=st.uuids())
    def uuid(self, uuid: object) -> None:
        self.editor.set_uuid(str(uuid))
        assert self.editor.uuid == str(uuid)

    @rule()
    def reopen(self) -> None:
        self.editor.close()
        self._compare()
        self.editor = open_editor(self.device, clock=clock)

    @invariant()
    def is_clean(self) -> None:
        self.editor.flush()
        assert complaints(dump(self.device, self.directory / "image")) == []

    def _compare(self) -> None:
        """The volume holds exactly what the model holds."""
        expected: dict[bytes, object] = {}
        pending = [(b"", self.editor.root)]
        while pending:
            path, parent = pending.pop()
            for name, number in self.names[parent].items():
                expected[path + name] = self.items[number].shown()
                if number in self.names:
                    pending.append((path + name + b"/", number))
        assert shown_tree(self.device) == expected


def _machine(features: str, profile: str) -> type[EditMachine]:
    examples, steps = PROFILES[profile]
    made = type(f"Edit_{features}", (EditMachine,), {"features": features})
    made.TestCase.settings = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        derandomize=profile == "quick",
        phases=(Phase.generate,),  # steps are few; shrinking them costs minutes
        suppress_health_check=list(HealthCheck),
    )
    return made


def _run(features: str, profile: str) -> None:
    case = _machine(features, profile).TestCase()
    case.runTest()


@pytest.mark.parametrize("features", sorted(FEATURES))
def test_random_edits_leave_a_clean_volume(features: str) -> None:
    """After each of some random operations e2fsck is content and the volume is as the model."""
    _run(features, "quick")


@pytest.mark.slow
@pytest.mark.parametrize("features", sorted(FEATURES))
def test_many_random_edits_leave_a_clean_volume(features: str) -> None:
    """The same with many more examples."""
    _run(features, "deep")


def test_a_node_says_what_was_set() -> None:
    """Every attribute that can be set is read back as it was given."""
    device = MemoryDevice.of(blank("ext4"))
    editor = open_editor(device, clock=clock)
    acl = bytes.fromhex("0200000001000700ffffffff04000500ffffffff20000500ffffffff")
    node = Node(
        0, Kind.FILE, mode=0o4711, uid=70_000, gid=80_000, modified_ns=-5 * 10**9 + 7,
        accessed_ns=10**18 * 5 + 1, changed_ns=3, created_ns=10**18 + 9, flags=0x10 | 0x80,
        xattrs=((b"system.posix_acl_access", acl), (b"user.x", b"y")),
    )  # fmt: skip
    made = editor.create(editor.root, b"file", node)
    editor.close()

    for name in ("mode", "uid", "gid", "modified_ns", "accessed_ns", "changed_ns", "created_ns"):
        assert getattr(made, name) == getattr(node, name), name
    assert (made.flags, made.xattrs) == (node.flags, node.xattrs)
