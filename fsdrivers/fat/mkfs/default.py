# SPDX-License-Identifier: Apache-2.0
"""The description of a new FAT volume that is made after no other.

Cluster sizes are those of Microsoft's tables where the type allows them, else the smallest that it
does; a volume of the size of a floppy disk has the format of one.  Nothing starts from it: its boot
sector asks the BIOS for the next device.

A small FAT32 may have fewer clusters than the specification asks for, as EFI system partitions do.

Source: [fatgen103] "FAT Volume Initialization"; Microsoft KB 140365 for cluster sizes.
"""

from __future__ import annotations

import secrets
from typing import Final, NamedTuple

from fsdrivers.errors import InvalidNameError, UnsupportedError
from fsdrivers.fat import format as fat
from fsdrivers.fat.codepage import DEFAULT_CODE_PAGE
from fsdrivers.fat.description import Template, pack_description
from fsdrivers.fat.geometry import Geometry, geometry_of, resized
from fsdrivers.volume import Plain

MIB: Final = 1 << 20
_OEM_NAME: Final = b"MSWIN4.1"  # what old systems trust most [fatgen103]
_JUMP: Final = {16: b"\xeb\x3c\x90", 32: b"\xeb\x58\x90"}
_CODE: Final = bytes.fromhex("cd18ebfe")  # int 18h; jmp here
_FORBIDDEN_IN_LABEL: Final = frozenset(b'"*+,./:;<=>?[\\]|\x7f') | frozenset(range(32))
# Sizes of clusters of volumes up to so many bytes.
_CLUSTERS: Final = {
    12: ((1 << 62, 512),),
    16: (
        (16 * MIB, 1024), (128 * MIB, 2048), (256 * MIB, 4096), (512 * MIB, 8192),
        (1024 * MIB, 16384), (1 << 62, 32768),
    ),
    32: (
        (260 * MIB, 512), (8192 * MIB, 4096), (16384 * MIB, 8192), (32768 * MIB, 16384),
        (1 << 62, 32768),
    ),
}  # fmt: skip


class _Medium(NamedTuple):
    """What the boot sector says of a kind of disk."""

    media: int = 0xF8
    sectors_per_track: int = 63
    heads: int = 255
    drive: int = 0x80
    root_entries: int = 512
    sectors_per_cluster: int = 0  # 0: by size


_FLOPPIES: Final = {  # by bytes
    720 << 10: _Medium(0xF9, 9, 2, 0, 112, 2),
    1200 << 10: _Medium(0xF9, 15, 2, 0, 224, 1),
    1440 << 10: _Medium(0xF0, 18, 2, 0, 224, 1),
    2880 << 10: _Medium(0xF0, 36, 2, 0, 240, 2),
}


def default_description(
    size: int,
    *,
    kind: str,
    sector_size: int = 512,
    cluster_size: int | None = None,
    label: bytes = b"",
) -> dict[str, Plain]:
    """Return the description of a new volume; see `fsdrivers.volume.CreateDescription`.

    Args:
        size: of the volume, bytes.
        kind: "fat12", "fat16" or "fat32".
        sector_size: of the device, bytes.
        cluster_size: bytes; None for what suits this size.
        label: UTF-8 that fits into 11 bytes of code page 437, in upper case as DOS keeps it.

    Raises: also
        NoSpaceError: the volume is too small for this type.
    """
    bits = int(kind.removeprefix("fat"))
    is_floppy = bits == 12 and sector_size == 512 and size in _FLOPPIES
    medium = _FLOPPIES[size] if is_floppy else _Medium()
    usual = next(found for most, found in _CLUSTERS[bits] if size <= most)
    wanted = cluster_size or medium.sectors_per_cluster * sector_size or max(usual, sector_size)
    if wanted.bit_count() != 1 or not 1 <= wanted // sector_size <= 128:
        raise UnsupportedError(f"FAT clusters of {wanted} bytes on sectors of {sector_size}")
    base = Geometry(
        bits=bits,
        sector_size=sector_size,
        sectors_per_cluster=wanted // sector_size,
        reserved_sectors=32 if bits == 32 else 1,
        fat_count=2,
        fat_sectors=0,
        root_entries=0 if bits == 32 else medium.root_entries,
        total_sectors=0,
    )
    geometry = resized(base, size=size, sector_size=sector_size)
    if geometry.total_sectors < size // sector_size:
        raise UnsupportedError(
            f"{kind} of {size:,} bytes: at most {geometry.size:,} on such sectors"
        )
    if cluster_size is not None and geometry.cluster_size != cluster_size:
        raise UnsupportedError(f"{kind} of {size:,} bytes in clusters of {cluster_size} bytes")
    return pack_description(_template(geometry, medium, size, _label_bytes(label)))


