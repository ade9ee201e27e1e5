# SPDX-License-Identifier: Apache-2.0
"""What the running Linux machine says of itself: disks, partitions, mounts, swap areas.

Source: linux v6.1 Documentation/filesystems/proc.rst (mountinfo), ABI/stable/sysfs-block,
os-release(5), machine-id(5).  Reads /sys, /proc and /etc only, below a root that tests can
replace; opens no disk.  Skipped as no part of a recoverable machine: loop, RAM, compressed RAM,
network block and optical devices, read-only disks, and removable disks that hold nothing mounted.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

IDENTITY = "identity"  # the key, in what is known of a system, of what tells it from others
SECTOR_SIZE = 512  # the unit of sizes and starts in sysfs, whatever the disk's own
SKIPPED_DISKS = re.compile(r"(loop|ram|zram|sr|fd|nbd|dm-|md|mtdblock|drbd)\d|mmcblk\d+(boot|rpmb)")
_OCTAL = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo."""

    device: tuple[int, int]  # major, minor
    root: bytes  # the directory of the filesystem that is mounted; b"/" for all of it
    point: bytes
    type: str
    source: bytes


@dataclass(frozen=True, slots=True)
class KernelPartition:
    """A partition as the kernel sees it."""

    name: str
    number: int
    device: tuple[int, int]
    start: int  # bytes from the start of the disk
    size: int


@dataclass(frozen=True, slots=True)
class KernelDisk:
    """A whole disk as the kernel sees it."""

    name: str
    path: str  # of its device node
    device: tuple[int, int]
    size: int
    is_removable: bool
    model: str = ""
    serial: str = ""
    partitions: tuple[KernelPartition, ...] = ()

    def devices(self) -> set[tuple[int, int]]:
        """Return the numbers of the disk and of all its partitions."""
        return {self.device, *(partition.device for partition in self.partitions)}


@dataclass(frozen=True, slots=True)
class Machine:
    """The facts a backup of the running machine starts from."""

    disks: tuple[KernelDisk, ...]
    mounts: tuple[Mount, ...]
    swap_files: tuple[bytes, ...]  # paths
    system: dict[str, str] = field(default_factory=dict)
    device_directory: str = "/dev"

    def mounts_of(self, device: tuple[int, int]) -> list[Mount]:
        """Return the mounts of all of the filesystem on `device`, the oldest first."""
        return [mount for mount in self.mounts if mount.device == device and mount.root == b"/"]

    def is_mounted(self, device: tuple[int, int]) -> bool:
        """Return whether the filesystem on `device` is mounted, if only a part of it."""
        return any(mount.device == device for mount in self.mounts)


def read_machine(root: str = "/") -> Machine:
    """Ask the kernel for disks, mounts and swap files; `root` stands for "/" in tests."""
    mounts = read_mounts(root)
    mounted = {mount.device for mount in mounts}
    swap_files, swap_devices = _read_swaps(_read(os.path.join(root, "proc/swaps")))
    disks = []
    for disk in _iter_disks(os.path.join(root, "sys/block"), os.path.join(root, "dev")):
        names = {disk.name, *(partition.name for partition in disk.partitions)}
        if disk.is_removable and not disk.devices() & mounted and not names & swap_devices:
            continue
        disks.append(disk)
    return Machine(tuple(disks), mounts, swap_files, read_system(root), os.path.join(root, "dev"))


def read_mounts(root: str = "/") -> tuple[Mount, ...]:
    """Return the mounts of all namespaces, each place once: those of the first process first,
    which are the machine's own, then those of this process."""
    directory = os.path.join(root, "proc")
    with contextlib.suppress(OSError):
        others = sorted((name for name in os.listdir(directory) if name.isdigit()), key=int)
        found: dict[Mount, None] = {}
        seen: set[str] = set()
        for name in dict.fromkeys(("1", "self", *others)):
            with contextlib.suppress(OSError):  # else it is not ours to see
                namespace = str(Path(directory, name, "ns", "mnt").readlink())
                if namespace in seen:
                    continue
                seen.add(namespace)
            found |= dict.fromkeys(iter_mounts(_read(os.path.join(directory, name, "mountinfo"))))
        return tuple(found)
    return ()


def read_system(root: str = "/") -> dict[str, str]:
    """Return the running operating system's identification: kernel, machine type, os-release."""
    system = {
        "kernel": platform.system(),
        "release": platform.release(),
        "architecture": platform.machine(),
        "hostname": platform.node(),
        "firmware": "uefi" if os.path.isdir(os.path.join(root, "sys/firmware/efi")) else "bios",
    }
    system.update(parse_os_release(_read(os.path.join(root, "etc/os-release"))))
    system.update(parse_machine_id(_read(os.path.join(root, "etc/machine-id"))))
    return system


