# SPDX-License-Identifier: Apache-2.0
"""Names in a Linux system's files that only the same hardware has.

A kernel calls disks by their driver and order (/dev/vda2), udev by model, serial and bus
(/dev/disk/by-id, by-path).  A system that mounts its root by such a name does not start on another
computer; UUIDs and labels of volumes come back with them.  Pure.

Source: fstab(5), crypttab(5), bootparam(7), linux v6.1 Documentation/admin-guide/devices.txt, the
Boot Loader Specification, GNU GRUB manual 2.06 "Device map", initramfs-tools(7).
"""

from __future__ import annotations

import re
from typing import NamedTuple

# Below the root of any volume: /boot, or what holds it, may be a volume of its own.
FILES = (
    "etc/fstab",
    "etc/crypttab",
    "etc/default/grub",
    "etc/kernel/cmdline",
    "etc/initramfs-tools/conf.d/resume",
    "boot/grub/grub.cfg",
    "boot/grub2/grub.cfg",
    "grub/grub.cfg",
    "grub2/grub.cfg",
)
DIRECTORIES = ("loader/entries", "boot/loader/entries")  # of files that end in .conf
MAXIMUM_SIZE = 1 << 20  # bytes; larger files are none of these

_DISK = (
    r"/dev/(?:(?:sd|hd|vd|xvd)[a-z]+\d*|nvme\d+n\d+(?:p\d+)?|mmcblk\d+(?:p\d+)?"
    r"|disk/by-(?:id|path)/[^\s\"',]+)"
)
_IS_DISK = re.compile(_DISK)
_PARAMETER = re.compile(rf"(?<![\w.-])(root|resume|cryptdevice|RESUME)=(?:\"|')?({_DISK})(?![\w-])")
_OPTIONAL = {"noauto", "nofail"}
_CONF = re.compile(r"(?:boot/)?loader/entries/[^/]+\.conf")


class HardwareName(NamedTuple):
    """A place that leads to a disk by a name of its hardware."""

    path: str  # of the file, without a leading slash
    use: str  # what it says there: "mounts / by", "asks for root="
    name: str  # of the disk or partition
    is_needed: bool  # whether the system cannot start without it

    def sentence(self, prefix: str = "/") -> str:
        """Return what a person should know; `prefix`: path of the volume's root."""
        effect = (
            "it does not start where there is no such name"
            if self.is_needed
            else "where there is no such name it goes on without, maybe after a while"
        )
        return f"{prefix}{self.path} {self.use} {self.name}: {effect}; UUID= would do everywhere"


def is_wanted(path: str) -> bool:
    """Return whether a file may hold such names; `path` is without a leading slash."""
    return path in FILES or _CONF.fullmatch(path) is not None


def find_hardware_names(path: str, content: bytes) -> list[HardwareName]:
    """Return the names in one of the files that `is_wanted`, each use once."""
    lines = [
        line.split("#")[0] for line in content[:MAXIMUM_SIZE].decode("utf-8", "replace").split("\n")
    ]
    if path == "etc/fstab":
        found = [_of_mount(path, line.split()) for line in lines]
    elif path == "etc/crypttab":
        found = [_of_mapping(path, line.split()) for line in lines]
    else:
        found = [
            HardwareName(path, f"asks for {key}=", name, key in ("root", "cryptdevice"))
            for line in lines
            for key, name in _PARAMETER.findall(line)
        ]
    return list(dict.fromkeys(item for item in found if item is not None))


def _of_mount(path: str, fields: list[str]) -> HardwareName | None:
    """Return the name in a line of fstab, if there is one."""
    if len(fields) < 2 or not _IS_DISK.fullmatch(fields[0]):
        return None
    options = set(fields[3].split(",")) if len(fields) > 3 else set()
    is_swap = not fields[1].startswith("/")  # it is "none", mostly
    use = "swaps to" if is_swap else f"mounts {fields[1]} by"
    return HardwareName(path, use, fields[0], not is_swap and not options & _OPTIONAL)


def _of_mapping(path: str, fields: list[str]) -> HardwareName | None:
    """Return the name in a line of crypttab, if there is one."""
    if len(fields) < 2 or not _IS_DISK.fullmatch(fields[1]):
        return None
    options = set(fields[3].split(",")) if len(fields) > 3 else set()
    return HardwareName(path, f"opens {fields[0]} by", fields[1], not options & _OPTIONAL)
