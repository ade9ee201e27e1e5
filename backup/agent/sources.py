# SPDX-License-Identifier: Apache-2.0
"""Where a backup comes from: what every source offers, and disks or images read by our drivers.

`backup.agent.live.source` is the other source: the running machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol, cast

from backup.agent.errors import NoSourceError, Problem
from backup.agent.exclusions import IsExcluded
from backup.agent.inspection import InspectedDisk, Partition, inspect_disk, is_all_zeros
from backup.agent.local_set import LocalSet
from backup.agent.operating_system import find_names, find_system, read_system_files
from backup.agent.readers import DeviceReader, StreamVolumeReader, VolumeReader
from backup.agent.regions import iter_pieces
from backup.agent.volume_scan import VolumeScan, walk_ahead
from backup.objects.model import EMPTY, RAW, DiskObject, LabelObject, Plain, VolumeObject
from backup.shared.text import size_text
from fsdrivers import driver_of
from fsdrivers.device import Device, FileDevice, Window
from fsdrivers.errors import DeviceError
from fsdrivers.partitions import outside_regions, unkept_regions
from fsdrivers.volume import StreamVolume, Volume

GAP_LOOKED_AT = 64 << 20  # bytes of a gap between partitions that are searched for data


class Source(Protocol):
    """Some disks.  `inspect` comes first, then `scan` once, then `close`."""

    def inspect(self, *, allow_raw: bool) -> list[Problem]:
        """Look at everything there is; return all that cannot be recovered."""
        ...

    def scan(self, local: LocalSet, is_excluded: IsExcluded | None) -> None:
        """Add all objects to the local set."""
        ...

    def settle(self, local: LocalSet, *, is_last: bool) -> bool:
        """Look again at what has changed since it was listed or read, when all work is done.

        Args:
            local: the set, without work; may get some.
            is_last: nobody will ask again.

        Returns:
            Whether there was anything: there may be work, and this is to be called again.
        """
        ...

    def system(self) -> dict[str, str]:
        """Return what is known of the operating system; after `scan`."""
        ...

    def close(self) -> None:
        """Give devices back; the set must have been sent by then."""
        ...


# Adds the nodes of an opened volume.
ScanTree = Callable[[LocalSet, Partition, VolumeObject], None]


class DiskSource:
    """One disk or disk image that nobody writes to meanwhile, read by our own drivers."""

    def __init__(self, path: str | os.PathLike[str], name: str = "") -> None:
        """Take the disk at `path`; `name` is what the object table calls it, by default the
        last part of the path."""
        self.path = os.fspath(path)
        self.name = name or os.path.basename(self.path)
        self._device: FileDevice | None = None
        self._disk: InspectedDisk | None = None
        self._prepared: list[Problem] | None = None
        self._system: dict[str, str] = {}

    def prepare(self, *, allow_raw: bool, is_waiting: Callable[[], bool]) -> None:
        """Inspect, then walk volumes for as long as `is_waiting`, as nothing else is to be done.

        Raises:
            NoSourceError: there is no such disk, or reading it is not permitted.
        """
        self._prepared = self.inspect(allow_raw=allow_raw)
        for partition in self._disk.partitions if self._disk else ():
            if partition.volume is not None and is_waiting():
                partition.walk = walk_ahead(partition.volume, is_waiting)

    def inspect(self, *, allow_raw: bool) -> list[Problem]:
        """Open the disk and look at all its partitions.

        Raises:
            NoSourceError: there is no such disk, or reading it is not permitted.
        """
        prepared, self._prepared = self._prepared, None
        if prepared is not None:
            return prepared
        try:
            self._device = FileDevice.open(self.path)
        except DeviceError as error:
            raise NoSourceError(f"the disk {self.path} cannot be opened: {error.reason}") from error
        try:
            self._disk = inspect_disk(self.name, self._device, allow_raw=allow_raw)
        except DeviceError as error:
            return [Problem(self.path, f"it cannot be read: {error}")]
        if use := self._device.find_use():
            self._disk.notes.append(
                f"{self.path} is in use: {use}; what is written to it during the backup may be "
                "missing or there by half"
            )
        return self._disk.problems

    def scan(self, local: LocalSet, is_excluded: IsExcluded | None) -> None:
        """Add the disk, its volumes and all their nodes."""
        assert self._disk is not None, "a source is inspected before it is scanned"

        def scan_tree(local: LocalSet, partition: Partition, obj: VolumeObject) -> None:
            scan_partition(local, partition, obj, is_excluded)

        add_disk(local, self._disk, scan_tree)
        files = read_system_files(local, self._disk)
        self._system = find_system(files, self._disk)
        local.notes += find_names(files, self._disk)

    def settle(self, local: LocalSet, *, is_last: bool) -> bool:
        """Return that there is nothing: nobody writes to the disk."""
        return False

    def system(self) -> dict[str, str]:
        """Return what the volumes say of the operating system on them."""
        return self._system

    def close(self) -> None:
        """Close the disk."""
        if self._device is not None:
            self._device.close()


def add_disk(
    local: LocalSet, disk: InspectedDisk, scan_tree: ScanTree, *, model: str = "", serial: str = ""
) -> None:
    """Add a disk, its boot code and gaps, its volumes, and through `scan_tree` their nodes."""
    table = disk.table
    name, count = disk.name, 1
    while name in local.disk_names:
        count += 1
        name = f"{disk.name}#{count}"
    local.disk_names.add(name)
    obj = DiskObject(
        local.next_number(),
        name,
        disk.device.size,
        table.sector_size,
        table.scheme,
        table.description,
        model,
        serial,
    )
    local.add(obj)
    local.notes += disk.notes
    local.notes += unkept_data(disk)
    outside = [(start, length, False) for start, length in outside_regions(table)]
    reader = local.add_reader(DeviceReader(disk.device, skip_zeros=False))
    local.add_pieces(obj.number - 1, reader, iter_pieces(outside, disk.device.size))
    for partition in disk.partitions:
        if partition.number or partition.type != EMPTY:
            _add_partition(local, obj.number, partition, scan_tree)


def unkept_data(disk: InspectedDisk) -> list[str]:
    """Return a sentence for each gap of a disk that holds data and is not kept.

    Of a large gap only the start is looked at.
    """
    notes = []
    for start, length in unkept_regions(disk.table):
        looked = min(length, GAP_LOOKED_AT)
        if is_all_zeros(Window(disk.device, start, looked)):
            continue
        notes.append(
            f"{disk.name}: the {size_text(length)} from byte {start} on, which no partition holds, "
            "hold data that is not kept; make a partition of it if it is of use"
        )
    return notes


def _add_partition(local: LocalSet, disk: int, partition: Partition, scan_tree: ScanTree) -> None:
    """Add one volume and what is on it."""
    device, volume = partition.device, partition.volume
    number = local.next_number()
    if volume is None:
        obj = VolumeObject(
            number, disk, partition.number, partition.type, device.size, 0, "", b"", {}
        )
        obj.minimum_size = device.size if partition.type == RAW else 0
        local.add(obj)
        if partition.type == RAW:
            _add_raw(local, number - 1, device)
        return
    description: dict[str, Plain] = volume.describe()
    used, uuid, label = volume.used_size(), volume.uuid, volume.label
    obj = VolumeObject(
        number, disk, partition.number, volume.type, device.size, used, uuid, label, description
    )
    local.add(obj)
    if label:
        local.add(LabelObject(local.next_number(), number, label))
    scan_tree(local, partition, obj)


def reader_of(volume: Volume) -> VolumeReader:
    """Return what reads the files of an opened volume."""
    if driver_of(volume.type).has_streams:
        return StreamVolumeReader(cast(StreamVolume, volume))
    return VolumeReader(volume)


def _add_raw(local: LocalSet, place: int, device: Device) -> None:
    """Have all bytes of a partition read that are not zero."""
    reader = local.add_reader(DeviceReader(device, skip_zeros=True))
    data = ((start, length, False) for start, length in device.iter_data(0, device.size))
    local.add_pieces(place, reader, iter_pieces(data, device.size))


def scan_partition(
    local: LocalSet,
    partition: Partition,
    obj: VolumeObject,
    is_excluded: IsExcluded | None,
    prefix: bytes = b"",
) -> None:
    """Add the nodes of a partition through its driver."""
    volume: Volume | None = partition.volume
    assert volume is not None, "only what a driver opened has nodes"
    if not driver_of(volume.type).has_files:
        return
    name = f"{obj.type} volume {obj.uuid or obj.partition}"
    damage = "" if volume.damage is None else str(volume.damage)
    for text in volume.warnings():
        if damage and damage in text:
            local.note_loss(f"{name}: {text}")
        else:
            local.warnings.append(f"{name}: {text}")
    reader = local.add_reader(reader_of(volume))
    walk, partition.walk = partition.walk or volume.walk, None
    VolumeScan(local, volume, obj, reader, is_excluded, prefix).run(walk)
