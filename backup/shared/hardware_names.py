# SPDX-License-Identifier: Apache-2.0
"""Names in a Linux system's files that only the same hardware has.

A kernel calls disks by their driver and order (/dev/vda2), udev by model, serial and bus
(/dev/disk/by-id, by-path).  A system that mounts its root by such a name does not start on another
computer; UUIDs and labels of volumes come back with them.  Pure.

An initramfs that was made with MODULES=dep holds only the drivers of the disks it was made on:
that is not a name, but comes to the same.

Source: fstab(5), crypttab(5), bootparam(7), linux v6.1 Documentation/admin-guide/devices.txt, the
Boot Loader Specification, GNU GRUB manual 2.06 "Device map", initramfs.conf(5).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import NamedTuple

FSTAB = "etc/fstab"
# Below the root of any volume: /boot, or what holds it, may be a volume of its own.
FILES = (
    FSTAB,
    "etc/crypttab",
    "etc/default/grub",
    "etc/kernel/cmdline",
    "etc/initramfs-tools/conf.d/driver-policy",
    "etc/initramfs-tools/conf.d/resume",
    "etc/initramfs-tools/initramfs.conf",
    "boot/grub/device.map",
    "boot/grub/grub.cfg",
    "boot/grub2/device.map",
    "boot/grub2/grub.cfg",
    "grub/device.map",
    "grub/grub.cfg",
    "grub2/device.map",
    "grub2/grub.cfg",
)
DIRECTORIES = ("loader/entries", "boot/loader/entries")  # of files that end in .conf
MAXIMUM_SIZE = 1 << 20  # bytes; larger files are none of these

_DISK = (
    r"/dev/(?:(?:sd|hd|vd|xvd)[a-z]+\d*|nvme\d+n\d+(?:p\d+)?|mmcblk\d+(?:p\d+)?"
    r"|disk/by-(?:id|path)/[^\s\"',]+)"
)
_IS_DISK = re.compile(_DISK)
_PARTITION = re.compile(r"(/dev/(?:sd|hd|vd|xvd)[a-z]+)(\d+)|(.*\d)p(\d+)|(/dev/disk/.*)-part(\d+)")
_MAPPED = re.compile(rf"\s*\((\w+)\)\s+({_DISK})\s*")
_MODULES = re.compile(r"\s*MODULES=[\"']?dep\b")
_PARAMETER = re.compile(rf"(?<![\w.-])(root|resume|cryptdevice|RESUME)=(?:\"|')?({_DISK})(?![\w-])")
_OPTIONAL = {"noauto", "nofail"}
_CONF = re.compile(r"(?:boot/)?loader/entries/[^/]+\.conf")


class Mount(NamedTuple):
    """A line of fstab."""

    device: str  # whatever it is called by
    point: str  # where it is mounted; "none" of swap
    type: str
    options: frozenset[str]

    @property
    def is_by_hardware(self) -> bool:
        """Whether it names a disk that only the same hardware has."""
        return _IS_DISK.fullmatch(self.device) is not None


class HardwareName(NamedTuple):
    """A place that leads to a disk by a name of its hardware, or fits it in another way."""

    path: str  # of the file, without a leading slash
    use: str  # what it says there: "mounts / by", "asks for root="
    name: str  # of the disk or partition
    is_needed: bool  # whether the system cannot start without it
    place: str = "where there is no such name"  # where it does not work
    effect: str = ""  # what follows there; empty for what most names have
    advice: str = "UUID= would do everywhere"

    def sentence(self, prefix: str = "/") -> str:
        """Return what a person should know; `prefix`: path of the volume's root."""
        effect = self.effect or (
            "it does not start" if self.is_needed else "it goes on without, maybe after a while,"
        )
        return f"{self.what(prefix)}: {effect} {self.place}; {self.advice}"

    def what(self, prefix: str = "/") -> str:
        """Return what the file says, as the beginning of a sentence."""
        return f"{prefix}{self.path} {self.use} {self.name}"


