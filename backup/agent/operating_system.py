# SPDX-License-Identifier: Apache-2.0
"""Finds out which operating system is on the volumes of a disk that is not running.

Source: EP1168174A1 claim 7 (type and release are read back at recovery); os-release(5) for
where Linux says it.  Windows NT and its successors are known by their kernel's file; which
release it is, is not looked up.
"""

from __future__ import annotations

from backup.agent.inspection import InspectedDisk
from backup.agent.local_set import LocalSet
from backup.agent.machine import parse_machine_id, parse_os_release
from backup.objects.model import NodeObject, ObjectKind, VolumeObject
from fsdrivers.errors import DeviceError, FilesystemError
from fsdrivers.volume import Kind, Node

MACHINE_ID = (b"etc", b"machine-id")
OS_RELEASE = ((b"etc", b"os-release"), (b"usr", b"lib", b"os-release"))
WINDOWS_DIRECTORIES, WINDOWS_KERNEL = (b"windows", b"winnt"), (b"system32", b"ntoskrnl.exe")
MAXIMUM_SIZE = 64 << 10


def find_system(local: LocalSet, disk: InspectedDisk) -> dict[str, str]:
    """Return what the scanned volumes of `disk` say: firmware, name and release of the system, and
    which installation it is."""
    has_esp = any(entry.is_efi_system for entry in disk.table.entries)
    system = {"firmware": "uefi" if has_esp else "bios"}
    volumes = {p.number: p.volume for p in disk.partitions if p.volume is not None}
    for node in _find_nodes(local):
        obj = local.lookup(node.volume)
        assert isinstance(obj, VolumeObject), "nodes are on volumes"
        volume = volumes.get(obj.partition)
        if volume is None or volume.uuid != obj.uuid:
            continue
        if node.name.lower() == WINDOWS_KERNEL[-1]:
            return {"kernel": "Windows NT", "os": "windows", "os_name": "Windows", **system}
        asked = Node(node.source_number, Kind.FILE, size=node.size)
        try:
            data = volume.read(asked, 0, min(node.size, MAXIMUM_SIZE))
        except (FilesystemError, DeviceError):
            continue
        if node.name == MACHINE_ID[-1]:
            system = {**parse_machine_id(data), **system}  # that of the first volume
        elif "kernel" not in system and (found := parse_os_release(data)):
            system |= {"kernel": "Linux", **found}
    return system


def _find_nodes(local: LocalSet) -> list[NodeObject]:
    """Return the files at the well-known places of every volume, in one pass over the set."""
    windows = {(name, *WINDOWS_KERNEL) for name in WINDOWS_DIRECTORIES}
    names = {name for path in (MACHINE_ID, *OS_RELEASE, *windows) for name in path}
    paths: dict[int, tuple[bytes, ...]] = {}
    found = []
    for obj in local.objects:
        if type(obj) is not NodeObject:
            continue
        if not obj.parent:
            paths[obj.number] = ()
        elif obj.parent in paths and (obj.name in names or obj.name.lower() in names):
            path = (*paths[obj.parent], obj.name)
            if obj.kind == ObjectKind.DIRECTORY:
                paths[obj.number] = path
            elif obj.kind == ObjectKind.FILE and (
                path in (MACHINE_ID, *OS_RELEASE) or tuple(name.lower() for name in path) in windows
            ):
                found.append(obj)
    return found
