# SPDX-License-Identifier: Apache-2.0
"""The nodes of a volume that our own drivers read, compared with the previous data set.

An object is taken over unread when its source number, size and times are the same, and its
change time is older than the previous run.  NTFS moves the change time with every change of any
stream.  FAT has no change time and counts in steps of two seconds of an unknown zone: there all of
the directory entry must agree, the first cluster too, recent files are read again, and a small
volume is always read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from backup.agent.errors import NotRecoverableError, Problem
from backup.agent.exclusions import IsExcluded
from backup.agent.local_set import KINDS, SECOND_NS, LocalSet, TreeScan
from backup.agent.special_files import BLANK_FILE, PLACED_FILE, Snapshots, SpecialFiles
from backup.objects.content import DESCRIPTOR_XATTR
from backup.objects.model import (
    MarkerObject,
    NodeObject,
    Plain,
    Region,
    StreamContent,
    VolumeObject,
)
from backup.shared.text import name_text
from fsdrivers import driver_of
from fsdrivers.errors import DeviceError, FilesystemError, UnsupportedError
from fsdrivers.losses import DAMAGE, Loss, OnDamage, UncountedError
from fsdrivers.volume import (
    STREAM_COMPRESSED,
    Entry,
    Kind,
    Node,
    Volume,
    Walk,
    copy_attributes,
    has_same_attributes,
)

RACY_WITHOUT_ZONE_NS = 15 * 3600 * SECOND_NS
# Bytes in use of a volume that is read again always if it has no change times: what starts a
# machine is there, and reading it takes a moment.
ALWAYS_READ_SIZE = 512 << 20

_WALKED_AT_ONCE = 256  # names between two looks at the clock


class VolumeScan:
    """The walk over a volume that our own drivers read.

    Args:
        local: where the nodes go.
        volume: opened, and the one that `reader` reads.
        obj: what describes it, already in the local set.
        reader: index of the reader of the contents.
        is_excluded: tells which absolute paths to leave out.
        prefix: path of the root, without a slash at its end.
    """

    def __init__(
        self,
        local: LocalSet,
        volume: Volume,
        obj: VolumeObject,
        reader: int,
        is_excluded: IsExcluded | None = None,
        prefix: bytes = b"",
    ) -> None:
        driver = driver_of(volume.type)
        self._local = local
        self._volume = volume
        self._object = obj
        self._scan = TreeScan(local, obj, reader)
        self._is_excluded = is_excluded
        self._prefix = prefix
        self._ignores_case = driver.names.ignores_case
        self._special = SpecialFiles(driver)
        self._snapshots = Snapshots.on(driver)
        self._markers: list[tuple[int, str, dict[str, Plain]]] = []

    def run(self, walk: Walk) -> None:
        """Add every node that `walk` yields: the volume's own, or what `walk_ahead` returned."""
        local, obj = self._local, self._object
        try:
            self._add_all(walk(self._note_damage))
        except (FilesystemError, DeviceError) as error:
            place = f"{obj.type} volume {obj.uuid or obj.partition}"
            if isinstance(error, UnsupportedError):
                problem = Problem(place, f"it holds {error.feature}")
                raise NotRecoverableError([problem]) from error
            local.note_loss(f"{place}: {error}")
        if self._snapshots is not None and self._snapshots.count:
            local.notes.append(
                f"{obj.type} volume {obj.uuid}: {self._snapshots.count} files of shadow copies are "
                "left out"
            )
        for target, name, data in self._markers:
            local.add(MarkerObject(local.next_number(), obj.number, name, target, data))

    def _add_all(self, names: Iterator[Entry]) -> None:
        """Add the nodes.  Measured: 8 us a name; what is asked of each is looked up once."""
        local, scan = self._local, self._scan
        snapshots, is_excluded = self._snapshots, self._is_excluded
        seen, special_names, ignores_case = scan.seen, self._special.names, self._ignores_case
        paths: dict[int, bytes] = {}  # of directories by object number, if anyone asks
        directory, file = Kind.DIRECTORY, Kind.FILE
        root = 0  # object number of the root directory
        for entry in names:
            node, name = entry.node, entry.name
            parent = seen.get(entry.parent, 0) if name else 0
            if not parent and name:
                continue  # below a directory that is left out
            if is_excluded is not None:
                path = paths[parent] + b"/" + name if name else self._prefix
                if path and is_excluded(path):
                    continue
            if snapshots is not None and snapshots.leaves_out(entry, is_in_root=parent == root):
                continue
            first = seen.get(node.number)
            if first is not None:
                scan.add_link(first, parent, name, node.number, entry)
                continue
            special = ""
            key = name.lower() if ignores_case else name
            if key in special_names and node.kind is file and node.size:
                special = self._special.marker_of(key, is_in_root=parent == root)
            number = _add_entry(local, scan, entry, parent, is_blank=special == BLANK_FILE)
            if not name:
                root = number
            elif special:
                self._mark(number, special, node)
            if is_excluded is not None and node.kind == directory:
                paths[number] = path
            if node.links > 1 or node.kind == directory:
                seen[node.number] = number

    def _mark(self, number: int, name: str, node: Node) -> None:
        """Note the marker of a file: of a placed one with where it is, in bytes."""
        data: dict[str, Plain] = {}
        if name == PLACED_FILE:
            try:
                extents = self._volume.extents(node)
            except DAMAGE:
                return  # its content cannot be read either, which is told then
            data["extents"] = [[part.position, part.length] for part in extents]
        self._markers.append((number, name, data))

    def _note_damage(self, loss: Loss) -> None:
        """Say what is lost, unless it is in a directory that is left out."""
        number = self._scan.seen.get(loss.directory, 0)
        if not number:
            return
        place = self._local.path_of(number - 1)
        if loss.name:
            place = f"{place.rstrip('/')}/{name_text(loss.name)}"
        elif not loss.is_kept and not isinstance(loss.error, UncountedError):
            place += ": something in it is lost"
        what = "something of it is lost" if loss.is_kept else "left out" if loss.name else ""
        self._local.note_loss(": ".join(filter(None, (place, what, str(loss.error)))), loss.count)


