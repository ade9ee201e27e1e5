# SPDX-License-Identifier: Apache-2.0
"""Trees for NTFS volumes in tests: taken from a volume or drawn at random, written, compared."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fsdrivers.device import MemoryDevice
from fsdrivers.ntfs.check import check_volume
from fsdrivers.ntfs.format.attributes import AttributeFlag
from fsdrivers.ntfs.mkfs import plan_volume
from fsdrivers.ntfs.mkfs.items import Region
from fsdrivers.ntfs.mkfs.plan import NtfsLayout
from fsdrivers.ntfs.names import name_of
from fsdrivers.ntfs.nodes import XATTR_ACL, XATTR_EA, XATTR_OBJECT_ID, XATTR_REPARSE
from fsdrivers.ntfs.volume import NtfsVolume, open_volume
from fsdrivers.volume import Description, Entry, Kind, Node, Stream
from tests.fsdrivers.ntfs.volumes import descriptor, ea, junction

MIB = 1 << 20
ROOT = 5
T0 = 1_600_000_000_000_000_000  # ns
ACLS = tuple(
    descriptor(f"S-1-5-21-1-2-3-{1000 + number}", "S-1-5-18", "S-1-5-32-544") for number in range(5)
)
COMPRESSED = AttributeFlag.COMPRESSED.value
SPARSE = AttributeFlag.SPARSE.value
ALPHABETS = ("abcXYZ 0.", "äöÜßéñ", "日本語テスト", "\U00010348\U0001f600", "\udc80\ud800a")
ENCRYPTED = AttributeFlag.ENCRYPTED.value


@dataclass
class Forest:
    """What `plan_volume` takes, and the content that goes with it."""

    entries: list[Entry] = field(default_factory=list)
    regions: dict[int, Sequence[Region] | None] = field(default_factory=dict)
    stream_regions: dict[tuple[int, bytes], Sequence[Region] | None] = field(default_factory=dict)
    contents: dict[tuple[int, bytes], bytes] = field(default_factory=dict)  # as stored

    def node(self, number: int, kind: Kind = Kind.FILE, **fields: Any) -> Node:
        """Return a node with times and a descriptor."""
        fields.setdefault("xattrs", ((XATTR_ACL, ACLS[number % len(ACLS)]),))
        fields.setdefault("flags", 0x20 if kind is Kind.FILE else 0)
        return Node(
            number,
            kind,
            mode=0o777,
            modified_ns=T0 + 100 * number,
            accessed_ns=T0 + 200 * number,
            changed_ns=T0 + 300 * number,
            created_ns=T0 + 400 * number,
            **fields,
        )

    def add(self, parent: int, name: bytes, node: Node, content: bytes = b"", **of: Any) -> Node:
        """Add a name of a node, and its content if it is a dense one."""
        self.entries.append(Entry(parent, name, node, **of))
        if node.kind is Kind.FILE and content:
            node.size = len(content)
            self.contents[node.number, b""] = content
        return node

    def add_stream(self, node: Node, name: bytes, content: bytes, flags: int = 0) -> None:
        """Add a stream to a node."""
        node.streams = tuple(sorted((*node.streams, Stream(name, len(content), flags))))
        self.contents[node.number, name] = content

    def write(self, description: Description, size: int, **options: Any) -> MemoryDevice:
        """Plan, and write to a device in memory."""
        device, _ = self.write_layout(description, size, **options)
        return device

    def write_layout(
        self, description: Description, size: int, sector_size: int = 512, **options: Any
    ) -> tuple[MemoryDevice, NtfsLayout]:
        """Plan, and write to a device in memory that held something else."""
        numbers = [entry.node.number for entry in self.entries]
        layout = plan_volume(
            description,
            size=size,
            sector_size=sector_size,
            entries=self.entries,
            order=list(dict.fromkeys(numbers)),
            regions=self.regions,
            stream_regions=self.stream_regions,
            **options,
        )
        device = MemoryDevice(size, sector_size)
        self.put(layout, device)
        return device, layout

    def put(self, layout: NtfsLayout, device: MemoryDevice) -> None:
        """Write content to its place, then metadata; its order is checked."""
        for (number, name), data in self.contents.items():
            at = layout.resident_place(number, name)
            if at is not None:
                layout.resident[at : at + len(data)] = data
                continue
            done = 0
            for extent in layout.stream_placements(number, name):
                if not extent.is_unwritten:
                    part: bytes = data[extent.offset : extent.offset + extent.length]
                    device.write(extent.position, part)
                    done += len(part)
            assert done or not data.strip(b"\0"), (number, name)
        last = -1
        pieces = list(layout.iter_metadata())
        assert pieces[-1][0] == 0
        for position, piece in pieces[:-1]:
            assert position >= last, "metadata ascends"
            last = position + len(piece)
            device.write(position, piece)
        device.write(*pieces[-1])


def forest_of(volume: NtfsVolume) -> Forest:
    """Return everything that is on a volume, content as it is stored."""
    made = Forest(entries=list(volume.walk()))
    seen: set[int] = set()
    for entry in made.entries:
        node = entry.node
        if node.number in seen:
            continue
        seen.add(node.number)
        streams = {stream.name: stream for stream in node.streams}
        if node.kind is Kind.FILE:
            streams.setdefault(b"", Stream(b"", node.size))
        for name, stream in streams.items():
            if volume.is_resident(node, name):
                made.contents[node.number, name] = volume.read_stored(node, name, 0, stream.size)
                continue
            extents = volume.stored_extents(node, name)
            regions = [(e.offset, e.length, e.is_unwritten) for e in extents]
            size = stream.size
            if stream.flags & COMPRESSED:
                size = max((e.offset + e.length for e in extents), default=0)
            made.contents[node.number, name] = volume.read_stored(node, name, 0, size)
            if name:
                made.stream_regions[node.number, name] = regions
            else:
                made.regions[node.number] = regions
    return made


def seen_on(volume: NtfsVolume) -> dict[bytes, tuple[Any, ...]]:
    """Return what is to be equal on two volumes, by path."""
    found: dict[bytes, tuple[Any, ...]] = {}
    paths: dict[int, bytes] = {}
    digests: dict[int, dict[bytes, str]] = {}
    for entry in volume.walk():
        node = entry.node
        path = paths.get(entry.parent, b"") + b"/" + entry.name if entry.name else b""
        if node.kind is Kind.DIRECTORY:
            paths[node.number] = path
        if node.number not in digests:
            digests[node.number] = _digests(volume, node)
        assert path not in found
        found[path] = (
            node.kind,
            node.size,
            node.flags,
            node.links,
            (node.created_ns, node.modified_ns, node.changed_ns, node.accessed_ns),
            node.xattrs,
            node.streams,
            entry.name_flags if entry.name else None,
            entry.short_name,
            entry.name_times,
            digests[node.number],
        )
    return found


def _digests(volume: NtfsVolume, node: Node) -> dict[bytes, str]:
    """Return the digests of everything that can be read of a node, by stream."""
    names = {stream.name: stream.size for stream in node.streams}
    if node.kind is Kind.FILE:
        names[b""] = node.size
    made = {}
    for name, size in names.items():
        data = volume.read_stream(node, name, 0, size)
        assert len(data) == size
        made[name] = hashlib.sha256(data).hexdigest()
    return made


def expected(forest: Forest) -> dict[bytes, tuple[Any, ...]]:
    """Return what `seen_on` has to say of a volume that was made of a forest."""
    found: dict[bytes, tuple[Any, ...]] = {}
    paths: dict[int, bytes] = {}
    links = Counter(entry.node.number for entry in forest.entries)
    for entry in forest.entries:
        node = entry.node
        path = paths.get(entry.parent, b"") + b"/" + entry.name if entry.name else b""
        times = (node.created_ns, node.modified_ns, node.changed_ns, node.accessed_ns)
        sizes = {stream.name: stream.size for stream in node.streams}
        if node.kind is Kind.DIRECTORY:
            paths[node.number] = path
        else:
            sizes[b""] = node.size
        digests = {}
        for name, size in sizes.items():
            content = forest.contents.get((node.number, name), b"")[:size].ljust(size, b"\0")
            digests[name] = hashlib.sha256(content).hexdigest()
        found[path] = (
            node.kind,
            node.size,
            node.flags,
            links[node.number],
            times,
            node.xattrs,
            node.streams,
            entry.name_flags if entry.name else None,
            entry.short_name,
            (entry.name_times or times) if entry.name else None,
            digests,
        )
    return found


def compare(one: Mapping[bytes, Any], other: Mapping[bytes, Any]) -> None:
    """Assert that two volumes hold the same, and say where they do not."""
    assert sorted(one) == sorted(other)
    for path, seen in one.items():
        assert seen == other[path], path


def reopened(device: MemoryDevice) -> NtfsVolume:
    """Open what was written."""
    return open_volume(device)


def draw_forest(
    seed: int,
    *,
    files: int = 60,
    cluster_size: int = 4096,
    alphabets: Sequence[str] = ALPHABETS,
) -> Forest:
    """Return a random tree with everything that NTFS can hold."""
    draw = random.Random(seed)
    made = Forest()
    root = made.node(ROOT, Kind.DIRECTORY, flags=0x6)
    made.add(ROOT, b"", root)
    directories, number = [ROOT], 64
    for index in range(files):
        number += draw.randrange(1, 4)
        parent = draw.choice(directories)
        name = draw_name(draw, index, alphabets)
        if draw.random() < 0.15:
            node = made.add(parent, name, made.node(number, Kind.DIRECTORY))
            directories.append(number)
        else:
            size = draw.choice((0, 1, 100, 600, 700, 720, 760, 4095, 4096, 4097, 70000))
            node = made.add(parent, name, made.node(number), draw.randbytes(size))
        decorate(made, draw, node, cluster_size)
        if node.flags & 0x400 and node.kind is Kind.DIRECTORY:
            directories.remove(number)  # a junction has nothing in it
        if node.kind is Kind.FILE and draw.random() < 0.1:
            for link in range(draw.choice((1, 2, 30))):
                where = draw.choice(directories)
                made.add(
                    where, b"link %d of %d" % (link, number) + b"x" * draw.choice((0, 200)), node
                )
    return made


def draw_name(draw: random.Random, index: int, alphabets: Sequence[str]) -> bytes:
    """Return a name nobody else in the tree has."""
    alphabet = draw.choice(alphabets)
    text = "".join(draw.choice(alphabet) for _ in range(draw.choice((0, 3, 12, 60))))
    return name_of(text.encode("utf-16-le", "surrogatepass")) + b"%d" % index


def decorate(made: Forest, draw: random.Random, node: Node, cluster_size: int) -> None:
    """Give a node some of the rarer things."""
    entry = made.entries[-1]
    xattrs = dict(node.xattrs)
    if draw.random() < 0.2:
        entry.name_flags, entry.short_name = 1, b"SHORT~%d" % node.number
    if draw.random() < 0.2:
        entry.name_times = (T0, T0 + 100, T0 + 200, T0 + 300)
    if draw.random() < 0.1:
        xattrs[XATTR_OBJECT_ID] = draw.randbytes(64)
    if draw.random() < 0.1:
        xattrs[XATTR_EA] = ea(b"NAME", draw.randbytes(draw.choice((1, 300, 3000))))
    if draw.random() < 0.1:
        xattrs[XATTR_REPARSE] = junction("C:\\" + "x" * draw.choice((3, 200, 3000)))
        node.flags |= 0x400
    node.xattrs = tuple(sorted(xattrs.items()))
    for index in range(draw.choice((0, 0, 0, 0, 1, 2, 25))):
        size = draw.choice((0, 5, 300, 900, 5000))
        made.add_stream(node, b"stream %d" % index, draw.randbytes(size))
    if node.kind is Kind.FILE and draw.random() < 0.15:
        make_sparse(made, draw, node, cluster_size)


def make_sparse(made: Forest, draw: random.Random, node: Node, cluster_size: int) -> None:
    """Give a file holes, or an end that was never written."""
    at, regions, data = 0, list[Region](), bytearray()
    choices = ((1, 300), (3, 300), (40, 5), (600, 2))
    count, gap = draw.choice(choices if cluster_size <= 4096 else ((1, 5), (3, 2)))
    for _ in range(count):
        at += cluster_size * draw.choice((0, 1, gap))
        length = cluster_size * draw.choice((1, 2))
        regions.append((at, length, False))
        data = data.ljust(at, b"\0") + draw.randbytes(length)
        at += length
    at += cluster_size * draw.choice((0, 5))
    node.size = max(at - draw.choice((0, 1, 100)), 1)
    node.flags |= 0x200
    node.streams = tuple(sorted((*node.streams, Stream(b"", node.size, SPARSE))))
    made.regions[node.number] = regions
    made.contents[node.number, b""] = bytes(data.ljust(at, b"\0"))


def rooted(**root: Any) -> Forest:
    """Return a forest that has a root."""
    made = Forest()
    made.add(ROOT, b"", made.node(ROOT, Kind.DIRECTORY, flags=6, **root))
    return made


def proven(forest: Forest, description: Description, size: int = 32 * MIB) -> MemoryDevice:
    """Write a forest, check the volume and compare what is on it."""
    device = forest.write(description, size)
    assert check_volume(device) == []
    compare(expected(forest), seen_on(open_volume(device)))
    return device


def plan_of(forest: Forest, description: Description, size: int, **options: Any) -> Any:
    """Plan a forest."""
    return plan_volume(
        description,
        size=size,
        sector_size=512,
        entries=forest.entries,
        order=[entry.node.number for entry in forest.entries],
        regions=forest.regions,
        stream_regions=forest.stream_regions,
        **options,
    )
