# SPDX-License-Identifier: Apache-2.0
"""The running Linux machine as a source.

Partition tables, boot code and gaps are read raw.  A mounted ext volume is walked through the
kernel, in a private mount of what is on its device: nothing covers anything there, and it does
not matter where the volume is mounted.  The facts of its filesystem come from our driver.  Mounted
FAT and NTFS volumes are flushed and read by our driver, which alone sees short names, streams and
exact times; so are all volumes that are not mounted.

What changes between walk and reading is looked at again, see `live.settle`; files that belong
together may be of different moments.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import cast

from backup.agent.errors import NoSourceError, NotRecoverableError, Problem
from backup.agent.exclusions import IsExcluded
from backup.agent.inspection import InspectedDisk, Partition, inspect_disk
from backup.agent.live.image import copy_frozen
from backup.agent.live.linux import mount_again, open_tree
from backup.agent.live.reader import open_unread
from backup.agent.live.scan import LiveScan
from backup.agent.live.settle import Settler
from backup.agent.local_set import LocalSet
from backup.agent.machine import KernelDisk, KernelPartition, Machine, read_machine
from backup.agent.result import Snapshot
from backup.agent.sources import add_disk, scan_partition
from backup.objects.model import RAW, VolumeObject
from backup.shared.hardware_names import (
    DIRECTORIES,
    FILES,
    MAXIMUM_SIZE,
    HardwareName,
    find_hardware_names,
    is_wanted,
)
from fsdrivers import Can, driver_of, find_driver, open_volume, probe
from fsdrivers.device import Device, FileDevice
from fsdrivers.errors import CorruptError, DeviceError, FilesystemError
from fsdrivers.partitions import PartitionTable, open_partition
from fsdrivers.volume import Entry, LiveVolume, Volume

MOST_NAMES = 10_000  # of a volume that is compared with what it was: an ESP has fewer
ATTEMPTS = 3  # to read the frame of a volume that the kernel may be writing


class LiveSource:
    """All disks of the running machine.

    Args:
        machine: what it says of itself, read by default.
        left_out: directories that are kept without what is in them, and what they are: where the
            backups go must not grow by each of them.
        snapshot: when filesystems are frozen.
        has_hooks: whether commands run before, which see to databases.
    """

    def __init__(
        self,
        machine: Machine | None = None,
        left_out: Mapping[Path, str] | None = None,
        snapshot: Snapshot = Snapshot.AUTO,
        *,
        has_hooks: bool = False,
    ) -> None:
        self.machine = machine or read_machine()
        self._left_out = left_out or {}
        self._snapshot = snapshot
        self._has_hooks = has_hooks
        self._disks: list[tuple[KernelDisk, InspectedDisk]] = []
        self._opened: list[FileDevice] = []
        self._descriptors: list[int] = []
        self._settlers: list[Settler] = []
        # Mounted volumes that are read from their devices, and the names on them.
        self._watched: list[tuple[Device, VolumeObject, list[Entry] | None]] = []
        self._bases: list[tuple[bytes, bytes]] = []  # of mounted volumes, and where users see them
        self._synced_ns = 0  # when the kernel was last told to write everything out
        self._swap_files: frozenset[tuple[int, int]] = frozenset()

    def inspect(self, *, allow_raw: bool) -> list[Problem]:
        """Open all disks and look at their partitions.

        Raises:
            NoSourceError: there is no disk, or reading one is not permitted.
        """
        if not self.machine.disks:
            raise NoSourceError("this machine has no disk that could be backed up")
        self._synced_ns = time.time_ns()
        os.sync()  # what the kernel holds back must be where our drivers read it
        problems: list[Problem] = []
        self._disks = []
        for disk in self.machine.disks:
            try:
                device = self._open(disk.path)
                inspected = inspect_disk(
                    disk.name,
                    device,
                    allow_raw=allow_raw,
                    open_device=lambda table, number, disk=disk, device=device: (  # type: ignore[misc]
                        self._open_partition(disk, device, table, number)
                    ),
                    open_volume=self._open_volume,
                )
            except DeviceError as error:
                if isinstance(error.__cause__, PermissionError) and os.geteuid():
                    raise NoSourceError(
                        f"{disk.path} cannot be read without permission: run the agent as root"
                    ) from error
                problems.append(Problem(disk.path, f"it cannot be read: {error}"))
                continue
            problems += inspected.problems
            self._disks.append((disk, inspected))
        return problems

    def scan(self, local: LocalSet, is_excluded: IsExcluded | None) -> None:
        """Add all disks, their volumes and all nodes."""
        self._swap_files = frozenset(_identities(self.machine.swap_files))
        for disk, inspected in self._disks:
            known = {partition.number: partition for partition in disk.partitions}

            def scan_tree(
                local: LocalSet,
                partition: Partition,
                obj: VolumeObject,
                disk: KernelDisk = disk,
                known: dict[int, KernelPartition] = known,
            ) -> None:
                number = partition.number
                device = known[number].device if number in known else disk.device
                self._scan_tree(local, partition, obj, device, is_excluded)

            for partition in inspected.partitions:
                if partition.type == RAW and self._snapshot is not Snapshot.NEVER:
                    self._freeze_image(local, partition)
            add_disk(local, inspected, scan_tree, model=disk.model, serial=disk.serial)
            for partition in inspected.partitions:
                _note_raw_in_use(local, partition)
        for base, point in self._bases:
            prefix = os.fsdecode(point).rstrip("/") + "/"
            local.notes += [name.sentence(prefix) for name in hardware_names_on(base)]

    def _freeze_image(self, local: LocalSet, partition: Partition) -> None:
        """Take a mounted volume that is kept as an image as it is at one moment, if that can be."""
        device = partition.device
        if not isinstance(device, FileDevice) or not self._is_mounted(device):
            return
        number = os.fstat(device.fileno()).st_rdev
        mounts = self.machine.mounts_of((os.major(number), os.minor(number)))
        copy = copy_frozen(device, mounts)
        if copy is not None:
            partition.device = copy
            local.frozen.append(os.fsdecode(mounts[0].point))
            local.notes.append(
                f"{os.fsdecode(mounts[0].point)}: was frozen for a moment; its raw image is of that"
            )

    def settle(self, local: LocalSet, *, is_last: bool) -> bool:
        """Look again at what changed on the mounted volumes since it was listed or read."""
        for device, obj, names in self._watched:
            self._compare(local, device, obj, names)
        self._watched = []
        found = [settler.settle(is_last=is_last) for settler in self._settlers]
        return any(found)

    def _compare(
        self, local: LocalSet, device: Device, obj: VolumeObject, before: list[Entry] | None
    ) -> None:
        """Say of a volume that was read from its device while it is mounted that it changed."""
        if before is None or not isinstance(device, FileDevice):
            return
        os.sync()
        os.posix_fadvise(device.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            if _names_on(self._open_volume(device)) == before:
                return
        except (FilesystemError, DeviceError):
            pass  # something is being written
        local.warnings.append(
            f"{name_of(device, obj)}: its {obj.type} changed while it was read: its files may be "
            "of different moments; back up again when nobody writes to it"
        )
        local.mixed += 1

    def system(self) -> dict[str, str]:
        """Return what runs."""
        return self.machine.system

    def close(self) -> None:
        """Give all devices and mounts back."""
        for device in self._opened:
            device.close()
        for descriptor in self._descriptors:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._opened, self._descriptors, self._settlers = [], [], []

    def _open(self, path: str) -> FileDevice:
        """Open a disk or partition, seeing what is on the medium and not what was once read."""
        device = FileDevice.open(path)
        self._opened.append(device)
        with contextlib.suppress(OSError):
            os.posix_fadvise(device.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return device

    def _open_partition(
        self, disk: KernelDisk, device: Device, table: PartitionTable, number: int
    ) -> Device:
        """Open a partition by its own device node: the kernel caches it apart from the disk."""
        if table.scheme == "none":
            return device
        entry = table.entry(number)
        for known in disk.partitions:
            if entry is not None and (known.number, known.start) == (number, entry.start):
                path = os.path.join(self.machine.device_directory, known.name)
                if known.size == entry.size and os.path.exists(path):
                    return self._open(path)
        return open_partition(device, table, number)

    def _open_volume(self, device: Device) -> Volume:
        """Open a volume that may be mounted: a frame read while it changes is read again."""
        opening = open_volume
        if self._is_mounted(device) and (driver := find_driver(probe(device))):
            opening = driver.open_frame if Can.LIVE in driver.can else driver.open_volume
        for _ in range(ATTEMPTS - 1):
            try:
                return opening(device)
            except CorruptError:
                os.sync()
                if isinstance(device, FileDevice):
                    os.posix_fadvise(device.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return opening(device)

    def _is_mounted(self, device: Device) -> bool:
        """Return whether the kernel has the volume on a device node mounted."""
        if not isinstance(device, FileDevice):
            return False
        number = os.fstat(device.fileno()).st_rdev
        numbers = (os.major(number), os.minor(number))
        # A filesystem may be in use where no namespace shows it: unmounted lazily, say.
        return self.machine.is_mounted(numbers) or bool(device.find_use())

    def _scan_tree(
        self,
        local: LocalSet,
        partition: Partition,
        obj: VolumeObject,
        device: tuple[int, int],
        is_excluded: IsExcluded | None,
    ) -> None:
        """Add the nodes of a volume: through its mount, or through its driver."""
        mounts = self.machine.mounts_of(device)
        if mounts:
            obj.mount_point = mounts[0].point
        is_mounted = self._is_mounted(partition.device)
        if is_mounted and Can.LIVE in driver_of(obj.type).can:
            self._scan_mount(local, partition, obj, device, is_excluded)
            return
        # Nobody writes to an EFI system partition but who installs a system.
        if is_mounted and not (partition.entry and partition.entry.is_efi_system):
            local.notes.append(
                f"{name_of(partition.device, obj)}: its {obj.type} is mounted and was read as it "
                "is on the disk: files written meanwhile may be of different moments"
            )
        if is_mounted and partition.volume is not None:
            with contextlib.suppress(FilesystemError, DeviceError):  # which its scan will name
                self._watched.append((partition.device, obj, _names_on(partition.volume)))
        scan_partition(local, partition, obj, is_excluded, obj.mount_point.rstrip(b"/"))

    def _scan_mount(
        self,
        local: LocalSet,
        partition: Partition,
        obj: VolumeObject,
        device: tuple[int, int],
        is_excluded: IsExcluded | None,
    ) -> None:
        """Walk a mounted volume.

        Raises:
            NotRecoverableError: it cannot be reached: another mount covers it, say.
        """
        base = self._reach(partition.device, obj, device)
        if base is None:
            reason = (
                "it is mounted where its files cannot be seen, covered by another mount or in "
                "another namespace; unmount it, or back up with Linux 5.2 or later, as root"
            )
            raise NotRecoverableError([Problem(name_of(partition.device, obj), reason)])
        with contextlib.suppress(OSError):
            status = os.statvfs(base + b"/")
            obj.used_size = max(0, obj.size - status.f_bfree * status.f_frsize)
        try:
            scan = LiveScan(
                local,
                obj,
                base,
                obj.mount_point,
                is_excluded,
                self._swap_files,
                cast(LiveVolume, partition.volume).hidden_facts,
                self._synced_ns,
                self._find_left_out(),
            )
            self._bases.append((base, obj.mount_point))
            self._settlers.append(Settler(scan, self._snapshot, has_hooks=self._has_hooks))
            scan.run()
        except OSError as error:
            name = name_of(partition.device, obj)
            local.note_loss(f"{name}: {os.strerror(error.errno or 0)}")

    def _find_left_out(self) -> dict[tuple[int, int], str]:
        """Return what directories are that are left out, as far as they are there."""
        found = {}
        for path, what in self._left_out.items():
            with contextlib.suppress(OSError):
                status = os.stat(path)
                found[status.st_dev, status.st_ino] = what
        return found

    def _reach(self, opened: Device, obj: VolumeObject, device: tuple[int, int]) -> bytes | None:
        """Return a path to the root of a mounted volume, None if there is none.

        The best is a mount of our own of the filesystem on that device.  Where the kernel makes
        none, the path of a mount will do if nothing else is mounted there.
        """
        wanted = os.makedev(*device)
        mounts = self.machine.mounts_of(device)
        types = dict.fromkeys([mount.type for mount in mounts] + [*driver_of(obj.type).types])
        ways: list[Callable[[], int]] = [partial(mount_again, opened.name, [*types])]
        ways += [partial(open_tree, mount.point) for mount in mounts]
        for reach in ways:
            with contextlib.suppress(OSError):
                descriptor = reach()
                self._descriptors.append(descriptor)
                if os.fstat(descriptor).st_dev == wanted:
                    return b"/proc/self/fd/%d/." % descriptor
        for mount in mounts:
            with contextlib.suppress(OSError):
                if os.stat(mount.point).st_dev == wanted:
                    return mount.point.rstrip(b"/") or b"/."
        return None


def name_of(device: Device, obj: VolumeObject) -> str:
    """Return what to call a volume: where it is mounted, else its device."""
    return os.fsdecode(obj.mount_point) or device.name


def _names_on(volume: Volume) -> list[Entry] | None:
    """Return the names on a volume with what they lead to, None if there are many."""
    found = [*islice(volume.walk(lambda *_: None), MOST_NAMES + 1)]
    return found if len(found) <= MOST_NAMES else None


def _note_raw_in_use(local: LocalSet, partition: Partition) -> None:
    """Say of a raw image that it was made of something that others use."""
    device = partition.device
    if partition.type == RAW and isinstance(device, FileDevice) and (use := device.find_use()):
        local.warnings.append(
            f"{device.name}: is kept as a raw image, is in use ({use}) and could not be frozen and "
            "copied in time: the image may be of several moments; unmount it for the backup"
        )
        local.mixed += 1


def hardware_names_on(base: bytes) -> list[HardwareName]:
    """Return what on a volume leads to disks by names that only the same hardware has."""
    root = os.fsdecode(base)
    paths = [*FILES]
    for directory in DIRECTORIES:
        with contextlib.suppress(OSError):
            paths += [f"{directory}/{name}" for name in sorted(os.listdir(f"{root}/{directory}"))]
    found = []
    for path in filter(is_wanted, paths):
        with contextlib.suppress(OSError):
            descriptor = open_unread(os.fsencode(f"{root}/{path}"), os.O_RDONLY | os.O_NOFOLLOW)
            with open(descriptor, "rb") as stream:
                found += find_hardware_names(path, stream.read(MAXIMUM_SIZE))
    return sorted(found, key=lambda name: not name.is_needed)


def _identities(paths: tuple[bytes, ...]) -> list[tuple[int, int]]:
    """Return (device, inode) of files, those that are gone left out."""
    found = []
    for path in paths:
        with contextlib.suppress(OSError):
            status = os.stat(path)
            found.append((status.st_dev, status.st_ino))
    return found