def _label_bytes(label: bytes) -> bytes:
    """Return a label as an entry of the root directory has it, empty for none.

    Raises:
        InvalidNameError: it is too long, or has a character that a label cannot.
    """
    try:
        made = label.decode().upper().encode(DEFAULT_CODE_PAGE)
    except UnicodeError as error:
        raise InvalidNameError("label: code page 437 lacks a character of it") from error
    if len(made) > len(fat.NO_LABEL) or not _FORBIDDEN_IN_LABEL.isdisjoint(made):
        raise InvalidNameError('label: FAT takes 11 characters, and none of "*+,./:;<=>?[\\]|')
    if made.startswith((b" ", bytes([fat.ENTRY_DELETED]))) or made != made.rstrip(b" "):
        raise InvalidNameError("label: FAT takes none that begins or ends with a space")
    return made.ljust(len(fat.NO_LABEL)) if made else b""


def _template(geometry: Geometry, medium: _Medium, size: int, label: bytes) -> Template:
    boot = _boot_sector(geometry, medium, label)
    code = (boot.pack() + _CODE).ljust(fat.BOOT_SIGNATURE_OFFSET, b"\0") + fat.BOOT_SIGNATURE
    reserved = {0: code}
    if isinstance(boot, fat.BootSector32):
        hints = fat.FsInfo(
            fat.FSINFO_LEAD_SIGNATURE, bytes(480), fat.FSINFO_STRUCT_SIGNATURE,
            fat.FSINFO_UNKNOWN, fat.FSINFO_UNKNOWN, bytes(12), fat.FSINFO_TRAIL_SIGNATURE,
        ).pack()  # fmt: skip
        backup = boot.backup_sector
        reserved |= {boot.fsinfo_sector: hints, backup: code, backup + boot.fsinfo_sector: hints}
    bits = geometry.bits
    end = fat.END[bits]
    root_label = None
    if label:
        attribute = fat.Attribute.VOLUME_LABEL.value
        entry = fat.DirectoryEntry(label, attribute, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
        root_label = (0, entry.pack())
    return Template(
        boot=boot,
        geometry=geometry_of(boot),
        device_size=size,
        reserved=reserved,
        heads=(end & ~0xFF | medium.media, end),
        root_label=root_label,
    )


def _boot_sector(
    geometry: Geometry, medium: _Medium, label: bytes
) -> fat.BootSector16 | fat.BootSector32:
    is_32 = geometry.bits == 32
    total, is_small = geometry.total_sectors, geometry.total_sectors <= 0xFFFF and not is_32
    common = (
        _JUMP[32 if is_32 else 16], _OEM_NAME, geometry.sector_size, geometry.sectors_per_cluster,
        geometry.reserved_sectors, geometry.fat_count, geometry.root_entries,
        total if is_small else 0, medium.media, 0 if is_32 else geometry.fat_sectors,
        medium.sectors_per_track, medium.heads, 0, 0 if is_small else total,
    )  # fmt: skip
    identity = (
        medium.drive, 0, fat.EXTENDED_SIGNATURES[-1], secrets.randbits(32), label or fat.NO_LABEL,
        geometry.type.upper().encode().ljust(8),
    )  # fmt: skip
    if not is_32:
        return fat.BootSector16(*common, *identity)
    return fat.BootSector32(
        *common, geometry.fat_sectors, 0, 0, fat.ROOT_CLUSTER, 1, fat.USUAL_BACKUP_SECTOR,
        bytes(12), *identity,
    )  # fmt: skip
