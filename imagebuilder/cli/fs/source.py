# SPDX-License-Identifier: Apache-2.0
"""A directory of this host as the entries a driver plans a volume from.

It takes everything below the directory, also from other filesystems mounted there, except the image
that is being filled.  It leaves out and names what the volume cannot hold: devices on NTFS, on FAT
also links; names that Windows cannot reach; of names that differ only in case, all but the first.
NTFS gets symbolic links as the Windows Subsystem for Linux keeps them.  Inode flags and the time of
creation are not kept.

Source: [MS-FSCC] 2.1.2.1; ntfs-3g and Linux fs/ntfs3 read such links.

Names are sorted, so that the same directory gives the same volume.  Forked processes share the
directories, see `walk`.

Measured: 4.5 us a name; 160 bytes of memory, as entries are made when they are asked for.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Sequence
from typing import Final, overload

from fsdrivers import Can, Driver
from fsdrivers.volume import Entry, Kind, Node
from imagebuilder.cli.fs.walk import FACTS, FORMAT_MASK, KIND_OF_FORMAT, Found, Rules, walk

_PART_SHIFT: Final = 32  # a place is the number of a part and a place in it
_PLACE_MASK: Final = (1 << _PART_SHIFT) - 1


class HostEntries(Sequence[Entry]):
    """The names that were found; each entry is made anew when it is asked for.

    Args:
        found: what the walk over each part of the tree gave, the root in the first one.
        driver: of the volume.
    """

    def __init__(self, found: Sequence[Found], driver: Driver) -> None:
        self._found = found
        self._file_flags = driver.file_flags
        self._keep_link = driver.keep_link if Can.LINK in driver.can else None
        # Links that were met in several parts: the number of the first for that of the others.
        self._first_numbers: dict[int, int] = {}
        firsts: dict[tuple[int, int], int] = {}
        for part in found:
            for identity, number in part.links.items():
                first = firsts.setdefault(identity, number)
                if first != number:
                    self._first_numbers[number] = first

    def __len__(self) -> int:
        return sum(len(part.names) for part in self._found)

    @overload
    def __getitem__(self, index: int) -> Entry: ...

    @overload
    def __getitem__(self, index: slice) -> list[Entry]: ...

    def __getitem__(self, index: int | slice) -> Entry | list[Entry]:
        if isinstance(index, slice):
            return list(self)[index]
        at = range(len(self))[index]
        for part in self._found:
            if at < len(part.names):
                return next(self._iter_part(part, {}, at))
            at -= len(part.names)
        raise AssertionError("the index is inside")

    def __iter__(self) -> Iterator[Entry]:
        """Yield the entries; links of one object share their node."""
        shared: dict[int, Node] = {}
        for part in self._found:
            yield from self._iter_part(part, shared)

    def _iter_part(self, part: Found, shared: dict[int, Node], start: int = 0) -> Iterator[Entry]:
        """Yield the entries of a part from number `start` on."""
        xattrs, kinds, file_flags = part.xattrs, KIND_OF_FORMAT, self._file_flags
        first_numbers, keep_link = self._first_numbers, self._keep_link
        last_parent = -1
        names = part.names[start:] if start else part.names
        facts = memoryview(part.facts)[start * FACTS.size :]
        for name, fact in zip(names, FACTS.iter_unpack(facts), strict=True):
            parent, number, mode, uid, gid, links, size, modified, accessed, changed = fact
            node = None
            # Equal numbers as one object: a driver may keep a million of these entries.
            if parent == last_parent:
                parent = last_parent
            else:
                last_parent = parent
            if accessed == modified:
                accessed = modified
            if changed == modified:
                changed = modified
            if links > 1:
                number = first_numbers.get(number, number)
                node = shared.get(number)
            if node is None:
                kind = kinds[mode & FORMAT_MASK]
                is_file = kind is Kind.FILE
                node = Node(
                    number,
                    kind,
                    size if is_file else 0,
                    mode & 0o7777,
                    uid,
                    gid,
                    modified,
                    accessed,
                    changed,
                    None,
                    links,
                )
                if is_file:
                    node.flags = file_flags
                elif kind is not Kind.DIRECTORY:
                    node.device = part.devices.get(number, (0, 0))
                    node.target = part.targets.get(number, b"")
                    node.size = len(node.target)
                    if kind is Kind.SYMLINK and keep_link is not None:
                        node.flags = file_flags
                        keep_link(node)
                if number in xattrs:
                    node.xattrs = xattrs[number]
                if links > 1 and kind is not Kind.DIRECTORY:
                    shared[number] = node
            yield Entry(parent, name, node)

    def iter_files(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield (number, size, part, place in it) of each file with content, once."""
        first_numbers, unpack, step = self._first_numbers, FACTS.unpack_from, FACTS.size
        for rank, part in enumerate(self._found):
            facts = part.facts
            for at in part.files:
                _, number, _, _, _, _, size, _, _, _ = unpack(facts, at * step)
                if number not in first_numbers:
                    yield number, size, rank, at

    def name_at(self, part: int, at: int) -> tuple[int, bytes]:
        """Return (number of the directory, name) of a place that `iter_files` gave."""
        found = self._found[part]
        parent: int = FACTS.unpack_from(found.facts, at * FACTS.size)[0]
        return parent, found.names[at]


class HostTree:
    """What is below a directory, for a volume of a type.

    `entries`: all names.  `order`, `sizes`: of the files with content, in the order of the names.
    `regions`: of files with holes, by number.  `problems`: what had to be left out, a line each.
    """

    def __init__(
        self,
        directory: bytes,
        driver: Driver,
        *,
        skipped: os.stat_result | None,
        processes: int = 1,
    ) -> None:
        """Walk the directory.

        Args:
            directory: path on this host.
            driver: of the volume.
            skipped: the image that is being filled, should it lie below.
            processes: how many share the work.

        Raises:
            OSError: the directory itself cannot be read.
        """
        identity = (skipped.st_dev, skipped.st_ino) if skipped else (0, 0)
        found = walk(directory, Rules(driver, identity), processes)
        self.entries = HostEntries(found, driver)
        self.problems = [text for part in found for text in part.problems]
        self.regions = {number: list(some) for part in found for number, some in part.regions}
        self._directories = {number: path for part in found for number, path in part.directories}
        self.list_files()

    def list_files(self) -> None:
        """Set what there is to copy from the entries."""
        self.order, self.sizes = array("Q"), array("Q")
        self._places = array("Q")
        for number, size, part, at in self.entries.iter_files():
            self.order.append(number)
            self.sizes.append(size)
            self._places.append(part << _PART_SHIFT | at)

    def path(self, rank: int) -> bytes:
        """Return the path of the file at `rank` of `order`."""
        place = self._places[rank]
        parent, name = self.entries.name_at(place >> _PART_SHIFT, place & _PLACE_MASK)
        return self._directories[parent] + b"/" + name
