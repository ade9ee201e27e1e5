# SPDX-License-Identifier: Apache-2.0
"""What is on a device, by its signatures: one word, a few small reads, no driver imported.

Containers (RAID, LVM, encryption) come first: what they hold may show through.  Then the drivers,
but last those whose filesystem leaves its start to others.  A probe that says "ext4" promises that
the ext driver is the one to ask, not that the volume is sound.

The signatures are in `fsdrivers.signatures`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fsdrivers import registry, signatures
from fsdrivers.device import Device, MemoryDevice
from fsdrivers.errors import DeviceError
from fsdrivers.losses import read_where_possible
from fsdrivers.registry import EMPTY, UNKNOWN, Driver
from fsdrivers.signatures import (
    CONTAINERS,
    HEAD_SIZE,
    LIKE_FAT,
    OTHERS,
    RAID_AT_END,
    Signature,
)

SAMPLE_SIZE = 1 << 20  # bytes at either end that are zero on an empty device

CONTAINER_REASONS = {
    "lvm2": "it is an LVM physical volume",
    "mdraid": "it is a member of a Linux RAID array",
    "dmraid": "it is a member of a firmware RAID array",
    "luks": "it is encrypted with LUKS",
    "bitlocker": "it is encrypted with BitLocker",
    "bcache": "it belongs to bcache",
}


def probe(device: Device) -> str:
    """Return what is on `device`.

    One of the drivers' types ("ext4", "fat32", "swap"), something that is known by name only
    ("lvm2", "luks", "xfs"), "empty" if both its ends are zeros, or "unknown".

    Sectors that cannot be read count as zeros: nothing is recognised by them.
    """
    head = read_where_possible(device, 0, min(HEAD_SIZE, device.size))
    found = (
        _find(device, head, CONTAINERS)
        or _find(device, head, RAID_AT_END)
        or _find(device, head, LIKE_FAT)
        or _ask(device, head, is_start_free=False)
        or _find(device, head, OTHERS)
        or _zfs(device)
        or _ask(device, head, is_start_free=True)
    )
    return found or (EMPTY if _is_empty(device, head) else UNKNOWN)


def reason_against(kind: str) -> str:
    """Say why what a probe found is not for any driver, as the end of a sentence."""
    if kind == UNKNOWN:
        return "its content is of no known type"
    return CONTAINER_REASONS.get(kind, f"it holds {kind}, which has no driver yet")


def left_over(device: Device, own: Driver | None, code: Iterable[bytes] = ()) -> Iterator[str]:
    """Yield what other signatures say a device is, each with its place as part of a sentence.

    Args:
        device: that holds a volume.
        own: its driver; None for a device on which nothing should be.
        code: what belongs at the start of the volume, and may look like anything.

    Raises:
        DeviceError: what may hold one cannot be read.
    """
    starts = [start for start in code if start]
    found: dict[str, str] = {}
    for signature, place in signatures.find(device):
        if not any(start.startswith(signature.magic, place) for start in starts):
            found.setdefault(signature.type, f"{signature.type} at byte {place}")
    yield from found.values()
    head = device.read(0, min(HEAD_SIZE, device.size))
    for driver in registry.DRIVERS:
        kind = driver.probe(device, head) if driver is not own else ""
        if kind and not any(driver.probe(MemoryDevice.of(start), start) for start in starts):
            yield f"{kind} at its start"


def _ask(device: Device, head: bytes, *, is_start_free: bool) -> str:
    """Return what the first driver that knows it says, or an empty string."""
    asked = (driver for driver in registry.DRIVERS if driver.is_start_free == is_start_free)
    return next(filter(None, (driver.probe(device, head) for driver in asked)), "")


def _find(device: Device, head: bytes, rows: tuple[Signature, ...]) -> str:
    """Return the type of the first of `rows` that is there, or an empty string."""
    for signature in rows:
        magic, place = signature.magic, signature.place(device.size)
        if signature.position < 0 and place >= len(head):
            found = read_where_possible(device, place, len(magic))
        elif signature.position >= 0:
            found = head[place : place + len(magic)] if place >= 0 else b""
        else:
            continue
        if found == magic:
            return signature.type
    return ""


def _zfs(device: Device) -> str:
    """Recognise a ZFS label by its ring of uberblocks.  Source: ZFS on-disk format, 1.3.2."""
    start, length = 128 << 10, 128 << 10
    if device.size < start + length:
        return ""
    ring = read_where_possible(device, start, length)
    magics = (bytes.fromhex("0cb1ba0000000000"), bytes.fromhex("0000000000bab10c"))
    return "zfs" if sum(ring[at : at + 8] in magics for at in range(0, length, 1024)) > 3 else ""


def _is_empty(device: Device, head: bytes) -> bool:
    """Return whether the first and last MiB are zeros."""
    if any(head):
        return False
    length = min(SAMPLE_SIZE, device.size)
    try:
        return not any(
            device.read(position, length).strip(b"\0") for position in (0, device.size - length)
        )
    except DeviceError:
        return False
