# SPDX-License-Identifier: Apache-2.0
"""Carry out a restore plan.  Nothing else in the engine writes to disks.

Write order on each disk, and why a power cut leaves either nothing or a whole machine:

1. The old partition table is wiped, and whatever could be the signature of an old volume or array
   on the disk or in a new volume: from here on nothing on the disk pretends to be usable.
2. Content goes, in the order of the packs, straight to the places that the layouts gave it.
3. The metadata of each volume follows, its superblock or boot sector last; then fix-ups change
   files and boot code (`rebuild.edits`); then a flush.
4. Boot code, the gap sectors and the new partition table come last; then a flush.  Only now can
   anything on the disk be found.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from backup.objects.medium import Medium
from backup.objects.model import NodeObject
from fsdrivers import signatures
from fsdrivers.device import Device, Window
from fsdrivers.partitions import plan_table, retyped
from fsdrivers.partitions.chs import Geometry
from fsdrivers.volume import Layout, StreamLayout
from rebuild.edits import edit_volume, write_blank_files, write_files
from rebuild.fixups.protocol import DiskChange, VolumeChanges, types_of
from rebuild.machine import VolumeTree, printable_path
from rebuild.plan import BOOT_CODE_SIZE, DiskPlan, PartitionPlan, RestorePlan, VolumePlan
from rebuild.progress import Part, Progress
from rebuild.report import Failure, RestoreReport, VolumeResult
from rebuild.streaming.ahead import Ahead
from rebuild.streaming.content import PieceTarget, stream_pieces
from rebuild.streaming.opener import PieceOpener
from rebuild.streaming.targets import ResidentWriter, content_targets, stream_targets
from rebuild.streaming.writer import CoalescingWriter


@dataclass(slots=True)
class _VolumeWork:
    """A volume that is being written: where it goes, its layout, its writer."""

    tree: VolumeTree  # with what fix-ups add
    changes: VolumeChanges
    part: PartitionPlan
    window: Device
    layout: Layout | None  # None for a raw volume
    writer: CoalescingWriter
    resident: ResidentWriter | None = None  # for content inside the metadata


@dataclass(slots=True)
class _DiskWork:
    plan: DiskPlan
    device: Device
    changes: list[DiskChange]
    volumes: list[_VolumeWork] = field(default_factory=list)


def apply_plan(
    plan: RestorePlan,
    devices: Mapping[int, Device],
    medium: Medium,
    opener: PieceOpener,
    *,
    ahead: Ahead | None = None,
    processes: int = 1,
    progress: Callable[[str], None] = lambda text: None,
) -> RestoreReport:
    """Write the machine to the target disks.

    Args:
        plan: what to write where, whose layouts are used up.
        devices: the opened, writable target by number of the disk object.
        medium: where the packs are read from.
        opener: opens sealed pieces.
        ahead: has opened content already.
        processes: how many share the work, see `stream_pieces`.
        progress: takes one line of text now and then.

    A damaged object never stops the rest; it is named in the report.

    Raises:
        DeviceError: a target failed.
    """
    started = time.monotonic()
    shown = Progress(progress)
    report = RestoreReport(object_count=plan.object_count, obstacles=plan.changes.obstacles())
    works = [_start(disk, plan, devices[disk.disk.number]) for disk in plan.disks]
    report.notes += [n for work in works for vol in work.volumes for n in vol.changes.notes()]
    if not plan.is_blank:
        shown.begin("Wiping old signatures")
        for work in works:
            _wipe(work)
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
    for work in works:
        report.notes += _finish(work, boot_areas[work.plan.disk.number], shown)
    report.elapsed_s = time.monotonic() - started
    return report


def _start(disk: DiskPlan, plan: RestorePlan, device: Device) -> _DiskWork:
    work = _DiskWork(disk, device, plan.changes.of_disk(disk.disk.number))
    for part in disk.partitions:
        if part.volume:
            # A layout takes much memory: nothing else keeps it.
            work.volumes.append(_work_of(plan.volumes.pop(part.volume), part, device))
    return work


def _wipe(work: _DiskWork) -> None:
    """Remove what pretends to be a table, a volume or an array, on the disk and in new volumes."""
    signatures.wipe(work.device)
    for volume in work.volumes:
        signatures.wipe(volume.window)
    work.device.flush()


def _work_of(planned: VolumePlan, part: PartitionPlan, device: Device) -> _VolumeWork:
    layout, driver = planned.layout, planned.tree.driver
    window = Window(device, part.new_start, part.new_size)
    writer = CoalescingWriter(window, layout.block_size if layout else 1)
    work = _VolumeWork(planned.tree, planned.changes, part, window, layout, writer)
    if driver and layout and (streams := driver.with_streams(layout)):
        work.resident = ResidentWriter(streams.resident)
    return work


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
        """Return the printable name of an object, empty if it has no name."""
        item = self.nodes.get(number)
        if item is None:
            return self.fixed.get(number, "")
        return f"{self.places[item.volume]}:{printable_path(item, self.nodes)}"


def _collect_volume(volume: _VolumeWork, targets: list[PieceTarget], names: _Names) -> None:
    writer, tree = volume.writer, volume.tree
    if volume.layout is None:
        # What is not among the pieces was zeros, whatever the target held before.
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
    write_blank_files(volume.changes.blank(), volume.layout, volume.window)
    write_files(volume.changes.rewrites(), volume.layout, volume.window)
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


def _finish(work: _DiskWork, area: _BootArea, shown: Progress) -> list[str]:
    """Write what makes the volumes of a disk exist, then what makes the disk one.

    Returns:
        Notes on what had to be changed.
    """
    notes: list[str] = []
    for volume in work.volumes:
        shown.begin(f"Writing metadata of {volume.part.title}")
        if volume.layout is not None:
            _write_metadata(volume.layout, volume.window)
            notes += edit_volume(volume.tree, volume.changes, volume.layout, volume.window)
    shown.begin("Flushing to the disk")
    work.device.flush()
    notes += _write_table(work, area)
    work.device.flush()
    return notes


def _write_metadata(layout: Layout, window: Device) -> None:
    for position, data in layout.iter_metadata():
        window.write(position, data)
    window.flush()


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
    notes: list[str] = []
    geometry: Geometry | None = None
    for change in work.changes:
        geometry = geometry or change.geometry
        notes += change.notes
        edits = change.edits(boot_code, device.read)
        for position, data in edits.parts.items():
            device.write(position, data)
        boot_code = edits.boot_code
        notes += edits.notes
    places = {part.number: (part.new_start, part.new_size) for part in work.plan.partitions}
    for position, data in plan_table(
        retyped(disk.table, types_of(work.changes)),
        disk_size=device.size,
        sector_size=device.sector_size,
        placements=places,
        boot_code=boot_code[:BOOT_CODE_SIZE],
        bios_geometry=geometry,
    ):
        device.write(position, data)
    return notes
