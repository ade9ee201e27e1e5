# SPDX-License-Identifier: Apache-2.0
"""The disks that the running kernel sees, as targets of a restore.

Source: Documentation/ABI/testing/sysfs-block, sysfs-devices.  Reads /sys only, and the first
bytes of each disk through the drivers' own probe.
"""

from __future__ import annotations

import contextlib
import os
import re

from fsdrivers.errors import FilesystemError
from rebuild.errors import UnsafeTargetError
from rebuild.plan import TargetDisk

SYS_BLOCK = "/sys/block"
# Not disks: loop, ram, compressed ram, optical, floppy, device mapper, md, network block.
IGNORED = re.compile(r"^(loop|ram|zram|sr|fd|dm-|md|nbd|mtd)")


def list_disks(boot_disk: str | None = None, sys_block: str = SYS_BLOCK) -> list[TargetDisk]:
    """Return the disks that may be written, in the kernel's order of names.

    Args:
        boot_disk: kernel name ("sda") of the disk the medium is on; never listed.
        sys_block: where to look.
    """
    disks = []
    for name in sorted(os.listdir(sys_block), key=_natural_key):
        if IGNORED.match(name) or name == boot_disk:
            continue
        sectors = int(_read(f"{sys_block}/{name}/size") or 0)
        if not sectors or _read(f"{sys_block}/{name}/ro") == "1":
            continue
        path = f"/dev/{name}"
        disks.append(
            TargetDisk(
                path=path,
                size=sectors * 512,  # sysfs counts 512-byte sectors whatever the disk's own
                sector_size=int(_read(f"{sys_block}/{name}/queue/logical_block_size") or 512),
                model=_model(f"{sys_block}/{name}"),
                serial=_serial(f"{sys_block}/{name}"),
                content=content_of(path),
            )
        )
    return disks


def disk_of(device: str, sys_block: str = SYS_BLOCK) -> str:
    """Return the kernel name of the disk that `device` ("/dev/sda1", "/dev/sr0") is or is on."""
    name = os.path.basename(os.path.realpath(device))
    if os.path.isdir(f"{sys_block}/{name}"):
        return name
    for disk in os.listdir(sys_block):
        if os.path.isdir(f"{sys_block}/{disk}/{name}"):
            return disk
    return name


def refuse_mounted(path: str) -> None:
    """Refuse a block device that is in use: mounted, or holding something mounted, or swap.

    Raises:
        UnsafeTargetError: names what is in use.
    """
    disk = os.path.realpath(path)
    for listing in ("/proc/self/mounts", "/proc/swaps"):
        for line in _read(listing).splitlines():
            used = os.path.realpath(line.split(" ", 1)[0])
            rest = used.removeprefix(disk)
            if used == disk or (used.startswith(disk) and re.fullmatch(r"p?\d+", rest)):
                raise UnsafeTargetError(f"{path} is in use: {used}")


def content_of(path: str) -> str:
    """Return in a few words what is on a disk or image now; empty when it is blank."""
    from fsdrivers import open_volume, probe
    from fsdrivers.device import FileDevice, Window
    from fsdrivers.partitions import read_table

    try:
        device = FileDevice.open(path)
    except OSError:
        return "unreadable"
    try:
        table = read_table(device)
        if table is None or table.scheme == "none":
            kind = probe(device)
            return "" if kind == "empty" else kind
        words = []
        for entry in table.entries:
            if entry.is_extended:
                continue
            window = Window(device, entry.start, entry.size)
            kind = probe(window)
            label = ""
            if kind.startswith(("ext", "fat")):
                with contextlib.suppress(FilesystemError, OSError):
                    label = open_volume(window).label.decode("utf-8", "replace")
            words.append(f"{kind} {label}".strip())
        return f"{table.scheme}: " + ", ".join(words)
    except (FilesystemError, OSError):
        return "unreadable"
    finally:
        device.close()


def _natural_key(name: str) -> list[tuple[int, str]]:
    return [(len(part), part) for part in re.findall(r"\d+|\D+", name)]


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip().strip("\0")
    except OSError:
        return ""


def _model(base: str) -> str:
    words = [_read(f"{base}/device/vendor"), _read(f"{base}/device/model")]
    vendor = words[0] if not words[0].startswith("0x") and words[0] != "ATA" else ""
    return " ".join(word for word in (vendor, words[1]) if word)


def _serial(base: str) -> str:
    """Return the serial number: virtio, NVMe, then the SCSI unit serial number page 0x80."""
    for place in ("serial", "device/serial"):
        if text := _read(f"{base}/{place}"):
            return text
    try:
        with open(f"{base}/device/vpd_pg80", "rb") as file:
            page = file.read()
    except OSError:
        return ""
    # SPC-4 7.8.13: two bytes of length at 2, the number from 4, padded with blanks.
    return page[4 : 4 + int.from_bytes(page[2:4], "big")].decode("ascii", "replace").strip()
