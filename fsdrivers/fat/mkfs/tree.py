# SPDX-License-Identifier: Apache-2.0
"""The directories of a volume to be made: who is in which, under which stored names.  Pure.

Also says what FAT cannot hold: links, devices, sockets, extended attributes, files of 4 GiB.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from fsdrivers.errors import AlreadyExistsError, CorruptError, NoSpaceError, UnsupportedError
from fsdrivers.fat.codepage import DEFAULT_CODE_PAGE, CodePage, code_page, fold
from fsdrivers.fat.directory import EA_HANDLE
from fsdrivers.fat.format import MAXIMUM_DIRECTORY_ENTRIES, MAXIMUM_FILE_SIZE, DirectoryEntry
from fsdrivers.fat.names import StoredName, store_names
from fsdrivers.printable import printable
from fsdrivers.volume import Entry, Kind, Node

_OEM_437 = code_page(DEFAULT_CODE_PAGE)


@dataclass(slots=True)
class Directory:
    """A directory to be made."""

    node: Node
    parent: int  # node number; its own for the root
    children: list[Entry] = field(default_factory=list)
    names: list[StoredName] = field(default_factory=list)  # of the children, one each
    slot_count: int = 0  # with "." and "..", or with the label in the root

    @property
    def is_root(self) -> bool:
        """Whether it is the root directory."""
        return self.parent == self.node.number

    @property
    def size(self) -> int:
        """Bytes of all its slots."""
        return self.slot_count * DirectoryEntry.SIZE


@dataclass(frozen=True, slots=True)
class Tree:
    """All directories and files to be made."""

    directories: dict[int, Directory]  # by node number, parents first, the root first
    files: dict[int, Node]  # by node number, in the order of the entries

    @property
    def root(self) -> Directory:
        """The root directory."""
        return next(iter(self.directories.values()))

    def clusters(self, cluster_size: int, *, is_root_fixed: bool) -> int:
        """Return how many clusters of `cluster_size` bytes everything takes."""
        sizes = [node.size for node in self.files.values()]
        sizes += [directory.size for directory in self.directories.values()]
        count = sum([-(-size // cluster_size) for size in sizes])
        count -= -(-self.root.size // cluster_size)
        # A directory has a cluster even if it is empty; only a FAT32 root can be.
        return count if is_root_fixed else count + max(1, -(-self.root.size // cluster_size))


def build_tree(entries: Iterable[Entry], *, has_label: bool, page: CodePage = _OEM_437) -> Tree:
    """Sort `entries` into directories and decide how their names are stored.

    Args:
        entries: the root first, each directory before what is in it.
        has_label: the root gets a slot more, for the volume label.
        page: OEM code page of the 8.3 names.

    Raises:
        UnsupportedError: FAT cannot hold an entry.
        AlreadyExistsError: a directory has two entries of one name, whatever their case, and
            they are not recorded ones, which may be as they were.
        InvalidNameError: a name cannot be stored.
        NoSpaceError: a directory has more slots than FAT allows.
    """
    directories: dict[int, Directory] = {}
    files: dict[int, Node] = {}
    for entry in entries:
        node = entry.node
        number = node.number
        if node.kind is not Kind.FILE:
            _check_directory(entry, directories)
            directories[number] = Directory(node, entry.parent)
        else:
            _check_file(entry, files)
            files[number] = node
        if entry.parent in directories and number != entry.parent:
            directories[entry.parent].children.append(entry)
        elif number != entry.parent or len(directories) > 1:
            raise CorruptError(
                f"entry {printable(entry.name)} comes before its directory {entry.parent}"
            )
    if not directories:
        raise CorruptError("a volume without a root directory")
    for directory in directories.values():
        _check_unique(directory)
        directory.names = list(store_names(directory.children, page))
        directory.slot_count = sum([name.slot_count for name in directory.names])
        directory.slot_count += has_label if directory.is_root else 2
        if directory.slot_count > MAXIMUM_DIRECTORY_ENTRIES:
            raise NoSpaceError(
                f"directory with {len(directory.children)} names",
                directory.size,
                MAXIMUM_DIRECTORY_ENTRIES * DirectoryEntry.SIZE,
            )
    return Tree(directories, files)


def _check_directory(entry: Entry, directories: dict[int, Directory]) -> None:
    """Raise UnsupportedError unless FAT can hold this directory."""
    node = entry.node
    if node.kind is not Kind.DIRECTORY:
        kind = node.kind.name.lower().replace("_", " ")
        raise UnsupportedError(f"a {kind} on FAT: {printable(entry.name)}")
    if node.number in directories:
        raise UnsupportedError(f"a second name of a directory: {printable(entry.name)}")
    _check_attributes(entry)


def _check_file(entry: Entry, files: dict[int, Node]) -> None:
    """Raise UnsupportedError unless FAT can hold this file."""
    node = entry.node
    if node.number in files:
        raise UnsupportedError(f"hard links on FAT: {printable(entry.name)}")
    if node.size > MAXIMUM_FILE_SIZE:
        raise UnsupportedError(f"a file of 4 GiB or more on FAT: {printable(entry.name)}")
    _check_attributes(entry)


def _check_attributes(entry: Entry) -> None:
    """Raise UnsupportedError if the node has extended attributes FAT has no place for."""
    for name, _ in entry.node.xattrs:
        if name != EA_HANDLE:
            raise UnsupportedError(
                f"extended attribute {printable(name)} on FAT: {printable(entry.name)}"
            )


def _check_unique(directory: Directory) -> None:
    """Raise AlreadyExistsError if two children have one name, which case does not change.

    Entries with recorded 8.3 names come from a volume that had both: they come back as they were.
    """
    children = directory.children
    folded = [fold(entry.name.decode("utf-8", "replace")) for entry in children]
    if len(set(folded)) == len(children):
        return
    seen: dict[str, Entry] = {}
    for name, entry in zip(folded, children, strict=True):
        other = seen.setdefault(name, entry)
        if other is not entry and not (entry.short_name and other.short_name):
            raise AlreadyExistsError(
                f"two entries {printable(entry.name)} in one directory, but for case"
            )
