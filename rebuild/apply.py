# SPDX-License-Identifier: Apache-2.0
"""Carry out a restore plan: the one place of the engine that writes to disks.

Write order on each disk, and why a power cut leaves either nothing or a whole machine:

1. The old partition table and the signatures of old volumes are wiped: from here on nothing
   on the disk pretends to be usable.
2. Content, in the order of the packs, straight to the places the layouts gave it.
3. Metadata of each volume, its superblock or boot sector last; then a flush.
4. Boot code, the gap sectors and the new partition table; then a flush.  Only now can
   anything on the disk be found.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import cast

from backup.objects.medium import Medium
from backup.objects.model import DiskObject, NodeObject
from fsdrivers import EXT_TYPES, STREAM_TYPES, TYPES, driver_of
from fsdrivers.device import Device, Window
from fsdrivers.partitions import PartitionTable, plan_table
from fsdrivers.partitions.chs import Geometry, bios_geometry
from fsdrivers.volume import Entry, Layout, StreamLayout
from rebuild.errors import RebuildError
from rebuild.fixups.dos import layout_options, new_geometry
from rebuild.fixups.grub import (
    CORE_SECTOR_SIZE,
    Move,
    core_sector_of,
    moved_boot_code,
    moved_core,
)
from rebuild.fixups.linux import add_fallback_loader
from rebuild.fixups.syslinux import follow_sectors
from rebuild.fixups.windows9x import write_blank_files
from rebuild.fixups.windowsnt import add_fallback_loader as add_windows_loader
from rebuild.fixups.windowsnt import move_places, moves_of
from rebuild.machine import Machine, VolumeTree, printable_path
from rebuild.plan import BOOT_CODE_SIZE, ESP_TYPE, DiskPlan, PartitionPlan, RestorePlan
from rebuild.progress import Part, Progress
from rebuild.report import Failure, RestoreReport, VolumeResult
from rebuild.streaming.ahead import Ahead
from rebuild.streaming.content import PieceTarget, stream_pieces
from rebuild.streaming.opener import PieceOpener
from rebuild.streaming.targets import ResidentWriter, content_targets, stream_targets
from rebuild.streaming.writer import CoalescingWriter

WIPED_AT_EACH_END = 1 << 20  # bytes; holds every table and signature that probing looks at


@dataclass(slots=True)
class _VolumeWork:
    """A volume on its way: where it goes, its layout, its writer."""

    tree: VolumeTree
    part: PartitionPlan
    window: Device
    layout: Layout | None  # None for a raw volume
    writer: CoalescingWriter
    resident: ResidentWriter | None = None  # for content inside the metadata


@dataclass(slots=True)
class _DiskWork:
    plan: DiskPlan
    device: Device
    volumes: list[_VolumeWork] = field(default_factory=list)
    geometry: Geometry | None = None  # of the target's BIOS, where DOS has to be told a new one


def apply_plan(
    machine: Machine,
    plan: RestorePlan,
    devices: Mapping[int, Device],
    medium: Medium,
    opener: PieceOpener,
    *,
    is_blank: bool = False,
    processes: int = 1,
    progress: Callable[[str], None] = lambda text: None,
) -> RestoreReport:
    """Write the machine to the target disks.

    Args:
        machine: the loaded data set the plan was made from.
        plan: what to write where.
        devices: the opened, writable target by number of the disk object.
        medium: where the packs are read from.
        opener: opens sealed pieces.
        is_blank: the targets are new images that read as zeros, so nothing need be wiped.
        processes: how many share the work, see `stream_pieces`.
        progress: takes one line of text now and then.

    A damaged object never stops the rest; it is named in the report.

    Raises:
        DeviceError: a target failed.
        FilesystemError: a layout cannot be made; nothing has been written then.
    """
    started = time.monotonic()
    shown = Progress(progress)
    report = RestoreReport(object_count=plan.object_count)
    works = [_DiskWork(disk, devices[disk.disk.number]) for disk in plan.disks]
    shown.begin("Planning the layout")
    with _ahead(machine, medium, opener, processes) as ahead:
        for work in works:
            _plan_volumes(machine, work, is_blank, report)
    if not is_blank:
        shown.begin("Wiping old signatures")
        for work in works:
            _wipe(work.device)
    boot_areas = {work.plan.disk.number: _BootArea(work) for work in works}
    targets, names = _collect_content(works, boot_areas, shown, report)
    failed = stream_pieces(
        targets, medium, opener, shown, names.of, ahead=ahead, processes=processes
    )
    for work in works:
        for volume in work.volumes:
            volume.writer.flush()
    total = sum(target.piece.length for target in targets)
    report.content_size = total - sum(loss.size for loss in failed.values())
    for number, loss in sorted(failed.items()):
        report.failures.append(Failure(names.of(number), loss.reason))
    moves: dict[tuple[bytes, int], int] = {}
    for disk in plan.disks:
        moves |= moves_of(disk.disk, {part.number: part.new_start for part in disk.partitions})
    for work in works:
        for volume in work.volumes:
            shown.begin(f"Writing metadata of {volume.part.title}")
            _write_metadata(volume)
            if volume.layout is not None:
                report.notes += move_places(volume.tree, volume.layout, volume.window, moves)
                starts = {"old_start": volume.part.old_start, "new_start": volume.part.new_start}
                report.notes += follow_sectors(volume.tree, volume.layout, volume.window, **starts)
        shown.begin("Flushing to the disk")
        work.device.flush()
        report.notes += _write_table(work, boot_areas[work.plan.disk.number])
        work.device.flush()
    report.elapsed_s = time.monotonic() - started
    return report


@contextmanager
def _ahead(
    machine: Machine, medium: Medium, opener: PieceOpener, processes: int
) -> Iterator[Ahead | None]:
    """Have another process open content inside, if that may be; it has finished behind."""
    ahead: Ahead | None = None
    if processes > 1:
        with suppress(OSError):
            ahead = Ahead(machine.iter_content(), medium, opener)
    try:
        yield ahead
    finally:
        if ahead is not None:
            ahead.finish()


def _plan_volumes(machine: Machine, work: _DiskWork, is_blank: bool, report: RestoreReport) -> None:
    work.geometry = new_geometry(machine, work.plan.disk, work.device.size)
    for part in work.plan.partitions:
        if not part.volume:
            continue
        tree = machine.trees[part.volume]
        window = Window(work.device, part.new_start, part.new_size)
        kind = tree.volume.type
        layout: Layout | None = None
        block_size = 1
        if kind in TYPES:
            if kind.startswith("fat") and _is_esp(work.plan.disk, part):
                report.notes += add_fallback_loader(tree) or add_windows_loader(tree)
            entries = tree.entries(machine)
            layout = _layout_of(tree, entries, part, work, is_blank)
            block_size = layout.block_size
        elif kind not in ("raw", "empty"):
            raise RebuildError(f"this disc cannot restore a volume of type {kind}")
        volume = _VolumeWork(tree, part, window, layout, CoalescingWriter(window, block_size))
        if kind in STREAM_TYPES:
            volume.resident = ResidentWriter(cast(StreamLayout, layout).resident)
        work.volumes.append(volume)


def _layout_of(
    tree: VolumeTree, entries: list[Entry], part: PartitionPlan, work: _DiskWork, is_blank: bool
) -> Layout:
    driver = driver_of(tree.volume.type)
    sector_size = work.plan.target.sector_size
    options: dict[str, object] = {}
    if tree.volume.type.startswith(("fat", "ntfs")):
        geometry = work.geometry
        if tree.volume.type == "ntfs" and work.device.size != work.plan.disk.size:
            geometry = geometry or bios_geometry(work.device.size)
        options = layout_options(
            tree,
            work.plan.disk,
            start=part.new_start,
            sector_size=sector_size,
            geometry=geometry,
        )
    has_streams = tree.volume.type in STREAM_TYPES
    if has_streams or tree.volume.type in EXT_TYPES:
        options["regions"] = tree.regions()
        options["is_blank"] = is_blank
    if has_streams:
        options["stream_regions"] = tree.stream_regions()
    layout: Layout = driver.plan_volume(
        tree.volume.description,
        size=part.new_size,
        sector_size=sector_size,
        entries=entries,
        order=tree.content_order(),
        **options,
    )
    return layout


def _is_esp(disk: DiskObject, part: PartitionPlan) -> bool:
    if disk.scheme == "none":
        return False
    entry = PartitionTable.from_description(disk.table).entry(part.number)
    return entry is not None and entry.type == ESP_TYPE


def _wipe(device: Device) -> None:
    """Make the disk look blank to every probe, before anything else is written."""
    head = min(WIPED_AT_EACH_END, device.size)
    device.write(0, bytes(head))
    tail = min(WIPED_AT_EACH_END, device.size - head)
    if tail:
        device.write(device.size - tail, bytes(tail))
    device.flush()


class _BootArea:
    """Collects a disk's boot code and gap sectors until the partition table is written."""

    is_shared = False

    def __init__(self, work: _DiskWork) -> None:
        starts = [part.new_start for part in work.plan.partitions if part.new_start]
        self._end = min(starts, default=work.device.size)
        self.parts: dict[int, bytes] = {}

    def write(self, position: int, data: bytes | bytearray | memoryview) -> None:
        """Keep `data`, cut off where the first partition of the new layout begins."""
        if position < self._end:
            self.parts[position] = bytes(data[: self._end - position])

    def flush(self) -> None:
        """Do nothing: the parts are written with the partition table."""


