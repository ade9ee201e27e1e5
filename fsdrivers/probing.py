# SPDX-License-Identifier: Apache-2.0
"""What is on a device, by its signatures: one word, a few small reads, no driver imported.

Containers (RAID, LVM, encryption) come first: what they hold may show through.  Then the drivers,
but last those whose filesystem leaves its start to others.  A probe that says "ext4" promises that
the ext driver is the one to ask, not that the volume is sound.

Source: each row of the tables names the header or document that defines the signature.
"""

from __future__ import annotations

from typing import NamedTuple

from fsdrivers import registry
from fsdrivers.device import Device
from fsdrivers.registry import EMPTY, UNKNOWN

HEAD_SIZE = 0x11000  # bytes of the start that hold all signatures but those of ZFS
SAMPLE_SIZE = 1 << 20  # bytes at either end that are zero on an empty device


class Signature(NamedTuple):
    """`magic` stands at byte `position`, from the end of the device if negative."""

    type: str
    position: int
    magic: bytes


_MD_MAGIC = bytes.fromhex("fc4e2ba9")  # [linux] include/uapi/linux/raid/md_p.h, MD_SB_MAGIC
_BCACHE = bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81")  # [linux] bcache.h, bcache_magic
_BCACHEFS = bytes.fromhex("c68573f666ce90a9d96a60cf803df7ef")  # [linux] bcachefs_format.h
_BITLOCKER_TO_GO = bytes.fromhex("3bd66749292ed84a8399f6a339e3d001")  # libbde documentation, 5.2

CONTAINERS = (
    Signature("luks", 0, b"LUKS\xba\xbe"),  # LUKS1 on-disk format 1.2.3; LUKS2 1.1.0
    *(Signature("lvm2", sector * 512 + 24, b"LVM2 001") for sector in range(4)),  # lvm2 label.h
    Signature("mdraid", 0, _MD_MAGIC),  # 1.1
    Signature("mdraid", 4096, _MD_MAGIC),  # 1.2
    Signature("bcache", 4096 + 24, _BCACHE),
    Signature("bcachefs", 4096 + 24, _BCACHEFS),
    Signature("dmraid", -1024, b"Intel Raid ISM Cfg Sig. "),  # dmraid isw.h
    Signature("dmraid", -1024, b"NVIDIA"),  # dmraid nv.h
    Signature("dmraid", -512, bytes.fromhex("de11de11")),  # SNIA DDF 2.0, 5.3
    Signature("dmraid", -63 * 512, b"Promise Technology, Inc."),  # dmraid pdc.h
    Signature("bitlocker", 3, b"-FVE-FS-"),
    Signature("bitlocker", 424, _BITLOCKER_TO_GO),
)

CONTAINER_REASONS = {
    "lvm2": "it is an LVM physical volume",
    "mdraid": "it is a member of a Linux RAID array",
    "dmraid": "it is a member of a firmware RAID array",
    "luks": "it is encrypted with LUKS",
    "bitlocker": "it is encrypted with BitLocker",
    "bcache": "it belongs to bcache",
}

LIKE_FAT = (  # their boot sectors are; no driver yet
    Signature("exfat", 3, b"EXFAT   "),  # [exFAT] 3.1.2
    Signature("refs", 3, b"ReFS\0\0\0\0"),
    Signature("hpfs", 16 * 512, bytes.fromhex("49e895f9c5e953fa")),  # [linux] fs/hpfs/hpfs.h
)

