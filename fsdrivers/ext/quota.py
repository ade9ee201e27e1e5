# SPDX-License-Identifier: Apache-2.0
"""Quota: limits of users, groups and projects, and what they use.

What a description keeps are the limits; what is used follows from the inodes of a volume.  A
quota file is packed as a whole, its entries in ascending order of their identifiers.

Source: linux fs/quota/quota_tree.c for the tree; which inodes count: e2fsck/pass1.c (the root
and every inode in use from the first that is not reserved, but for the volume's own files).
Not here: format 1 and revision 0 of format 2, which no volume with the feature has; quota files
that have names (aquota.user), which are files like others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import pairwise
from typing import NamedTuple

from fsdrivers.errors import CorruptError
from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.quota import (
    QUOTA_BLOCK_SIZE,
    QUOTA_MAGICS,
    QUOTA_VERSION,
    TREE_LEVELS,
    TREE_ROOT,
    QuotaDataHeader,
    QuotaEntry,
    QuotaHeader,
)
from fsdrivers.record import words_codec
from fsdrivers.volume import Description, Plain

ENTRIES_PER_BLOCK = (QUOTA_BLOCK_SIZE - QuotaDataHeader.SIZE) // QuotaEntry.SIZE
_REFERENCES = words_codec(QUOTA_BLOCK_SIZE // 4)


class QuotaKind(IntEnum):
    """Whose use is counted."""

    USER = 0
    GROUP = 1
    PROJECT = 2


class Limits(NamedTuple):
    """What one identifier may use; 0 means no limit.  Blocks of 1024 bytes."""

    blocks_hard: int = 0
    blocks_soft: int = 0
    inodes_hard: int = 0
    inodes_soft: int = 0
    blocks_expire_s: int = 0
    inodes_expire_s: int = 0


class Usage(NamedTuple):
    """What one identifier uses."""

    space: int = 0  # bytes
    inodes: int = 0


@dataclass(frozen=True, slots=True)
class QuotaFacts:
    """What is set for one kind, not what is used."""

    kind: QuotaKind
    block_grace_s: int = 7 * 24 * 3600
    inode_grace_s: int = 7 * 24 * 3600
    flags: int = 0
    limits: Mapping[int, Limits] = field(default_factory=dict)


@dataclass(slots=True)
class QuotaFile:
    """A quota file as it was read."""

    facts: QuotaFacts
    usage: dict[int, Usage] = field(default_factory=dict)
    offsets: dict[int, int] = field(default_factory=dict)  # of entries, bytes in the file
    has_bad_lists: bool = False  # of blocks with room, which only changes need


def describe_quota(facts: QuotaFacts) -> dict[str, Plain]:
    """Return the facts as plain data: limits as lists, the identifier first."""
    limits: list[Plain] = [[number, *facts.limits[number]] for number in sorted(facts.limits)]
    return {
        "kind": int(facts.kind),
        "block_grace_s": facts.block_grace_s,
        "inode_grace_s": facts.inode_grace_s,
        "flags": facts.flags,
        "limits": limits,
    }


def quotas_of(description: Description) -> tuple[QuotaFacts, ...]:
    """Return the facts in a description.

    Raises:
        CorruptError: they are not what `describe_quota` makes.
    """
    listed = description.get("quotas")
    if not isinstance(listed, list):
        raise CorruptError("volume description, quotas", None, "a list", repr(listed))
    made = [_facts_of(item) for item in listed]
    if len({facts.kind for facts in made}) < len(made):
        raise CorruptError("volume description, quotas of one kind twice")
    return tuple(sorted(made, key=lambda facts: facts.kind))


def _facts_of(item: Plain) -> QuotaFacts:
    words = ("kind", "block_grace_s", "inode_grace_s", "flags")
    values = [item.get(word) for word in words] if isinstance(item, dict) else []
    limits = item.get("limits") if isinstance(item, dict) else None
    numbers = [value for value in values if isinstance(value, int) and 0 <= value < 1 << 32]
    if len(numbers) < len(words) or numbers[0] > max(QuotaKind) or not isinstance(limits, list):
        raise CorruptError("volume description, quotas", None, "kind, graces, limits", repr(item))
    found: dict[int, Limits] = {}
    for row in limits:
        fields = row if isinstance(row, list) else []
        ints = [value for value in fields if isinstance(value, int) and 0 <= value < 1 << 64]
        if len(ints) != 1 + len(Limits._fields) or ints[0] >> 32:
            raise CorruptError("volume description, limits of a quota", None, None, repr(row))
        found[ints[0]] = Limits(*ints[1:])
    kind, block_grace, inode_grace, flags = numbers
    return QuotaFacts(QuotaKind(kind), block_grace, inode_grace, flags, found)


def file_inodes(superblock: ext.Superblock) -> dict[QuotaKind, int]:
    """Return the inodes of the quota files a volume has."""
    if not superblock.has_quota:
        return {}
    inodes = {
        QuotaKind.USER: superblock.user_quota_inode,
        QuotaKind.GROUP: superblock.group_quota_inode,
        QuotaKind.PROJECT: superblock.project_quota_inode,
    }
    return {kind: number for kind, number in inodes.items() if number}


def file_size(identifiers: Iterable[int]) -> int:
    """Return the bytes of a quota file with entries for these and for 0."""
    numbers = {0, *identifiers}
    inner = sum(len({number >> 8 * level for number in numbers}) for level in (1, 2, 3))
    return (TREE_ROOT + 1 + inner + -(-len(numbers) // ENTRIES_PER_BLOCK)) * QUOTA_BLOCK_SIZE


def pack_file(facts: QuotaFacts, usage: Mapping[int, Usage]) -> bytes:
    """Return a quota file with an entry for whatever has limits or uses something, and for 0."""
    numbers = sorted({0, *facts.limits, *usage})
    tree, first_data = _tree_of(numbers)
    blocks = [b"", *(_REFERENCES.pack(*block) for block in tree)]
    last = 0
    for at in range(0, len(numbers), ENTRIES_PER_BLOCK):
        part = numbers[at : at + ENTRIES_PER_BLOCK]
        head = QuotaDataHeader(0, 0, len(part), 0, 0).pack()
        entries = (pack_entry(number, facts, usage.get(number, Usage())) for number in part)
        blocks.append((head + b"".join(entries)).ljust(QUOTA_BLOCK_SIZE, b"\0"))
        last = 0 if len(part) == ENTRIES_PER_BLOCK else len(blocks) - 1
    assert first_data + -(-len(numbers) // ENTRIES_PER_BLOCK) == len(blocks)
    header = QuotaHeader(
        QUOTA_MAGICS[facts.kind], QUOTA_VERSION, facts.block_grace_s, facts.inode_grace_s,
        facts.flags, len(blocks), 0, last,
    )  # fmt: skip
    blocks[0] = header.pack().ljust(QUOTA_BLOCK_SIZE, b"\0")
    return b"".join(blocks)


def _tree_of(numbers: list[int]) -> tuple[list[list[int]], int]:
    """Return the blocks of a tree over ascending identifiers, the root first.

    Each level takes the next 8 bits; the references of the last one are to data blocks, which
    follow the tree.  Also returned: the first of those.
    """
    prefixes = [sorted({number >> 8 * (TREE_LEVELS - level) for number in numbers})
                for level in range(TREE_LEVELS)]  # fmt: skip
    first = [TREE_ROOT]
    for level in prefixes:
        first.append(first[-1] + len(level))
    places = [{prefix: first[level] + index for index, prefix in enumerate(found)}
              for level, found in enumerate(prefixes)]  # fmt: skip
    blocks = [[0] * (QUOTA_BLOCK_SIZE // 4) for _ in range(first[-1] - TREE_ROOT)]
    for above, below in pairwise(places):
        for prefix, place in below.items():
            blocks[above[prefix >> 8] - TREE_ROOT][prefix & 0xFF] = place
    for index, number in enumerate(numbers):
        leaf = blocks[places[-1][number >> 8] - TREE_ROOT]
        leaf[number & 0xFF] = first[-1] + index // ENTRIES_PER_BLOCK
    return blocks, first[-1]


def pack_entry(number: int, facts: QuotaFacts, usage: Usage) -> bytes:
    """Return the entry of one identifier; never all zeros, which would be no entry."""
    limits = facts.limits.get(number, Limits())
    entry = QuotaEntry(
        number, 0, limits.inodes_hard, limits.inodes_soft, usage.inodes, limits.blocks_hard,
        limits.blocks_soft, usage.space, limits.blocks_expire_s, limits.inodes_expire_s,
    )  # fmt: skip
    packed = entry.pack()
    if not any(packed):
        entry.inodes_expire_s = 1
        packed = entry.pack()
    return packed


def unpack_file(data: bytes, kind: QuotaKind) -> QuotaFile:
    """Decode a quota file.

    Raises:
        CorruptError: it is not of this kind, or its tree is damaged.
    """
    what = f"quota file of kind {kind.name.lower()}"
    if len(data) < (TREE_ROOT + 1) * QUOTA_BLOCK_SIZE:
        raise CorruptError(f"{what}, size", None, 2 * QUOTA_BLOCK_SIZE, len(data))
    header = QuotaHeader.unpack(data)
    if (header.magic, header.version) != (QUOTA_MAGICS[kind], QUOTA_VERSION):
        found = f"{header.magic:#x} version {header.version}"
        raise CorruptError(what, None, f"{QUOTA_MAGICS[kind]:#x} version {QUOTA_VERSION}", found)
    limits: dict[int, Limits] = {}
    facts = QuotaFacts(kind, header.block_grace_s, header.inode_grace_s, header.flags, limits)
    made = QuotaFile(facts)
    lists = max(header.free_block, header.free_entry_block)
    made.has_bad_lists = (
        lists >= header.blocks_count or header.blocks_count > len(data) // QUOTA_BLOCK_SIZE
    )
    for block in sorted(_data_blocks(data, what)):
        start = block * QUOTA_BLOCK_SIZE + QuotaDataHeader.SIZE
        for at in range(start, start + ENTRIES_PER_BLOCK * QuotaEntry.SIZE, QuotaEntry.SIZE):
            raw = data[at : at + QuotaEntry.SIZE]
            if any(raw):
                _add_entry(made, limits, QuotaEntry.unpack(raw), at, what)
    return made


def _data_blocks(data: bytes, what: str) -> set[int]:
    """Return the blocks of entries that the tree leads to."""
    end = len(data) // QUOTA_BLOCK_SIZE
    level, seen = {TREE_ROOT}, {0, TREE_ROOT}
    for depth in range(TREE_LEVELS):
        below: set[int] = set()
        for block in level:
            below.update(_REFERENCES.unpack_from(data, block * QUOTA_BLOCK_SIZE))
        below.discard(0)
        if any(block >= end for block in below) or below & seen:
            raise CorruptError(f"{what}, level {depth} of its tree")
        seen |= below
        level = below
    return level


def _add_entry(
    made: QuotaFile, limits: dict[int, Limits], entry: QuotaEntry, at: int, what: str
) -> None:
    number = entry.identifier
    if number in made.offsets:
        raise CorruptError(f"{what}, {number} twice")
    made.offsets[number] = at
    made.usage[number] = Usage(entry.space_used, entry.inodes_used)
    found = Limits(
        entry.blocks_hard, entry.blocks_soft, entry.inodes_hard, entry.inodes_soft,
        entry.blocks_expire_s, entry.inodes_expire_s,
    )  # fmt: skip
    is_mark = number == 0 and not any(made.usage[0]) and found == Limits(inodes_expire_s=1)
    if any(found) and not is_mark:
        limits[number] = found