def _collect_content(
    works: list[_DiskWork],
    boot_areas: Mapping[int, _BootArea],
    shown: Progress,
    report: RestoreReport,
) -> tuple[list[PieceTarget], _Names]:
    """Return where every piece of content goes, and what its objects are called."""
    targets: list[PieceTarget] = []
    names = _Names()
    parts: dict[object, Part] = {}
    for work in works:
        disk = work.plan.disk
        area = boot_areas[disk.number]
        names.fixed[disk.number] = f"{disk.name}: boot area"
        first = len(targets)
        targets += [
            PieceTarget(piece, area, disk.number, ((piece.offset, 0, piece.length),))
            for piece in disk.pieces
        ]
        parts[area] = _part_of(f"boot area of {disk.name}", targets, first)
        for volume in work.volumes:
            first = len(targets)
            _collect_volume(volume, targets, names)
            part = parts[volume.writer] = _part_of(volume.part.title, targets, first)
            if volume.resident is not None:
                parts[volume.resident] = part
            count = 1 + len(volume.tree.nodes)
            report.volumes.append(VolumeResult(volume.part.title, count, part.total))
    total = sum(target.piece.length for target in targets)
    shown.begin("Restoring", total, len(targets), parts)
    return targets, names


class _Names:
    """What to call objects in the progress and the report, by their numbers."""

    def __init__(self) -> None:
        self.fixed: dict[int, str] = {}
        self.places: dict[int, str] = {}  # by the volume's number
        self.nodes: dict[int, NodeObject] = {}

    def of(self, number: int) -> str:
        """Return the printable name of an object, empty for one that has none."""
        item = self.nodes.get(number)
        if item is None:
            return self.fixed.get(number, "")
        return f"{self.places[item.volume]}:{printable_path(item, self.nodes)}"


