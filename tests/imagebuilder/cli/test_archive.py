# SPDX-License-Identifier: Apache-2.0
"""Tar archives: what GNU tar and Python read of objects that are unusual."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator

import pytest

from fsdrivers.errors import UnsupportedError
from fsdrivers.losses import OnDamage
from fsdrivers.tree import Tree
from fsdrivers.volume import Entry, Extent, Kind, Node, Plain, Volume
from imagebuilder.cli.archive import Archive

HUGE = 1 << 24  # more than seven octal digits hold


class Memory(Volume):
    """A volume of nodes that are given; files are full of "x"."""

    type, size, uuid, label, block_size = "ext4", 0, "", b"", 1

    def __init__(self, *nodes: tuple[bytes, Node]) -> None:
        self._entries = [Entry(1, b"", Node(1, Kind.DIRECTORY))]
        self._entries += [Entry(1, name, node) for name, node in nodes]

    def describe(self) -> dict[str, Plain]:
        """Return nothing."""
        return {}

    def used_size(self) -> int:
        """Return nothing."""
        return 0

    def walk(self, on_damage: OnDamage | None = None) -> Iterator[Entry]:
        """Yield all."""
        return iter(self._entries)

    def extents(self, node: Node) -> list[Extent]:
        """Return that nothing is a hole."""
        return [Extent(0, node.size, 0)]

    def read(self, node: Node, offset: int, length: int) -> bytes:
        """Return content."""
        if node.flags:
            raise UnsupportedError("content that nobody reads")
        return b"x" * min(length, node.size - offset)


def made(*nodes: tuple[bytes, Node]) -> tuple[list[tarfile.TarInfo], Archive]:
    """Return the members of the archive that is made of a volume, as Python reads them."""
    stream = io.BytesIO()
    archive = Archive(stream)
    tree = Tree(Memory(*nodes))
    assert tree.root is not None
    for path, entry in tree.iter_below(b"/", tree.root):
        archive.add(tree, path.strip(b"/"), entry, is_root=path == b"/")
    archive.finish()
    stream.seek(0)
    with tarfile.open(fileobj=stream, errors="surrogateescape") as opened:
        return opened.getmembers()[1:], archive


@pytest.mark.parametrize(
    "name",
    [b"a" * 99, b"a" * 100, b"a" * 101, b"d" * 255, "é€".encode() * 40, b"\xff\nodd", b"=1"],
)
def test_names_come_back(name: bytes) -> None:
    """Of any length and any bytes; so do the targets of links."""
    node = Node(2, Kind.SYMLINK, target=name * 3)
    (member,), _ = made((name, node))
    assert member.name.encode("utf-8", "surrogateescape") == name
    assert member.linkname.encode("utf-8", "surrogateescape") == name * 3


@pytest.mark.parametrize("time_ns", [0, 1, -1, -1_500_000_000, 1796073665046206542, 1 << 62])
def test_times_come_back(time_ns: int) -> None:
    """To the nanosecond, before 1970 too."""
    node = Node(2, Kind.FILE, modified_ns=time_ns, accessed_ns=time_ns)
    (member,), _ = made((b"a", node))
    whole, _, rest = member.pax_headers["mtime"].partition(".")
    assert int(whole + rest.ljust(9, "0")) == time_ns
    assert member.pax_headers["atime"] == member.pax_headers["mtime"]


def test_large_numbers_come_back() -> None:
    """Owners of 32 bits, numbers of devices."""
    node = Node(2, Kind.BLOCK_DEVICE, uid=(1 << 32) - 2, gid=HUGE, device=(259, 70000))
    (member,), _ = made((b"a", node))
    assert (member.uid, member.gid) == ((1 << 32) - 2, HUGE)
    assert (member.devmajor, member.devminor) == (259, 70000)
    assert member.isblk()


def test_attributes_are_bytes() -> None:
    """Values with anything in them, names with what separates name and value."""
    value = bytes(range(256))
    node = Node(2, Kind.FILE, xattrs=((b"user.a=%", value), (b"user.n", b"\n")))
    (member,), _ = made((b"a", node))
    assert member.pax_headers["SCHILY.xattr.user.n"] == "\n"
    found = member.pax_headers["SCHILY.xattr.user.a%3D%25"]
    assert found.encode("utf-8", "surrogateescape") == value


def test_links_hold_no_content_twice() -> None:
    """The second name of a file is a link to the first."""
    node = Node(2, Kind.FILE, size=700, links=2)
    (first, second), archive = made((b"a", node), (b"b", node))
    assert (first.size, first.isreg()) == (700, True)
    assert (second.islnk(), second.linkname, second.size) == (True, "a", 0)
    assert archive.problems == []


def test_what_it_cannot_hold_is_named() -> None:
    """Sockets, and content that cannot be read; the rest is there."""
    members, archive = made(
        (b"s", Node(2, Kind.SOCKET)),
        (b"f", Node(3, Kind.FILE, size=1, flags=1)),
        (b"p", Node(4, Kind.FIFO)),
    )
    assert [member.name for member in members] == ["p"]
    assert archive.problems == [
        "f: left out: not supported: content that nobody reads",
        "s: left out: not supported: an archive holds no socket",
    ]
