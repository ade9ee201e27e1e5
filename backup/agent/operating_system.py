# SPDX-License-Identifier: Apache-2.0
"""Finds out which operating system is on the volumes of a disk that is not running, and by which
names that only the same hardware has it looks for its disks.

Source: EP1168174A1 claim 7 (type and release are read back at recovery); os-release(5) for
where Linux says it.  Windows NT and its successors are known by their kernel's file; which
release it is, is not looked up.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import NamedTuple

from backup.agent.inspection import InspectedDisk
from backup.agent.local_set import LocalSet
from backup.agent.machine import parse_machine_id, parse_os_release
from backup.objects.known_files import find_known_files
from backup.objects.model import VolumeObject
from backup.shared.hardware_names import (
    MAXIMUM_SIZE,
    find_hardware_names,
    is_on_the_way,
    is_wanted,
)
from fsdrivers.errors import DeviceError, FilesystemError
from fsdrivers.volume import Kind, Node

MACHINE_ID = "etc/machine-id"
OS_RELEASE = ("etc/os-release", "usr/lib/os-release")
WINDOWS_KERNELS = ("windows/system32/ntoskrnl.exe", "winnt/system32/ntoskrnl.exe")  # in any case
_WAYS = {
    str(above) for path in (*OS_RELEASE, *WINDOWS_KERNELS) for above in PurePosixPath(path).parents
}


class SystemFile(NamedTuple):
    """A file on a volume of a disk that says something about the system."""

    path: str  # from the root of its volume, without a leading slash
    partition: int
    content: bytes  # the beginning of it; nothing of a program


def read_system_files(local: LocalSet, disk: InspectedDisk) -> list[SystemFile]:
    """Return what is at the well-known places of every volume, as far as it can be read."""
    volumes = {p.number: p.volume for p in disk.partitions if p.volume is not None}
    found = []
    for path, node in find_known_files(local.objects, _is_known, _is_on_the_way):
        obj = local.lookup(node.volume)
        assert isinstance(obj, VolumeObject), "nodes are on volumes"
        volume = volumes.get(obj.partition)
        if volume is None or volume.uuid != obj.uuid:
            continue  # of another disk
        if path.lower() in WINDOWS_KERNELS:
            found.append(SystemFile(path, obj.partition, b""))
            continue
        asked = Node(node.source_number, Kind.FILE, size=node.size)
        with contextlib.suppress(FilesystemError, DeviceError):
            data = volume.read(asked, 0, min(node.size, MAXIMUM_SIZE))
            found.append(SystemFile(path, obj.partition, data))
    return found


def find_system(files: Iterable[SystemFile], disk: InspectedDisk) -> dict[str, str]:
    """Return what the volumes of `disk` say: firmware, name and release of the system, and which
    installation it is."""
    has_esp = any(entry.is_efi_system for entry in disk.table.entries)
    system = {"firmware": "uefi" if has_esp else "bios"}
    for path, _, content in files:
        if path.lower() in WINDOWS_KERNELS:
            return {"kernel": "Windows NT", "os": "windows", "os_name": "Windows", **system}
        if path == MACHINE_ID:
            system = {**parse_machine_id(content), **system}  # that of the first volume
        elif path in OS_RELEASE and "kernel" not in system and (say := parse_os_release(content)):
            system |= {"kernel": "Linux", **say}
    return system


def find_names(files: Iterable[SystemFile], disk: InspectedDisk) -> list[str]:
    """Return a sentence for all that leads to disks by names that only the same hardware has.

    What the system cannot start without comes first.
    """
    found = [
        (partition, name)
        for path, partition, content in files
        if is_wanted(path)
        for name in find_hardware_names(path, content)
    ]
    found.sort(key=lambda item: not item[1].is_needed)
    return [
        f"{disk.name}{f' partition {partition}' if partition else ''}: {name.sentence()}"
        for partition, name in found
    ]


def _is_known(path: str) -> bool:
    return (
        path == MACHINE_ID
        or path in OS_RELEASE
        or is_wanted(path)
        or path.lower() in WINDOWS_KERNELS
    )


def _is_on_the_way(path: str) -> bool:
    return path in _WAYS or is_on_the_way(path) or path.lower() in _WAYS
