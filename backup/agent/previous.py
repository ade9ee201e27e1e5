# SPDX-License-Identifier: Apache-2.0
"""The previous data set of a machine, in the form that a new run compares with.

Nodes are found by the number they had at the source, so a file that was merely renamed is known
again.  The objects are given away when they are matched: the new set goes on with the same
instances, so that memory holds one of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from backup.agent.machine import IDENTITY
from backup.objects.content import iter_pieces, shared_xattrs
from backup.objects.data_keys import DataKey
from backup.objects.identification import identification
from backup.objects.model import (
    BackupObject,
    DiskObject,
    LabelObject,
    NodeObject,
    ObjectKind,
    Piece,
    SecurityObject,
    VolumeObject,
)
from backup.objects.pack import PackInfo

LIVE_SHARE = 0.5  # of a pack; what is left of thinner ones is sent again
PACK_OVERHEAD, PIECE_OVERHEAD = 64, 40  # bytes of a pack beside its pieces
SMALL_SIZE, SMALL_COUNT = 256 << 10, 100  # bytes, packs

VolumeKey = tuple[str, str, str, int]  # place, type, UUID, partition number


@dataclass(slots=True)
class PreviousVolume:
    """The nodes of one volume that nothing has matched yet."""

    minimum_size: int = 0  # bytes; 0 when unknown
    nodes: dict[int, NodeObject] = field(default_factory=dict)  # by source number
    links: dict[tuple[int, bytes], NodeObject] = field(default_factory=dict)  # source, name


@dataclass(slots=True)
class PreviousSet:
    """What the last committed data set holds.

    `directories` gives the source number of a directory by its old object number, `xattrs` the
    attributes of a security object by its old number; `signatures` those of everything that is
    not a node, by identification.
    """

    id: str = ""
    key: DataKey | None = None  # what it is sealed with
    started_ns: int = 0  # when its scan began: what changed since may look unchanged
    system: Mapping[str, object] = field(default_factory=dict)  # what ran on the machine
    packs: list[PackInfo] = field(default_factory=list)
    volumes: dict[VolumeKey, PreviousVolume] = field(default_factory=dict)
    directories: dict[int, int] = field(default_factory=dict)
    xattrs: dict[int, tuple[tuple[bytes, bytes], ...]] = field(default_factory=dict)
    signatures: dict[bytes, bytes] = field(default_factory=dict)
    pieces: dict[bytes, Piece] = field(default_factory=dict)  # by content id, one of each
    stale: set[int] = field(default_factory=set)  # old numbers of nodes that must be read again
    node_count: int = 0
    taken: set[VolumeKey] = field(default_factory=set)  # given to a volume of the new set

    def take_volume(self, volume: VolumeObject, disk: DiskObject) -> PreviousVolume:
        """Return the nodes of the same volume in the same place, to whoever asks first."""
        key = volume_key(volume, disk)
        found = self.volumes.get(key)
        if found is None or key in self.taken:
            return PreviousVolume()
        self.taken.add(key)
        return found

    def iter_left(self) -> Iterable[NodeObject]:
        """Yield the nodes that nothing matched."""
        for volume in self.volumes.values():
            yield from volume.nodes.values()
            yield from volume.links.values()


def no_previous() -> PreviousSet:
    """Return what the first backup of a machine compares with."""
    return PreviousSet()


def volume_key(volume: VolumeObject, disk: DiskObject) -> VolumeKey:
    """Return what tells a volume from the others of its machine, across runs.

    Its own identity is not enough, as of two that are kept alike one may be a copy of the other;
    so its place counts too.  A disk without a serial number is known by its name.
    """
    place = f"{disk.model}/{disk.serial}" if disk.serial else disk.name
    return (place, volume.type, volume.uuid, volume.partition)


def note_another_machine(
    machine: str,
    previous: PreviousSet,
    system: Mapping[str, object],
    volumes: Iterable[VolumeObject],
) -> list[str]:
    """Return a note if a data set is of another computer than the one before it, else nothing.

    Installations are told by their identity; where one has none, or the previous data set does not
    say it, by their volumes, of which none is the same.

    Args:
        machine: the name that both have.
        previous: the data set before.
        system: what is known of the one that is backed up now.
        volumes: its volumes.
    """
    before, now = previous.system.get(IDENTITY), system.get(IDENTITY)
    if before and now:
        is_other = before != now
    else:
        known = {uuid for _, _, uuid, _ in previous.volumes if uuid}
        found = {volume.uuid for volume in volumes if volume.uuid}
        is_other = bool(known and found) and known.isdisjoint(found)
    if not is_other:
        return []
    return [
        f"the data set before this one is of another computer, or of another installation: if two "
        f"computers back up under the name {machine}, give each its own with --machine"
    ]


def index_objects(
    objects: Iterable[BackupObject],
    *,
    set_id: str = "",
    key: DataKey | None = None,
    started_ns: int = 0,
    packs: Iterable[PackInfo] = (),
) -> PreviousSet:
    """Sort the objects of a table for comparing.  Measured: 0.6 us an object beside decoding."""
    previous = PreviousSet(id=set_id, key=key, started_ns=started_ns, packs=list(packs))
    others: list[BackupObject] = []
    by_number: dict[int, BackupObject] = {}
    by_volume: dict[int, PreviousVolume] = {}
    pieces, directories = previous.pieces, previous.directories
    directory, hard_link = ObjectKind.DIRECTORY, ObjectKind.HARD_LINK
    for obj in objects:
        by_number[obj.number] = obj
        if type(obj) is NodeObject:
            kind = obj.kind
            if kind == hard_link:
                by_volume[obj.volume].links[obj.source_number, obj.name] = obj
                continue
            by_volume[obj.volume].nodes[obj.source_number] = obj
            if kind == directory:
                directories[obj.number] = obj.source_number
            for piece in obj.pieces:
                pieces[piece.content_id] = piece
            if obj.streams:
                for piece in iter_pieces(obj):
                    pieces[piece.content_id] = piece
            continue
        others.append(obj)
        if isinstance(obj, VolumeObject):
            disk = by_number[obj.disk]
            assert isinstance(disk, DiskObject), "volumes are on disks"
            place, kept = volume_key(obj, disk), PreviousVolume(obj.minimum_size)
            if place in previous.volumes:  # two disks with one serial number
                place = (f"{place[0]}/{obj.number}", *place[1:])
            previous.volumes[place] = by_volume[obj.number] = kept
    _index_others(previous, others, by_number)
    previous.node_count = len(by_number) - len(others)
    return previous


def thin_packs(previous: PreviousSet) -> set[int]:
    """Return the indexes of packs that are not worth keeping.

    Those are packs of which the data set uses less than `LIVE_SHARE`, and the small ones that
    many runs with few changes have left, once there are more than `SMALL_COUNT` of them.
    """
    live = [PACK_OVERHEAD] * len(previous.packs)
    for piece in previous.pieces.values():
        live[piece.pack] += piece.sealed_length + PIECE_OVERHEAD
    small = {index for index, pack in enumerate(previous.packs) if pack.size < SMALL_SIZE}
    thin = {
        index
        for index, (size, pack) in enumerate(zip(live, previous.packs, strict=True))
        if size < pack.size * LIVE_SHARE
    }
    return thin | small if len(small) > SMALL_COUNT else thin


def give_up_packs(previous: PreviousSet, packs: set[int]) -> None:
    """Have everything that lies in these packs read and sent again."""
    if not packs:
        return
    previous.pieces = {
        content: piece for content, piece in previous.pieces.items() if piece.pack not in packs
    }
    for volume in previous.volumes.values():
        for node in volume.nodes.values():
            if any(piece.pack in packs for piece in iter_pieces(node)):
                previous.stale.add(node.number)


def _index_others(
    previous: PreviousSet, others: list[BackupObject], by_number: Mapping[int, BackupObject]
) -> None:
    """Index everything that is not a node, while the old numbers still stand."""
    for obj in others:
        previous.signatures[identification(obj, by_number.__getitem__)] = obj.signature
        if isinstance(obj, SecurityObject):
            previous.xattrs[obj.number] = shared_xattrs(obj)
        elif not isinstance(obj, LabelObject):
            for piece in obj.pieces:
                previous.pieces[piece.content_id] = piece