def _collect_volume(volume: _VolumeWork, targets: list[PieceTarget], names: _Names) -> None:
    writer, tree = volume.writer, volume.tree
    if volume.layout is None:
        # Whatever the target held before: what is not among the pieces was zeros.
        volume.window.zero(0, volume.window.size)
        names.fixed[tree.volume.number] = f"partition {volume.part.place}"
        for piece in tree.volume.pieces:
            place = ((piece.offset, 0, piece.length),)
            targets.append(PieceTarget(piece, writer, tree.volume.number, place))
        return
    names.places[tree.volume.number] = volume.part.place
    names.nodes.update({item.number: item for item in tree.nodes})
    if volume.resident is not None:
        layout = cast(StreamLayout, volume.layout)
        targets += stream_targets(tree, layout, writer, volume.resident)
        return
    write_blank_files(tree, volume.layout, volume.window)
    targets += content_targets(tree, volume.layout, writer)


def _part_of(name: str, targets: Sequence[PieceTarget], first: int) -> Part:
    """Return the counters for the targets from number `first` on."""
    size = objects = previous = 0
    for piece, _, number, _ in targets[first:]:
        size += piece.length
        if number != previous:
            previous = number
            objects += 1
    return Part(name, size, objects)


def _write_metadata(volume: _VolumeWork) -> None:
    if volume.layout is None:
        return
    for position, data in volume.layout.iter_metadata():
        volume.window.write(position, data)
    volume.window.flush()


def _write_table(work: _DiskWork, area: _BootArea) -> list[str]:
    """Write the gap sectors, then the boot code together with the partition table.

    Returns:
        Notes on what had to be changed.
    """
    disk, device = work.plan.disk, work.device
    boot_code = area.parts.pop(0, b"")
    for position, data in sorted(area.parts.items()):
        device.write(position, data)
    if disk.scheme == "none":
        return []
    boot_code, notes = _move_boot_loader(work, boot_code)
    places = {part.number: (part.new_start, part.new_size) for part in work.plan.partitions}
    for position, data in plan_table(
        disk.table,
        disk_size=device.size,
        sector_size=device.sector_size,
        placements=places,
        boot_code=boot_code[:BOOT_CODE_SIZE],
        bios_geometry=work.geometry,
    ):
        device.write(position, data)
    return notes


def _move_boot_loader(work: _DiskWork, boot_code: bytes) -> tuple[bytes, list[str]]:
    """Let a BIOS boot loader in a partition that moved find itself; return the boot code."""
    disk, device = work.plan.disk, work.device
    moves = [
        Move(part.old_start, part.new_start, part.old_size)
        for part in work.plan.partitions
        if part.new_start != part.old_start and part.type != "extended"
    ]
    old, new = (
        core_sector_of(code)
        for code in (boot_code, moved_boot_code(boot_code, moves, device.sector_size))
    )
    if old is None or new is None or old == new or disk.sector_size != device.sector_size:
        return boot_code, []
    position = new * device.sector_size
    core = device.read(position, CORE_SECTOR_SIZE)
    device.write(position, moved_core(core, moves, device.sector_size))
    note = f"GRUB's core image moved from sector {old} to {new}; its boot code follows."
    return moved_boot_code(boot_code, moves, device.sector_size), [note]
