# SPDX-License-Identifier: Apache-2.0
"""Random edits of ext volumes beside a model; e2fsck looks after each step."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from tempfile import mkdtemp

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from fsdrivers.device import MemoryDevice
from fsdrivers.errors import AlreadyExistsError, NoSpaceError, NotFoundError
from fsdrivers.ext.edit import open_editor
from fsdrivers.ext.edit.editor import ExtEditor
from fsdrivers.volume import Kind, Node
from tests.fsdrivers.edit_machine import INDEXES, EditMachine, run_machine
from tests.fsdrivers.ext.editing import (
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
OFFSETS = st.sampled_from([0, 1, 1000, 1024, 4095, 4096, 50_000, 300_000, 900_000])
SIZES = st.sampled_from([1, 100, 1024, 4096, 5000, 60_000])
XATTRS = st.sampled_from([b"user.a", b"user.bb", b"trusted.c", b"security.d"])


class ExtMachine(EditMachine):
    """The volume and a model of it."""

    editor: ExtEditor
    items: dict[int, Item]  # type: ignore[assignment]

    features = "ext4"

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
        self.device = MemoryDevice.of(blank(self.features))
        self.editor = open_editor(self.device, clock=clock)
        self.names[self.editor.root] = {}

    def teardown(self) -> None:
        self.editor.close()
        self._compare()
        shutil.rmtree(self.directory)

    @rule(where=INDEXES, name=NAMES, kind=st.sampled_from([Kind.FILE, Kind.DIRECTORY, Kind.FIFO]))
    def create(self, where: int, name: bytes, kind: Kind) -> None:
        parent = self.a_directory(where)
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
        parent = self.a_directory(where)
        if name not in self.names[parent]:
            made = self.editor.create(parent, name, link_node(b"t" * size))
            self.names[parent][name] = made.number
            self.items[made.number] = Item(Kind.SYMLINK, target=b"t" * size, mode=0o777)

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

    @rule(which=INDEXES, where=INDEXES, name=NAMES)
    def link(self, which: int, where: int, name: bytes) -> None:
        number = self.an_object(which)
        if number is not None:
            self.do_link(number, self.a_directory(where), name)

    @rule(where=INDEXES, name=NAMES)
    def unlink(self, where: int, name: bytes) -> None:
        self.do_unlink(self.a_directory(where), name)

    @rule(where=INDEXES, name=NAMES)
    def rmdir(self, where: int, name: bytes) -> None:
        self.do_rmdir(self.a_directory(where), name)

    @rule(where=INDEXES, name=NAMES, to=INDEXES, new=NAMES, replace=st.booleans())
    def rename(self, where: int, name: bytes, to: int, new: bytes, replace: bool) -> None:
        self.do_rename(self.a_directory(where), name, self.a_directory(to), new, replace)

    @rule(which=INDEXES, mode=st.integers(0, 0o7777), uid=st.integers(0, 2**32 - 1))
    def attributes(self, which: int, mode: int, uid: int) -> None:
        number = self.an_object(which)
        if number is not None:
            self.editor.set_attributes(number, mode=mode, uid=uid, modified_ns=uid * 10**9 + mode)
            self.items[number].mode = mode
            assert self.editor.node(number).uid == uid

    @rule(which=INDEXES, name=XATTRS, size=st.sampled_from([0, 1, 40, 90, 500, 700]))
    def set_xattr(self, which: int, name: bytes, size: int) -> None:
        number = self.an_object(which)
        if number is None:
            return
        try:
            self.editor.set_xattr(number, name, b"v" * size)
        except NoSpaceError:
            return
        self.items[number].xattrs[name] = b"v" * size

    @rule(which=INDEXES, name=XATTRS)
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
        assert shown_tree(self.device) == self.expected()


def _run(features: str, profile: str) -> None:
    examples, steps = PROFILES[profile]
    made = type(f"Edit_{features}", (ExtMachine,), {"features": features})
    run_machine(made, examples, steps)


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
