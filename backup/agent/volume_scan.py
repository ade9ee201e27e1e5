# SPDX-License-Identifier: Apache-2.0
"""The nodes of a volume that our own drivers read, compared with the previous data set.

An object is taken over unread when its source number, size and times are the same, and its
change time is older than the previous run.  FAT has no change time and counts in steps of two
seconds of an unknown zone: there name and parent must agree too, and recent files are read again.
NTFS moves the change time with every change of any stream.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Protocol, cast

from backup.agent.errors import NotRecoverableError, Problem
from backup.agent.exclusions import IsExcluded
from backup.agent.local_set import KINDS, LocalSet, TreeScan
from backup.objects.content import DESCRIPTOR_XATTR
from backup.objects.model import (
    MarkerObject,
    NodeObject,
    Plain,
    Region,
    StreamContent,
    VolumeObject,
)
from fsdrivers import NTFS_TYPES
from fsdrivers.errors import DeviceError, FilesystemError, UnsupportedError
from fsdrivers.volume import (
    STREAM_COMPRESSED,
    Entry,
    Kind,
    Node,
    Volume,
    copy_attributes,
    has_same_attributes,
)

RACY_WITHOUT_ZONE_NS = 15 * 3600 * 1_000_000_000

# On FAT: files that are zeros by design, here or in the root directory only.
# Source: EP1168174A1 [0073].
SWAP_FILES = (b"win386.swp", b"swapper.dat")
ROOT_SWAP_FILES = (b"386spart.par", b"pagefile.sys", b"hiberfil.sys", *SWAP_FILES)
# On every volume: files that something finds by their sectors.  Source: EP1168174A1 [0074].
PLACED_FILES = frozenset((b"ldlinux.sys", b"extlinux.sys"))
BLANK_FILE, PLACED_FILE = "blank-file", "placed-file"  # names of their markers

# On NTFS: files of the root directory that are zeros by design, and what is left out of the
# directory where Windows keeps the changes that its shadow copies need: of a restored volume
# they would be changes of something else.  Source: [libvshadow] "Store".
NTFS_BLANK_FILES = (b"pagefile.sys", b"hiberfil.sys", b"swapfile.sys")
SNAPSHOT_DIRECTORY = b"system volume information"
_GUID = rb"\{[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\}"
_WALKED_AT_ONCE = 256  # names between two looks at the clock
_SNAPSHOT = re.compile(rb"(%b)?\{3808876b-c176-4e48-b7ae-04046e6cc752\}" % _GUID, re.IGNORECASE)


class TolerantVolume(Protocol):
    """A volume that can go on behind what is damaged."""

    def walk(
        self, on_damage: Callable[[int, FilesystemError | DeviceError], None]
    ) -> Iterator[Entry]:
        """Yield what can be read; `on_damage` gets a directory's number and what is wrong there."""
        ...