def parse_os_release(data: bytes) -> dict[str, str]:
    """Return what names the operating system in an os-release file."""
    wanted = {"ID": "os", "VERSION_ID": "os_version", "PRETTY_NAME": "os_name"}
    found = {}
    for line in data.decode("utf-8", "replace").splitlines():
        key, separator, value = line.strip().partition("=")
        if separator and key in wanted:
            found[wanted[key]] = value.strip("\"'")
    return found


def parse_machine_id(data: bytes) -> dict[str, str]:
    """Return what tells an installation from all others, nothing if it has no id yet.

    Source: machine-id(5): 32 hexadecimal digits, which are confidential; who keeps them derives
    a value of his own from them.
    """
    text = data.strip().lower()
    if not re.fullmatch(rb"[0-9a-f]{32}", text):
        return {}
    return {IDENTITY: hmac.new(bytes.fromhex(text.decode()), b"rebuildkit", "sha256").hexdigest()}


def iter_mounts(data: bytes) -> Iterator[Mount]:
    """Yield the mounts that the text of a mountinfo file lists."""
    for line in data.splitlines():
        before, _, after = line.partition(b" - ")
        fields, rest = before.split(b" "), after.split(b" ")
        if len(fields) < 6 or len(rest) < 2:
            continue
        major, _, minor = fields[2].partition(b":")
        yield Mount(
            device=(int(major), int(minor)),
            root=_unescape(fields[3]),
            point=_unescape(fields[4]),
            type=os.fsdecode(rest[0]),
            source=_unescape(rest[1]),
        )


def _read_swaps(data: bytes) -> tuple[tuple[bytes, ...], set[str]]:
    """Return the swap files and the names of the swap devices of a /proc/swaps text."""
    files, devices = [], set()
    for line in data.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 2:
            continue
        path = _unescape(fields[0])
        if fields[1] == b"file":
            files.append(path)
        else:
            devices.add(os.path.basename(os.fsdecode(path)))
    return tuple(files), devices


def _iter_disks(block_directory: str, device_directory: str) -> Iterator[KernelDisk]:
    """Yield the disks worth looking at, by name."""
    try:
        names = sorted(os.listdir(block_directory))
    except OSError:
        return
    for name in names:
        directory = os.path.join(block_directory, name)
        size = _read_integer(directory, "size") * SECTOR_SIZE
        if SKIPPED_DISKS.match(name) or not size or _read_integer(directory, "ro"):
            continue
        yield KernelDisk(
            name=name.replace("!", "/"),
            path=os.path.join(device_directory, name.replace("!", "/")),
            device=_read_device(directory),
            size=size,
            is_removable=_read_integer(directory, "removable") == 1,
            model=_read_text(directory, "device/model"),
            serial=_read_text(directory, "serial") or _read_text(directory, "device/serial"),
            partitions=tuple(_iter_partitions(directory, name)),
        )


def _iter_partitions(directory: str, disk: str) -> Iterator[KernelPartition]:
    """Yield the partitions of the disk whose sysfs directory this is, by number."""
    found = []
    for name in os.listdir(directory):
        own = os.path.join(directory, name)
        if not name.startswith(disk) or not (number := _read_integer(own, "partition")):
            continue
        start, size = _read_integer(own, "start"), _read_integer(own, "size")
        found.append(
            KernelPartition(
                name.replace("!", "/"),
                number,
                _read_device(own),
                start * SECTOR_SIZE,
                size * SECTOR_SIZE,
            )
        )
    yield from sorted(found, key=lambda partition: partition.number)


def _read_device(directory: str) -> tuple[int, int]:
    """Return the device numbers in a sysfs directory."""
    major, _, minor = _read_text(directory, "dev").partition(":")
    return int(major or 0), int(minor or 0)


def _read_integer(directory: str, name: str) -> int:
    """Return the number in a sysfs file, 0 if there is none."""
    text = _read_text(directory, name)
    return int(text) if text.isdigit() else 0


def _read_text(directory: str, name: str) -> str:
    """Return the text of a sysfs file without its padding."""
    return _read(os.path.join(directory, name)).decode("utf-8", "replace").strip("\0 \n")


def _read(path: str) -> bytes:
    """Return the content of a file, empty if it cannot be read."""
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except OSError:
        return b""


def _unescape(text: bytes) -> bytes:
    """Undo the kernel's octal escapes of blanks, newlines and backslashes."""
    return _OCTAL.sub(lambda match: bytes((int(match[1], 8),)), text)
