# SPDX-License-Identifier: Apache-2.0
"""The names of an opened volume as a tree: finding an object by its path.

Holds one entry per name in memory.  Not here: content, which `Volume.read` gives.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from fsdrivers.errors import IsADirectoryError_, NotFoundError, not_a_directory, not_found
from fsdrivers.losses import Loss
from fsdrivers.patterns import iter_matching
from fsdrivers.printable import printable
from fsdrivers.registry import Can, driver_of
from fsdrivers.volume import Entry, Extent, Kind, Link, Node, Volume

LINK_LIMIT = 40  # symbolic links followed on one path, as Linux does
PIECE_SIZE = 1 << 20  # bytes that `iter_content` reads at a time


class Tree:
    """All names of one volume that can be read; `losses` says what cannot."""

    def __init__(self, volume: Volume) -> None:
        """Read every directory of `volume`."""
        self.volume = volume
        self.root: Entry | None = None
        self.losses: list[Loss] = []
        self._children: dict[int, list[Entry]] = {}
        driver = driver_of(volume.type)
        self._ignores_case = driver.names.ignores_case
        self._link_of = driver.link_of if Can.LINK in driver.can else None
        for entry in volume.walk(self.losses.append):
            if self.root is None:
                self.root = entry
            else:
                self._children.setdefault(entry.parent, []).append(entry)

    def lost_paths(self) -> list[tuple[bytes, Loss]]:
        """Return the losses with the path of what is lost, or of the directory it is in."""
        if not self.losses or self.root is None:
            return []
        paths = {
            entry.node.number: path
            for path, entry in self.iter_below(b"/", self.root)
            if entry.node.kind == Kind.DIRECTORY
        }
        found = []
        for loss in self.losses:
            path = paths[loss.directory]
            found.append((path.rstrip(b"/") + b"/" + loss.name if loss.name else path, loss))
        return found

    def link_of(self, node: Node) -> Link | None:
        """Return where a node leads that is kept as an object of another kind, None if nowhere."""
        return self._link_of(node) if self._link_of is not None else None

    def shown(self, node: Node) -> Node:
        """Return a node as a person sees it: as a symbolic link if it leads somewhere."""
        link = self.link_of(node)
        if link is None:
            return node
        return replace(node, kind=Kind.SYMLINK, size=len(link.target), target=link.target)

    def children(self, node: Node) -> list[Entry]:
        """Return the names in a directory, in the order on the medium."""
        return self._children.get(node.number, [])

    def iter_below(self, path: bytes, entry: Entry) -> Iterator[tuple[bytes, Entry]]:
        """Yield (path, entry) of `entry` at `path` and all below it, by name, parents first."""
        stack = [(path, entry)]
        while stack:
            path, entry = stack.pop()
            yield path, entry
            if entry.node.kind == Kind.DIRECTORY:
                base = path.rstrip(b"/") + b"/"
                children = sorted(self.children(entry.node), key=lambda child: child.name)
                stack += [(base + child.name, child) for child in reversed(children)]

    def find(self, path: bytes, *, follow: bool = False) -> Entry:
        """Return what `path` names, from the root with or without a leading slash.

        Args:
            path: names between slashes; where the filesystem ignores case, that of ASCII
                letters is ignored if no name is written exactly so.
            follow: follow a symbolic link that the whole path names, as those on the way are.

        Raises:
            NotFoundError: no such object, or too many symbolic links.
            CorruptError, DeviceError: it may be in what could not be read.
            NotADirectoryError_: something on the way is not a directory.
        """
        if self.root is None:
            raise NotFoundError(f"{self.volume.type} volumes hold no files")
        trail = [self.root]
        parts = [part for part in reversed(path.split(b"/")) if part]
        links = 0
        while parts:
            part = parts.pop()
            here = trail[-1].node
            if here.kind != Kind.DIRECTORY:
                raise not_a_directory(path)
            if part == b".":
                continue
            if part == b"..":
                del trail[max(1, len(trail) - 1) :]
                continue
            entry = self._child(here, part)
            if entry is None:
                for loss in self.losses:
                    if loss.directory == here.number and loss.name in (b"", part):
                        raise loss.error
                raise not_found(path)
            if entry.node.kind == Kind.SYMLINK and (parts or follow):
                links += 1
                if links > LINK_LIMIT:
                    raise NotFoundError(f"{printable(path)}: too many symbolic links")
                target = entry.node.target
                if target.startswith(b"/"):
                    del trail[1:]
                parts += [name for name in reversed(target.split(b"/")) if name]
                continue
            trail.append(entry)
        return trail[-1]

    def iter_matching(self, pattern: bytes) -> Iterator[tuple[bytes, Entry]]:
        """Yield (path, entry) of what a path with wildcards means; see `patterns`."""
        if self.root is not None:
            yield from iter_matching(
                pattern,
                self.root,
                lambda entry: [(child.name, child) for child in self.children(entry.node)],
                ignores_case=self._ignores_case,
            )

    def iter_content(self, node: Node) -> Iterator[bytes]:
        """Yield the content of a file piece by piece.

        Raises:
            IsADirectoryError_: it is not a file.
        """
        if node.kind != Kind.FILE:
            raise IsADirectoryError_(f"a {node.kind.name.lower().replace('_', ' ')} has no content")
        for offset in range(0, node.size, PIECE_SIZE):
            yield self.volume.read(node, offset, min(PIECE_SIZE, node.size - offset))

    def _child(self, directory: Node, name: bytes) -> Entry | None:
        children = self.children(directory)
        found = next((child for child in children if child.name == name), None)
        if found is None and self._ignores_case:
            wanted = name.lower()
            found = next((child for child in children if child.name.lower() == wanted), None)
        return found


def merge_extents(extents: list[Extent], end: int) -> list[tuple[int, int, bool]]:
    """Return (offset, length, is_unwritten) of `extents` cut at `end`, neighbours joined.

    What is left does not depend on where the content lies, so maps of two volumes compare.
    """
    merged: list[tuple[int, int, bool]] = []
    for extent in extents:
        stop = min(extent.offset + extent.length, end)
        if stop <= extent.offset:
            continue
        if merged:
            offset, length, is_unwritten = merged[-1]
            if offset + length == extent.offset and is_unwritten == extent.is_unwritten:
                merged[-1] = (offset, stop - offset, is_unwritten)
                continue
        merged.append((extent.offset, stop - extent.offset, extent.is_unwritten))
    return merged
