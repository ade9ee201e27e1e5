# SPDX-License-Identifier: Apache-2.0
"""ext volumes made by the writer under test, from real volumes or from drawn-up trees."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fsdrivers.device import FileDevice
from fsdrivers.ext.check import check_volume
from fsdrivers.ext.mkfs import plan_volume
from fsdrivers.ext.mkfs.layout import ExtLayout
from fsdrivers.ext.volume import ExtVolume, open_volume
from fsdrivers.volume import Entry, Kind, Node, Plain
from tests.programs import run

NOW_NS = 1_790_000_000_000_000_000
CLEAN_LINES = 6  # e2fsck prints five passes and a summary
# As mke2fs 1.47 makes a volume of 1 GiB; tests change what they are about.
EXT4: dict[str, Plain] = {
    "block_size": 4096,
    "blocks_count": 262144,
    "blocks_per_group": 32768,
    "inode_size": 256,
    "inodes_count": 65536,
    "inodes_per_group": 8192,
    "first_inode": 11,
    "min_extra_isize": 32,
    "want_extra_isize": 32,
    "descriptor_size": 64,
    "reserved_gdt_blocks": 127,
    "log_groups_per_flex": 4,
    "revision": 1,
    "feature_compat": 0x3C,
    "feature_incompat": 0x2C2,
    "feature_ro_compat": 0x46B,
    "uuid": bytes(range(16)),
    "label": b"label",
    "hash_seed": bytes(range(16, 32)),
    "default_hash_version": 1,
    "flags": 1,
    "reserved_blocks": 13107,
    "journal_blocks": 8192,
}
EXT3 = EXT4 | {
    "feature_incompat": 0x2,
    "feature_ro_compat": 0x3,
    "descriptor_size": 32,
    "log_groups_per_flex": 0,
    "reserved_gdt_blocks": 63,
}
EXT2 = EXT3 | {"feature_compat": 0x38, "journal_blocks": 0}


def small_blocks(description: Mapping[str, Plain]) -> dict[str, Plain]:
    """Return a description for blocks of 1 KiB."""
    changed = {"block_size": 1024, "blocks_count": 1 << 20, "blocks_per_group": 8192}
    return {**description, **changed, "inodes_per_group": 2048, "inodes_count": 262144}


@dataclass
class Drawing:
    """A tree drawn up by a test.  Numbers are handed out from 100 on; the root is 2."""

    entries: list[Entry] = field(default_factory=list)
    contents: dict[int, bytes] = field(default_factory=dict)
    regions: dict[int, list[tuple[int, int, bool]]] = field(default_factory=dict)
    last_number: int = 100

    def __post_init__(self) -> None:
        self.entries.append(Entry(2, b"", self.node(Kind.DIRECTORY, number=2)))

    def node(self, kind: Kind, number: int | None = None, **fields: object) -> Node:
        if number is None:
            number = self.last_number = self.last_number + 1
        node = Node(number, kind, modified_ns=NOW_NS, accessed_ns=NOW_NS, changed_ns=NOW_NS)
        for name, value in fields.items():
            setattr(node, name, value)
        return node

    def add(self, parent: int, name: bytes, node: Node) -> int:
        """Add a name and return the node's number."""
        self.entries.append(Entry(parent, name, node))
        return node.number

    def directory(self, parent: int, name: bytes, **fields: object) -> int:
        return self.add(parent, name, self.node(Kind.DIRECTORY, **fields))

    def file(self, parent: int, name: bytes, content: bytes = b"", **fields: object) -> int:
        node = self.node(Kind.FILE, size=len(content), **fields)
        self.contents[node.number] = content
        return self.add(parent, name, node)

    @property
    def order(self) -> list[int]:
        return list(self.contents)

    def plan(
        self, description: Mapping[str, Plain], size: int | None = None, is_blank: bool = True
    ) -> ExtLayout:
        """Plan a volume of this tree, of the described size if none is given."""
        if size is None:
            blocks, block_size = description["blocks_count"], description["block_size"]
            assert isinstance(blocks, int)
            assert isinstance(block_size, int)
            size = blocks * block_size
        return plan_volume(
            description,
            size=size,
            sector_size=512,
            entries=self.entries,
            order=self.order,
            is_blank=is_blank,
            regions=self.regions,
            now_ns=NOW_NS,
        )

    def write(self, path: Path, layout: ExtLayout) -> Path:
        """Write a planned volume of this tree to an image file."""
        return write_image(path, layout, self.contents)


def write_image(path: Path, layout: ExtLayout, contents: Mapping[int, bytes]) -> Path:
    """Write content and metadata over the image file, which is made or made longer if need be."""
    with open(path, "ab") as file:
        file.truncate(layout.size)
    device = FileDevice.open(path, writable=True)
    try:
        for number, content in contents.items():
            for offset, length, position, is_unwritten in layout.placements(number):
                if not is_unwritten:
                    device.write(position, content[offset : offset + length].ljust(length, b"\0"))
        write_metadata(device, layout)
    finally:
        device.close()
    return path


def write_metadata(device: FileDevice, layout: ExtLayout) -> None:
    """Write the metadata, checking that it comes as promised: ascending, the head last."""
    end, pieces = 0, list(layout.iter_metadata())
    if pieces[0][0] == 0:
        assert not any(pieces[0][1]), "the first piece wipes the old superblock"
    for position, data in pieces[:-1]:
        assert position >= end, "metadata ascends without overlap"
        end = position + len(data)
        device.write(position, data)
    assert pieces[-1][0] == 0, "the superblock comes last"
    device.write(*pieces[-1])
    device.flush()


def regions_of(volume: ExtVolume, nodes: Sequence[Node]) -> dict[int, list[tuple[int, int, bool]]]:
    """Return the allocated ranges of files, as a backup records them."""
    return {
        node.number: [
            (extent.offset, extent.length, extent.is_unwritten) for extent in volume.extents(node)
        ]
        for node in nodes
    }


def copy_volume(
    source: Path, target: Path, size: int | None = None, *, is_blank: bool = True
) -> ExtLayout:
    """Make the volume of one image again in another, through reader and writer."""
    volume = open_volume(FileDevice.open(source))
    entries = list(volume.walk())
    files = list({e.node.number: e.node for e in entries if e.node.kind is Kind.FILE}.values())
    layout = plan_volume(
        volume.describe(),
        size=volume.size if size is None else size,
        sector_size=512,
        entries=entries,
        order=[node.number for node in files],
        is_blank=is_blank,
        regions=regions_of(volume, files),
        now_ns=NOW_NS,
    )
    contents = {node.number: volume.read(node, 0, node.size) for node in files}
    write_image(target, layout, contents)
    return layout


def assert_clean(path: Path, *, with_own_check: bool = True) -> None:
    """Assert that e2fsck has nothing at all to say, and our own checker neither."""
    done = subprocess.run(["e2fsck", "-fn", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert len(done.stdout.strip().splitlines()) == CLEAN_LINES, done.stdout
    if not with_own_check:
        return
    device = FileDevice.open(path)
    try:
        assert [str(finding) for finding in check_volume(device)] == []
    finally:
        device.close()


def header_of(path: Path, *options: object) -> dict[str, str]:
    """Return what dumpe2fs says of a superblock."""
    text = run("dumpe2fs", "-h", *options, path)
    return dict(re.findall(r"^([^:\n]+):\s*(.*?)\s*$", text, re.MULTILINE))
