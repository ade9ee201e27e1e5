# SPDX-License-Identifier: Apache-2.0
"""The tree that is to be on a volume, as arrays: what is where, and in which order names stand.

A node's index is its order of appearance; the root is 0.  A name's code is twice its ordinal in
`entries`, plus 1 for the DOS name that belongs to it.  Arrays, because a million names as
objects would take more memory than a small machine has.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from fsdrivers.errors import (
    AlreadyExistsError,
    CorruptError,
    InvalidNameError,
    UnsupportedError,
    name_too_long,
)
from fsdrivers.ntfs.format.attributes import FileName
from fsdrivers.ntfs.format.index import IndexEntry
from fsdrivers.ntfs.format.records import Namespace
from fsdrivers.ntfs.names import MAXIMUM_UNITS, check_name, units_of
from fsdrivers.ntfs.upcase import UpCase
from fsdrivers.printable import printable
from fsdrivers.volume import Entry, Kind

_ENTRY_OVERHEAD: Final = IndexEntry.SIZE + FileName.SIZE
_WIN32: Final = Namespace.WIN32.value
_DIRECTORY: Final = Kind.DIRECTORY
_FILE: Final = Kind.FILE


def entry_size(units: int) -> int:
    """Return the bytes of a directory's entry for a name of so many UTF-16 units."""
    return (_ENTRY_OVERHEAD + 2 * units + 7) & ~7


class Tree:
    """Names, nodes and directories by number."""

    def __init__(self, entries: Sequence[Entry], upcase: UpCase) -> None:
        """Number everything.

        Raises:
            CorruptError: an entry comes before its directory, or a directory has two names.
            UnsupportedError: a node of a kind that NTFS has not.
        """
        self.entries = entries
        self.upcase = upcase
        self.index_of: dict[int, int] = {}  # by node number
        self.first = array("I")  # first entry of each node
        self.node_of = array("I")  # index of the node that an entry names
        self.parent_of = array("I")  # index of the directory that an entry is in
        self.units = array("B", bytes(len(entries)))  # length of each name; 0 of the root
        self.dos_units: dict[int, int] = {}  # length of the DOS name by entry
        self.links: dict[int, list[int]] = {}  # entries of nodes that have several
        self.children: dict[int, array[int]] = {}  # codes in the order of the index, by directory
        self._scan()

    @property
    def count(self) -> int:
        """Nodes, the root among them."""
        return len(self.first)

    def _scan(self) -> None:
        """Fill everything but what depends on names."""
        entries, index_of, children = self.entries, self.index_of, self.children
        first, node_of, parent_of = self.first, self.node_of, self.parent_of
        if not entries or entries[0].name or entries[0].node.kind is not _DIRECTORY:
            raise CorruptError("the first entry is not the root directory")
        last_parent, last_index, below = -1, 0, array("I")
        for ordinal, entry in enumerate(entries):
            node = entry.node
            number, kind = node.number, node.kind
            index = index_of.get(number)
            if index is None:
                index = index_of[number] = len(first)
                first.append(ordinal)
                if kind is _DIRECTORY:
                    children[index] = array("I")
                elif kind is not _FILE:
                    raise UnsupportedError(f"{kind.name.lower().replace('_', ' ')} on NTFS")
            elif kind is _DIRECTORY:
                raise CorruptError(f"directory {number} has more than one name")
            else:
                self.links.setdefault(index, [first[index]]).append(ordinal)
            node_of.append(index)
            parent = entry.parent
            if parent != last_parent:
                last_index = self._directory(entry)
                last_parent, below = parent, children[last_index]
            parent_of.append(last_index)
            if ordinal:
                below.append(2 * ordinal)
                if entry.short_name and entry.name_flags == _WIN32:
                    self._add_dos_name(ordinal, index, entry.short_name, below)

    def _directory(self, entry: Entry) -> int:
        """Return the index of the directory that an entry is in."""
        index = self.index_of.get(entry.parent)
        if index is None or index not in self.children:
            raise CorruptError(
                f"{printable(entry.name)} is in directory {entry.parent}, "
                "which does not come before it"
            )
        return index

    def _add_dos_name(self, ordinal: int, index: int, name: bytes, below: array[int]) -> None:
        """Note the DOS name of an entry, unless another link of the node has one already."""
        if any(link in self.dos_units for link in self.links.get(index, ())):
            return
        self.dos_units[ordinal] = len(check_name(name)) >> 1
        below.append(2 * ordinal + 1)

    def name_of(self, code: int) -> bytes:
        """Return the name with a code."""
        entry = self.entries[code >> 1]
        return entry.short_name if code & 1 else entry.name

    def links_of(self, index: int) -> Sequence[int]:
        """Return the codes of all names of a node, each long name before its DOS name."""
        ordinals = self.links.get(index) or (self.first[index],)
        if not self.dos_units:
            return [2 * ordinal for ordinal in ordinals]
        made: list[int] = []
        for ordinal in ordinals:
            made.append(2 * ordinal)
            if ordinal in self.dos_units:
                made.append(2 * ordinal + 1)
        return made

    def sort(self, index: int, extra: Sequence[bytes] = ()) -> list[int]:
        """Sort what is in a directory by its names; returns the sizes of the index entries.

        Args:
            index: of the directory.
            extra: names of system files, which get the codes behind those of all entries.

        Raises:
            AlreadyExistsError: two names are equal.
            InvalidNameError: NTFS cannot hold a name.
        """
        codes = self.children[index]
        entries = self.entries
        names = [
            entries[code >> 1].short_name if code & 1 else entries[code >> 1].name for code in codes
        ]
        start = 2 * len(entries)
        codes.extend(range(start, start + len(extra)))
        names += extra
        if not names:
            return []
        blob = b"\0".join(names)
        if b"/" in blob or blob.count(b"\0") != len(names) - 1 or b"" in names:
            for name in names:
                check_name(name)  # raises
        if blob.isascii() and self.upcase.ascii_table is not None:
            lengths = list(map(len, names))
            keys = [name.translate(self.upcase.ascii_table) for name in names]
        else:
            units = list(map(units_of, names))
            lengths = [len(value) >> 1 for value in units]
            keys = list(map(self.upcase.key, units))
        if max(lengths) > MAXIMUM_UNITS:
            name = names[lengths.index(max(lengths))]
            raise name_too_long(name, MAXIMUM_UNITS, "UTF-16 units")
        order = sorted(range(len(names)), key=keys.__getitem__)
        if len(set(keys)) != len(keys):
            order = self._sort_by_case(names, start, codes)
        for code, length in zip(codes, lengths, strict=True):
            if not code & 1 and code < start:
                self.units[code >> 1] = length
        self.children[index] = array("I", [codes[at] for at in order])
        return [entry_size(lengths[at]) for at in order]

    def _sort_by_case(self, names: list[bytes], start: int, codes: Sequence[int]) -> list[int]:
        """Return the order of names some of which differ by case only."""
        keys = [self.upcase.full_key(units_of(name)) for name in names]
        order = sorted(range(len(names)), key=keys.__getitem__)
        for one, other in pairwise(order):
            if keys[one] == keys[other]:
                if max(codes[one], codes[other]) >= start:
                    raise InvalidNameError(f"{printable(names[one])} is the name of a system file")
                raise AlreadyExistsError(f"a directory has {printable(names[one])} twice")
        return order
