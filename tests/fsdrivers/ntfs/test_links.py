# SPDX-License-Identifier: Apache-2.0
"""Links of NTFS read back, against those that ntfs-3g makes and reads."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from fsdrivers.device import FileDevice
from fsdrivers.ntfs.edit.links import link_point
from fsdrivers.ntfs.format.attributes import ReparseHead, ReparseTag
from fsdrivers.ntfs.format.records import FileAttribute
from fsdrivers.ntfs.links import Link, link_of
from fsdrivers.ntfs.nodes import XATTR_REPARSE
from fsdrivers.ntfs.volume import open_volume
from fsdrivers.volume import Kind, Node
from tests.fsdrivers.ntfs.editing import directory_node, dump, edited, file_node
from tests.fsdrivers.ntfs.volumes import MIB, OPTIONS, make_image, mounted


def node_with(point: bytes) -> Node:
    flags = FileAttribute.REPARSE_POINT.value
    return Node(1, Kind.FILE, flags=flags, xattrs=((XATTR_REPARSE, point),))


def windows_point(tag: int, path: str, shown: str, flags: int | None) -> bytes:
    """Return a reparse point with two paths as Windows writes it, each with a zero behind."""
    both = [text.encode("utf-16-le") for text in (path, shown)]
    places = struct.pack("<HHHH", 0, len(both[0]), len(both[0]) + 2, len(both[1]))
    data = places + (b"" if flags is None else struct.pack("<I", flags))
    data += both[0] + b"\0\0" + both[1] + b"\0\0"
    return ReparseHead(tag, len(data), 0).pack() + data


JUNCTION = windows_point(ReparseTag.MOUNT_POINT, "\\??\\C:\\Users", "C:\\Users", None)
WSL = ReparseHead(ReparseTag.LX_SYMLINK, 8, 0)
POINTS = {
    "relative": (windows_point(ReparseTag.SYMLINK, "..\\a b", "..\\a b", 1), Link(b"../a b", True)),
    "from the root": (
        windows_point(ReparseTag.SYMLINK, "\\d\\f", "\\d\\f", 1),
        Link(b"/d/f", True),
    ),
    "of a drive": (windows_point(ReparseTag.SYMLINK, "\\??\\C:\\x", "", 0), Link(b"C:\\x", False)),
    "junction": (JUNCTION, Link(b"C:\\Users", False)),
    "ours": (link_point(b"sub/\xc3\xa4"), Link(b"sub/\xc3\xa4", True)),
    "of WSL": (
        ReparseHead(ReparseTag.LX_SYMLINK, 8, 0).pack() + b"\2\0\0\0/etc",
        Link(b"/etc", True),
    ),
    "of another kind": (ReparseHead(ReparseTag.APP_EXEC_LINK, 0, 0).pack(), None),
    "to nowhere": (ReparseHead(ReparseTag.LX_SYMLINK, 4, 0).pack() + b"\2\0\0\0", None),
    "with a zero": (ReparseHead(ReparseTag.LX_SYMLINK, 7, 0).pack() + b"\2\0\0\0a\0b", None),
}


@pytest.mark.parametrize("kind", POINTS)
def test_links_are_made_out(kind: str) -> None:
    """Each kind of link with a path leads where Windows says, and nothing else is a link."""
    point, link = POINTS[kind]
    assert link_of(node_with(point)) == link


def test_damaged_links_are_none() -> None:
    """No damage to a reparse point is an error, wherever it is cut and whatever is in it."""
    rng = random.Random(1)
    for point, _ in POINTS.values():
        for end in range(len(point)):
            link_of(node_with(point[:end]))
        for _ in range(500):
            changed = bytearray(point)
            changed[rng.randrange(8, max(9, len(point))) % len(point)] = rng.randrange(256)
            link_of(node_with(bytes(changed)))


@pytest.mark.tools
@pytest.mark.root
def test_links_as_ntfs_3g_has_them(tmp_path: Path) -> None:
    """ntfs-3g reads where ours lead as we do, and we read those of WSL that it makes."""
    device, editor = edited()
    editor.create(editor.root, b"dir", directory_node())
    editor.create(editor.root, b"dir2", directory_node())
    editor.create(editor.root, b"file", file_node())
    for name, target in ((b"a", b"dir/../file"), (b"b", b"dir")):
        editor.create(editor.root, name, Node(0, Kind.SYMLINK, target=target))
    editor.close()
    links = {entry.name: link_of(entry.node) for entry in open_volume(device).walk()}
    with mounted(dump(device, tmp_path / "ours"), tmp_path / "mount", "ro") as root:
        for name in (b"a", b"b"):
            link = links[name]
            assert link is not None
            assert link == Link(bytes((root / name.decode()).readlink()), True)
    image = make_image(tmp_path / "theirs", 16 * MIB)
    with mounted(image, tmp_path / "mount", f"{OPTIONS},special_files=wsl") as root:
        (root / "link").symlink_to("../some/where \u00e4")
    with FileDevice.open(image) as file:
        found = {entry.name: link_of(entry.node) for entry in open_volume(file).walk()}
    assert found[b"link"] == Link("../some/where \u00e4".encode(), True)
