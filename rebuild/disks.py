# SPDX-License-Identifier: Apache-2.0
"""The disks that the running kernel sees, as targets of a restore.

Source: Documentation/ABI/testing/sysfs-block, sysfs-devices.  Reads only /sys,
and the first bytes of each disk through the drivers' own probe.
"""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING

from backup.shared.text import printable, size_text
from fsdrivers.errors import FilesystemError
from rebuild.disc_image import holds_disc
from rebuild.errors import UnsafeTargetError
from rebuild.plan import TargetDisk

if TYPE_CHECKING:
    from fsdrivers.device import Device

SYS_BLOCK = "/sys/block"
# Not disks: loop, ram, compressed ram, optical, floppy, device mapper, md, network block.
IGNORED = re.compile(r"^(loop|ram|zram|sr|fd|dm-|md|nbd|mtd)")


def list_disks(boot_disk: str | None = None, sys_block: str = SYS_BLOCK) -> list[TargetDisk]:
    """Return the disks of the machine in the kernel's order of names.

    The list includes disks that must not be written, with the reason.

    Args:
        boot_disk: kernel name ("sda") of the disk the medium is on.
        sys_block: where to look.
    """
    disks = []
    for name in sorted(os.listdir(sys_block), key=_natural_key):
        base = f"{sys_block}/{name}"
        sectors = int(_read(f"{base}/size") or 0)
        if IGNORED.match(name) or not sectors:  # without sectors: a card reader without a card
            continue
        path = f"/dev/{name}"
        disks.append(
            TargetDisk(
                path=path,
                size=sectors * 512,  # sysfs counts 512-byte sectors whatever the disk's own
                sector_size=int(_read(f"{base}/queue/logical_block_size") or 512),
                model=_model(base),
                serial=_serial(base),
                content=content_of(path),
                refusal=_refusal(path, name == boot_disk, base),
                name=name,
            )
        )
    return disks


def _refusal(path: str, is_boot_disk: bool, base: str) -> str:
    """Return why a disk must not be written; empty when it may be."""
    if is_boot_disk:
        return "this recovery disc is on it"
    if _read(f"{base}/ro") == "1":
        return "it is read-only"
    if holds_disc(path):
        return "another recovery disc is on it"
    try:
        refuse_in_use(path, base)
    except UnsafeTargetError as error:
        return str(error)
    return ""


def disk_of(device: str, sys_block: str = SYS_BLOCK) -> str:
    """Return the kernel name of the disk of `device`, a disk or partition like "/dev/sda1"."""
    name = os.path.basename(os.path.realpath(device))
    if os.path.isdir(f"{sys_block}/{name}"):
        return name
    for disk in os.listdir(sys_block):
        if os.path.isdir(f"{sys_block}/{disk}/{name}"):
            return disk
    return name


def refuse_in_use(path: str, base: str = "") -> None:
    """Refuse a block device or image file that is in use.

    A device is in use if it or a part of it is mounted, swap, or a part of something larger
    such as a RAID or an encrypted disk.

    Args:
        path: of the device or file.
        base: its directory below /sys/block; by default found from `path`.

    Raises:
        UnsafeTargetError: names what is in use.
    """
    if os.path.isfile(path):
        _refuse_file_in_use(path)
        return
    disk = os.path.realpath(path)
    for listing in ("/proc/self/mounts", "/proc/swaps"):
        for line in _read(listing).splitlines():
            used = os.path.realpath(line.split(" ", 1)[0])
            rest = used.removeprefix(disk)
            if used == disk or (used.startswith(disk) and re.fullmatch(r"p?\d+", rest)):
                raise UnsafeTargetError(f"{path} is in use: {used}")
    name = os.path.basename(disk)
    base = base or f"{SYS_BLOCK}/{name}"
    parts = [base]
    with contextlib.suppress(OSError):
        parts += [f"{base}/{entry}" for entry in os.listdir(base) if entry.startswith(name)]
    for part in parts:
        with contextlib.suppress(OSError):
            for holder in os.listdir(f"{part}/holders"):
                raise UnsafeTargetError(f"{path} is in use: {holder} is built on it")


def _refuse_file_in_use(path: str) -> None:
    """Raise UnsafeTargetError if an image file is in use."""
    from fsdrivers.device import FileDevice

    with FileDevice.open(path) as device:
        use = device.find_use()
    if use:
        raise UnsafeTargetError(f"{path} is in use: {use}")


def content_of(path: str) -> str:
    """Return in a few words what is on a disk or image now; empty when it is blank."""
    from fsdrivers import EMPTY, probe
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
            return "" if kind == EMPTY else kind
        parts = [
            f"{entry.number} {_volume_text(Window(device, entry.start, entry.size))}"
            for entry in table.entries
            if not entry.is_extended
        ]
        return f"{table.scheme}: " + (", ".join(parts) or "no partitions")
    except (FilesystemError, OSError):
        return "unreadable"
    finally:
        device.close()


def _volume_text(window: Device) -> str:
    """Return type, label and size of what is in a partition."""
    from fsdrivers import find_driver, probe

    kind, label = "unreadable", ""
    with contextlib.suppress(FilesystemError, OSError):
        kind = probe(window)
        driver = find_driver(kind)
        if driver is not None:
            label = driver.open_volume(window).label_text()
    words = (kind, f'"{printable(label)}"' if label else "", size_text(window.size))
    return " ".join(word for word in words if word)


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