OTHERS = (  # no driver yet
    Signature("btrfs", 0x10040, b"_BHRfS_M"),  # [linux] btrfs_tree.h
    Signature("xfs", 0, b"XFSB"),  # [linux] fs/xfs/libxfs/xfs_format.h
    Signature("f2fs", 1024, bytes.fromhex("1020f5f2")),  # [linux] f2fs_fs.h
    Signature("erofs", 1024, bytes.fromhex("e2e1f5e0")),  # [linux] fs/erofs/erofs_fs.h
    Signature("reiserfs", 0x10034, b"ReIsEr"),  # [linux] fs/reiserfs/reiserfs.h, 3.5 and 3.6
    Signature("reiserfs", 0x2034, b"ReIsEr"),
    Signature("reiser4", 0x10000, b"ReIsEr4"),
    Signature("jfs", 0x8000, b"JFS1"),  # [linux] fs/jfs/jfs_superblock.h
    Signature("nilfs2", 1024 + 6, b"\x34\x34"),  # [linux] nilfs2_ondisk.h
    Signature("squashfs", 0, b"hsqs"),  # [linux] fs/squashfs/squashfs_fs.h
    Signature("apfs", 32, b"NXSB"),  # Apple File System Reference
    Signature("hfsplus", 1024, b"H+"),  # Apple TN1150
    Signature("hfsplus", 1024, b"HX"),
    Signature("hfs", 1024, b"BD"),
    Signature("udf", 0x8001, b"BEA01"),  # ECMA-167, part 2
)


def probe(device: Device) -> str:
    """Return what is on `device`.

    One of the drivers' types ("ext4", "fat32", "swap"), something that is known by name only
    ("lvm2", "luks", "xfs"), "empty" if both its ends are zeros, or "unknown".

    Raises:
        DeviceError: one of its ends cannot be read.
    """
    head = device.read(0, min(HEAD_SIZE, device.size))
    found = (
        _find(device, head, CONTAINERS)
        or _mdraid_at_end(device)
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


def _ask(device: Device, head: bytes, *, is_start_free: bool) -> str:
    """Return what the first driver that knows it says, or an empty string."""
    asked = (driver for driver in registry.DRIVERS if driver.is_start_free == is_start_free)
    return next(filter(None, (driver.probe(device, head) for driver in asked)), "")


def _find(device: Device, head: bytes, signatures: tuple[Signature, ...]) -> str:
    """Return the type of the first of `signatures` that is there, or an empty string."""
    for signature in signatures:
        magic, position = signature.magic, signature.position
        if position >= 0:
            found = head[position : position + len(magic)]
        elif device.size + position >= len(head):
            found = device.read(device.size + position, len(magic))
        else:
            continue
        if found == magic:
            return signature.type
    return ""


def _mdraid_at_end(device: Device) -> str:
    """Find RAID superblocks 0.90 and 1.0.  Source: [linux] md_p.h, drivers/md/md.c."""
    sectors = device.size // 512
    positions = [
        (sectors & ~127) * 512 - 65536,  # 0.90: the last whole 64 KiB
        ((sectors - 16) & ~7) * 512,  # 1.0: at least 8 KiB before the end, 4 KiB aligned
    ]
    for position in positions:
        if HEAD_SIZE <= position <= device.size - 512:
            # 0.90 is stored in the byte order of its machine.
            magic = device.read(position, len(_MD_MAGIC))
            if magic in (_MD_MAGIC, _MD_MAGIC[::-1]):
                return "mdraid"
    return ""


def _zfs(device: Device) -> str:
    """Recognise a ZFS label by its ring of uberblocks.  Source: ZFS on-disk format, 1.3.2."""
    start, length = 128 << 10, 128 << 10
    if device.size < start + length:
        return ""
    ring = device.read(start, length)
    magics = (bytes.fromhex("0cb1ba0000000000"), bytes.fromhex("0000000000bab10c"))
    return "zfs" if sum(ring[at : at + 8] in magics for at in range(0, length, 1024)) > 3 else ""


def _is_empty(device: Device, head: bytes) -> bool:
    """Return whether the first and last MiB are zeros."""
    if any(head):
        return False
    length = min(SAMPLE_SIZE, device.size)
    return not any(
        device.read(position, length).strip(b"\0") for position in (0, device.size - length)
    )