def is_wanted(path: str) -> bool:
    """Return whether a file may hold such names; `path` is without a leading slash."""
    return path in FILES or _CONF.fullmatch(path) is not None


def is_on_the_way(path: str) -> bool:
    """Return whether a directory may lead to a file that `is_wanted`."""
    return path in _WAYS


_WAYS = {
    str(above)
    for path in (*FILES, *(f"{directory}/x" for directory in DIRECTORIES))
    for above in PurePosixPath(path).parents
}


def parse_mount(line: str) -> Mount | None:
    """Return what a line of fstab says; None for a comment, and for less than two fields."""
    fields = line.split("#")[0].split()
    if len(fields) < 2:
        return None
    kind = fields[2] if len(fields) > 2 else "auto"
    options = fields[3].split(",") if len(fields) > 3 else []
    return Mount(fields[0], fields[1], kind, frozenset(options))


def split_partition(name: str) -> tuple[str, int]:
    """Return the name of a disk and the number of its partition; 0 for the whole disk."""
    found = _PARTITION.fullmatch(name)
    if found is None:
        return name, 0
    base, number = [group for group in found.groups() if group is not None]
    return base, int(number)


def find_hardware_names(path: str, content: bytes) -> list[HardwareName]:
    """Return the names in one of the files that `is_wanted`, each use once."""
    find = _FINDERS.get(path) or _FINDERS.get(path.rpartition("/")[2], _of_parameters)
    lines = [
        line.split("#")[0] for line in content[:MAXIMUM_SIZE].decode("utf-8", "replace").split("\n")
    ]
    return list(dict.fromkeys(name for line in lines for name in find(path, line)))


def _of_mount(path: str, line: str) -> Iterator[HardwareName]:
    """Yield the name in a line of fstab."""
    mount = parse_mount(line)
    if mount is None or not mount.is_by_hardware:
        return
    is_swap = not mount.point.startswith("/")
    use = "swaps to" if is_swap else f"mounts {mount.point} by"
    yield HardwareName(path, use, mount.device, not is_swap and not mount.options & _OPTIONAL)


def _of_mapping(path: str, line: str) -> Iterator[HardwareName]:
    """Yield the name in a line of crypttab."""
    fields = line.split()
    if len(fields) < 2 or not _IS_DISK.fullmatch(fields[1]):
        return
    options = set(fields[3].split(",")) if len(fields) > 3 else set()
    yield HardwareName(path, f"opens {fields[0]} by", fields[1], not options & _OPTIONAL)


def _of_device_map(path: str, line: str) -> Iterator[HardwareName]:
    """Yield the name in a line of GRUB's device map, which only its installer reads."""
    if found := _MAPPED.fullmatch(line):
        use, name = f"finds {found[1]} by", found[2]
        effect, advice = "GRUB cannot be installed anew", "the file can be removed"
        yield HardwareName(path, use, name, False, effect=effect, advice=advice)


def _of_drivers(path: str, line: str) -> Iterator[HardwareName]:
    """Yield what a line of initramfs.conf says of drivers."""
    if _MODULES.match(line):
        place, advice = "where disks need another one", "MODULES=most would do everywhere"
        use = "leaves drivers out of the initramfs by"
        yield HardwareName(path, use, "MODULES=dep", True, place, advice=advice)


def _of_parameters(path: str, line: str) -> Iterator[HardwareName]:
    """Yield the names in a line with parameters of the kernel."""
    for key, name in _PARAMETER.findall(line):
        yield HardwareName(path, f"asks for {key}=", name, key in ("root", "cryptdevice"))


# By path, or by the name of the file.
_FINDERS: dict[str, Callable[[str, str], Iterator[HardwareName]]] = {
    FSTAB: _of_mount,
    "etc/crypttab": _of_mapping,
    "device.map": _of_device_map,
    "driver-policy": _of_drivers,
    "initramfs.conf": _of_drivers,
}
