# SPDX-License-Identifier: Apache-2.0
"""Which names lead to which objects of a mounted volume, and what becomes of those without one."""

from __future__ import annotations

from backup.agent.live.scan import WRITE_AHEAD_LOG, LiveScan
from backup.objects.model import NodeObject, ObjectKind


class Names:
    """The names of one volume's objects, as they are known now; the objects are changed with it."""

    def __init__(self, scan: LiveScan) -> None:
        """Only store: `start` looks at what was walked."""
        self._scan = scan
        self._local = scan.local
        self._reader = scan.reader
        self._volume = scan.scan.volume
        self.indexed = 0  # objects of the local set that are in what follows
        self.children: dict[int, dict[bytes, NodeObject]] = {}  # by number of the directory
        self._links: dict[int, list[NodeObject]] = {}  # further names by number of the object
        self.by_source: dict[int, NodeObject] = {}
        self.detached: dict[int, NodeObject] = {}  # objects without a name, by number
        self.again: set[int] = set()  # numbers of objects to be read again
        self._known: set[int] = set()  # numbers of directories that were listed, or are to be
        self.found: list[int] = []  # of those that are to be listed
        self._twins: list[tuple[NodeObject, NodeObject]] = []  # directories walked in two places

    def is_above(self, obj: NodeObject, below: NodeObject) -> bool:
        """Return whether a directory is another or above it, as far as is known."""
        node = below
        while node.number != obj.number:
            if not node.parent:
                return False
            parent = self._local.lookup(node.parent)
            assert isinstance(parent, NodeObject), "parents are nodes"
            node = parent
        return True

    def move(self, obj: NodeObject, directory: NodeObject, name: bytes) -> None:
        """Give an object another name."""
        self._forget_name(obj)
        self.detached.pop(obj.number, None)
        obj.parent, obj.name = directory.number, name
        if name.endswith(WRITE_AHEAD_LOG):
            self._scan.logs.append(obj.number)
        self.children.setdefault(directory.number, {})[name] = obj
        self._local.is_ordered = False
        self._reader.forget_paths()

    def _forget_name(self, obj: NodeObject) -> None:
        """Take an object out of the directory it is in, if it is in one."""
        names = self.children.get(obj.parent, {})
        if names.get(obj.name) is obj:
            del names[obj.name]

    def detach(self, obj: NodeObject) -> None:
        """Take the name of an object away, in favour of a further name if it has one."""
        if obj.kind is ObjectKind.HARD_LINK:
            self._drop_link(obj)
            return
        links = self._links.get(obj.number)
        if links:
            self._rename_to(obj, links[-1])
        else:
            self._forget_name(obj)
            self.detached[obj.number] = obj

    def _drop_link(self, link: NodeObject) -> None:
        """Leave out a further name."""
        self._forget_name(link)
        links = self._links[link.target_number]
        self._links[link.target_number] = [other for other in links if other is not link]
        self._local.drop(link)

    def _rename_to(self, obj: NodeObject, link: NodeObject) -> None:
        """Let a further name of an object be its own."""
        self._drop_link(link)
        self._forget_name(obj)
        obj.parent, obj.name = link.parent, link.name
        self.children.setdefault(obj.parent, {})[obj.name] = obj
        self._local.is_ordered = False
        self._reader.forget_paths()
        self.again.add(obj.number)

    def drop(self, obj: NodeObject, *, everywhere: bool = False) -> None:
        """Leave out an object with all that is below it.

        What has a further name elsewhere stays under that, unless it is to go `everywhere`.
        """
        waiting, gone = [obj], []
        while waiting:
            item = waiting.pop()
            gone.append(item)
            waiting += self.children.get(item.number, {}).values()
        numbers = {item.number for item in gone}
        for item in gone:
            if item.number in self._local.lost:
                continue
            if item.kind is ObjectKind.HARD_LINK:
                self._drop_link(item)
                continue
            links = self._links.get(item.number, [])
            elsewhere = [link for link in links if link.number not in numbers]
            if elsewhere and not everywhere:
                self._rename_to(item, elsewhere[0])
                continue
            for link in links:
                self._drop_link(link)
            self._forget_name(item)
            self.detached.pop(item.number, None)
            self.again.discard(item.number)
            if self.by_source.get(item.source_number) is item:
                del self.by_source[item.source_number]
            self._local.drop(item)

    def start(self) -> None:
        """Note all nodes of the volume."""
        self.children, self._links, self.by_source = {}, {}, {}
        self._known, self.found, self.indexed = set(self._scan.directories), [], 0
        self.grow()
        for first, second in self._twins:
            self._merge(first, second)
        self._twins = []

    def grow(self) -> None:
        """Note the nodes that have been added since this was last called."""
        objects, lost = self._local.objects, self._local.lost
        for place in range(self.indexed, len(objects)):
            obj = objects[place]
            if not isinstance(obj, NodeObject) or obj.volume != self._volume:
                continue
            if obj.number in lost:
                continue
            if obj.parent and obj.number not in self.detached:
                self.children.setdefault(obj.parent, {})[obj.name] = obj
            if obj.kind is ObjectKind.HARD_LINK:
                self._links.setdefault(obj.target_number, []).append(obj)
            elif obj.source_number:
                known = self.by_source.setdefault(obj.source_number, obj)
                if known is not obj:
                    if obj.kind is known.kind is ObjectKind.DIRECTORY:
                        self._twins.append((known, obj))
                    self.by_source[obj.source_number] = obj
                if obj.kind is ObjectKind.DIRECTORY and obj.number not in self._known:
                    self._known.add(obj.number)
                    if self._scan.left_out and self._scan.is_left_out(obj.number):
                        continue
                    self._scan.directories.append(obj.number)
                    self.found.append(obj.number)
        self.indexed = len(objects)

    def _merge(self, first: NodeObject, second: NodeObject) -> None:
        """Make one of two objects for a directory that was walked in two places, as it moved.

        What is in it may have been found in either.  Twins below it are merged in their turn.
        """
        mine = self.children.setdefault(second.number, {})
        for name, child in self.children.pop(first.number, {}).items():
            other = mine.get(name)
            if other is None:
                child.parent = second.number
                mine[name] = child
                self._local.is_ordered = False
            elif child.kind is ObjectKind.HARD_LINK:
                self._drop_link(child)
            elif child.kind is other.kind is ObjectKind.DIRECTORY and (
                child.source_number == other.source_number
            ):
                continue
            else:
                self.detached[child.number] = child
        self._forget_name(first)
        self.detached.pop(first.number, None)
        self._local.drop(first)
        self._scan.doubtful.update((first.parent, second.parent, second.number))
        self._reader.forget_paths()

    def find(self, directory: int, name: bytes) -> list[NodeObject]:
        """Return the file of that name in a directory, if there is one."""
        if not self.indexed:
            self.start()
        obj = self.children.get(directory, {}).get(name)
        return [obj] if obj is not None and obj.kind is ObjectKind.FILE else []