def walk_ahead(volume: Volume, is_waiting: Callable[[], bool]) -> Walk:
    """Walk a volume for as long as somebody waits; return what walks all of it.

    What damage the walk meets is told and raised where it was met.
    """
    found: list[Entry | Loss] = []
    errors: list[FilesystemError | DeviceError] = []
    tell: list[OnDamage] = [found.append]
    names = volume.walk(lambda loss: tell[0](loss))
    try:
        for count, entry in enumerate(names, 1):
            found.append(entry)
            if not count % _WALKED_AT_ONCE and not is_waiting():
                break
    except (FilesystemError, DeviceError) as error:
        errors.append(error)

    def walk(on_damage: OnDamage) -> Iterator[Entry]:
        tell[0] = on_damage
        found.reverse()
        while found:
            item = found.pop()
            if isinstance(item, Entry):
                yield item
            else:
                on_damage(item)
        if errors:
            raise errors[0]
        yield from names

    return walk


def _add_entry(
    local: LocalSet, scan: TreeScan, entry: Entry, parent: int, *, is_blank: bool = False
) -> int:
    """Add a node under its first name; return its object number.

    A blank file has its size, and no content.
    """
    node = entry.node
    source = node.number
    xattrs = node.xattrs
    own: tuple[tuple[bytes, bytes], ...] = ()
    if scan.has_streams and xattrs:
        security, own = _split_security(local, xattrs)
    else:
        security = local.security_number(xattrs) if xattrs else 0
    number = len(local.objects) + 1
    old = scan.previous.nodes.pop(source, None)
    if old is not None and _is_unread(scan, old, entry) and (not is_blank or not old.pieces):
        same = (
            has_same_attributes(old, node)
            and old.short_name == entry.short_name
            and old.name_flags == entry.name_flags
            and old.name_times == entry.name_times
            and node.xattrs == _xattrs_of(local, old)
        )
        old.number, old.parent, old.volume = number, parent, scan.volume
        old.name, old.security, old.xattrs = entry.name, security, own
        local.objects.append(old)
        if same and old.accessed_ns == node.accessed_ns:
            local.unchanged += 1
            return number
        local.unchanged += same
        local.changed += not same
        copy_attributes(old, node)
        old.short_name, old.name_flags = entry.short_name, entry.name_flags
        old.name_times = entry.name_times
        local.sign(old)
        return number
    obj = scan.object_of(node, parent, entry.name, security)
    obj.short_name, obj.name_flags = entry.short_name, entry.name_flags
    if scan.has_streams:
        obj.name_times, obj.xattrs = entry.name_times, own
        if is_blank:
            is_packed = any(s.flags & STREAM_COMPRESSED for s in node.streams if not s.name)
            obj.regions = () if is_packed else (Region(0, node.size, True),)
    if node.streams:
        obj.streams = tuple(
            [StreamContent(name, size, (), flags, pad) for name, size, flags, pad in node.streams]
        )
    scan.add_new(obj, old, node, has_content=not is_blank)
    return number


def _split_security(
    local: LocalSet, xattrs: tuple[tuple[bytes, bytes], ...]
) -> tuple[int, tuple[tuple[bytes, bytes], ...]]:
    """Return the number of the security object of a node on NTFS, and its other attributes."""
    for place, (name, value) in enumerate(xattrs):
        if name == DESCRIPTOR_XATTR:
            return local.descriptor_number(value), xattrs[:place] + xattrs[place + 1 :]
    return 0, xattrs


def _is_unread(scan: TreeScan, old: NodeObject, entry: Entry) -> bool:
    """Return whether the content is that of `old`, by all that is known without reading it."""
    node = entry.node
    if old.kind != KINDS[node.kind] or old.number in scan.stale:
        return False
    if old.size != node.size or old.modified_ns != node.modified_ns:
        return False
    if (old.streams or node.streams) and not _has_same_streams(old, node):
        return False
    changed_ns = node.changed_ns
    if changed_ns is not None:
        return scan.is_settled(old, changed_ns)
    previous = scan.local.previous
    return node.kind == Kind.DIRECTORY or (
        scan.used_size > ALWAYS_READ_SIZE
        and old.name == entry.name
        and old.short_name == entry.short_name
        and old.name_flags == entry.name_flags
        and old.flags == node.flags
        and old.created_ns == node.created_ns
        and old.accessed_ns == node.accessed_ns
        and old.source_unit == node.first_unit
        and previous.directories.get(old.parent) == entry.parent
        and node.modified_ns < previous.started_ns - RACY_WITHOUT_ZONE_NS
    )


def _has_same_streams(old: NodeObject, node: Node) -> bool:
    """Return whether names, sizes and flags of the streams are as they were."""
    return [(name, size, flags, pad) for name, size, _, flags, pad, _ in old.streams] == list(
        node.streams
    )


def _xattrs_of(local: LocalSet, old: NodeObject) -> tuple[tuple[bytes, bytes], ...]:
    """Return the attributes that a node had, those of its security object first."""
    shared = local.previous.xattrs[old.security] if old.security else ()
    return shared + old.xattrs if old.xattrs else shared