def scan_volume(
    local: LocalSet,
    volume: Volume,
    obj: VolumeObject,
    reader: int,
    is_excluded: IsExcluded | None = None,
    prefix: bytes = b"",
    names: Iterator[Entry] | None = None,
) -> None:
    """Add every node of `volume`, which `obj` describes, to the local set.

    Args:
        local: where they go.
        volume: opened, and the one that `reader` reads.
        obj: already in the local set.
        reader: index of the reader of the contents.
        is_excluded: tells which absolute paths to leave out.
        prefix: path of the root, without a slash at its end.
        names: what `walk_ahead` returned; None to walk the volume now.
    """
    scan = TreeScan(local, obj, reader)
    seen = scan.seen
    paths: dict[int, bytes] = {}  # of directories by object number, if anyone asks
    directory = Kind.DIRECTORY
    root = 0  # object number of the root directory
    is_ntfs = volume.type in NTFS_TYPES
    has_special = is_ntfs or volume.type.startswith("fat")
    snapshots = _Snapshots() if is_ntfs else None
    markers: list[tuple[int, str, dict[str, Plain]]] = []

    def note_damage(directory: int, error: FilesystemError | DeviceError) -> None:
        if number := seen.get(directory, 0):
            local.warnings.append(f"{local.path_of(number - 1)}: something in it is lost: {error}")
            local.missing += 1

    try:
        if names is None:
            walk_on = cast(TolerantVolume, volume).walk
            names = walk_on(note_damage) if is_ntfs else volume.walk()
        for entry in names:
            node = entry.node
            is_root = not entry.name
            parent = 0 if is_root else seen.get(entry.parent, 0)
            if not parent and not is_root:
                continue  # below a directory that is left out
            if is_excluded is not None:
                path = prefix if is_root else paths[parent] + b"/" + entry.name
                if path and is_excluded(path):
                    continue
            if snapshots is not None and snapshots.leaves_out(entry, is_in_root=parent == root):
                continue
            first = seen.get(node.number)
            if first is not None:
                scan.add_link(first, parent, entry.name, node.number, entry if is_ntfs else None)
                continue
            special = ""
            if has_special:
                special = _special(entry, parent == root, is_ntfs)
            elif entry.name in PLACED_FILES and node.kind is Kind.FILE:
                special = PLACED_FILE
            number = _add_entry(local, scan, entry, parent, is_blank=special == BLANK_FILE)
            if is_root:
                root = number
            elif special:
                markers.append((number, special, _marker_data(volume, node, special)))
            if is_excluded is not None and node.kind == directory:
                paths[number] = path
            if node.links > 1 or node.kind == directory:
                seen[node.number] = number
    except (FilesystemError, DeviceError) as error:
        place = f"{obj.type} volume {obj.uuid or obj.partition}"
        if isinstance(error, UnsupportedError):
            raise NotRecoverableError([Problem(place, f"it holds {error.feature}")]) from error
        local.warnings.append(f"{place}: {error}")
        local.missing += 1
    if snapshots is not None and snapshots.count:
        local.notes.append(
            f"{obj.type} volume {obj.uuid}: {snapshots.count} files of shadow copies are left out"
        )
    for target, name, data in markers:
        marker = MarkerObject(local.next_number(), obj.number, name, target, data)
        local.add(marker)


def walk_ahead(volume: Volume, is_waiting: Callable[[], bool]) -> Iterator[Entry]:
    """Walk a volume for as long as somebody waits; return all names, those to come included.

    What damage the walk meets is raised where it was met.
    """
    found: list[Entry] = []
    errors: list[FilesystemError | DeviceError] = []
    names = volume.walk()
    try:
        for entry in names:
            found.append(entry)
            if not len(found) % _WALKED_AT_ONCE and not is_waiting():
                break
    except (FilesystemError, DeviceError) as error:
        errors.append(error)

    def iterate() -> Iterator[Entry]:
        found.reverse()
        while found:
            yield found.pop()
        if errors:
            raise errors[0]
        yield from names

    return iterate()


class _Snapshots:
    """Knows the files that hold the shadow copies of one volume."""

    def __init__(self) -> None:
        self.count = 0  # of those left out
        self._directory = 0  # number of the directory that has them

    def leaves_out(self, entry: Entry, *, is_in_root: bool) -> bool:
        """Tell whether an entry is such a file, and count it; sees every entry once."""
        if is_in_root and entry.name.lower() == SNAPSHOT_DIRECTORY:
            self._directory = entry.node.number
        elif entry.parent == self._directory and _SNAPSHOT.fullmatch(entry.name):
            self.count += 1
            return True
        return False


def _special(entry: Entry, is_in_root: bool, is_ntfs: bool) -> str:
    """Return the name of the marker that a file on FAT or NTFS gets, empty for none."""
    if entry.node.kind is not Kind.FILE or not entry.node.size:
        return ""
    name = entry.name.lower()
    blank: tuple[bytes, ...]
    if is_ntfs:
        blank = NTFS_BLANK_FILES if is_in_root else ()
    else:
        blank = ROOT_SWAP_FILES if is_in_root else SWAP_FILES
    if name in blank:
        return BLANK_FILE
    return PLACED_FILE if name in PLACED_FILES else ""


def _marker_data(volume: Volume, node: Node, name: str) -> dict[str, Plain]:
    """Return what a marker says of its file: of a placed one, where it is, in bytes."""
    if name != PLACED_FILE:
        return {}
    extents: list[Plain] = [[part.position, part.length] for part in volume.extents(node)]
    return {"extents": extents}


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
        return old.changed_ns == changed_ns < scan.settled_before_ns
    previous = scan.local.previous
    return node.kind == Kind.DIRECTORY or (
        old.name == entry.name
        and old.created_ns == node.created_ns
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
