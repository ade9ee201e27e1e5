# SPDX-License-Identifier: Apache-2.0
"""What firmware needs to start the disc: the EFI system image, ISOLINUX's table, a hybrid MBR.

Three ways lead to the same kernel:

* BIOS from CD: El Torito without emulation loads isolinux.bin, which finds itself through the
  boot information table inside it.
* UEFI from CD: El Torito's EFI entry is a FAT image with Microsoft-signed shim and Debian-signed
  GRUB, which reads its configuration from the ISO.
* the same file on a USB stick: the first sector is a master boot record whose code loads
  isolinux.bin, and whose second partition is the FAT image.

Not done: a GPT beside the MBR.  Firmware of either kind starts the stick without one.

Source: El Torito 1.0; ISOLINUX doc/isolinux.txt, isohybrid.txt (syslinux 6.04); UEFI 2.10 5.2,
13.3; Debian grub2 debian/build-efi-images (where gcdx64.efi looks for its configuration).
"""

from __future__ import annotations

import datetime
import struct
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from imagebuilder.errors import BuildHostError, DiscPlanError

ISO_SECTOR = 2048  # bytes
DISK_SECTOR = 512  # bytes

# Heads and sectors of the pretended geometry: cylinders of exactly 1 MiB.
HEADS = 64
SECTORS_PER_TRACK = 32
CYLINDER = HEADS * SECTORS_PER_TRACK * DISK_SECTOR  # bytes

EFI_IMAGE_LIMIT = 32 << 20  # bytes; El Torito counts 512-byte sectors in 16 bits
_EFI_IMAGE_STEP = 1 << 20  # bytes
_EFI_IMAGE_MARGIN = 256 << 10  # bytes for FATs, directories, cluster ends
_FAT12_LIMIT = 16 << 20  # bytes; pyfatfs makes sound FAT12 up to here

# [FAT] fatgen103: from BPB_BytsPerSec at 0Bh, with BPB_SecPerClus skipped, to BPB_FATSz16; then
# BPB_SecPerTrk and BPB_NumHeads at 18h.
_FAT_PLACES = struct.Struct("<HxHBHHBH")
_FAT_PLACES_OFFSET = 0x0B
_GEOMETRY = struct.Struct("<HH")
_GEOMETRY_OFFSET = 0x18

_BOOT_INFO_OFFSET = 8  # bytes into isolinux.bin
_BOOT_INFO = struct.Struct("<IIII40x")  # LBA of descriptor, LBA of file, file size, checksum
_BOOT_INFO_END = _BOOT_INFO_OFFSET + _BOOT_INFO.size

_MBR_CODE_SIZE = 432
_MBR_LOCATION = struct.Struct("<QI")  # 512-byte LBA of isolinux.bin, disk id
_PARTITION = struct.Struct("<B3sB3sII")  # status, first CHS, type, last CHS, first LBA, sectors
_ACTIVE = 0x80
_TYPE_EMPTY = 0x00  # "hidden" from partitioning tools and Windows, active for firmware
_TYPE_EFI = 0xEF


def make_efi_image(files: Mapping[str, bytes], *, created_s: int, volume_id: int) -> bytes:
    """Return a FAT image holding `files` (absolute path -> content).

    Args:
        files: what goes into it; directories appear by themselves.
        created_s: time stamp of everything in it, seconds since 1970.
        volume_id: serial number of the volume, 32 bits.

    Raises:
        DiscPlanError: it would be too large for El Torito.
        BuildHostError: pyfatfs is not installed.
    """
    size = sum(len(data) for data in files.values()) + _EFI_IMAGE_MARGIN
    size += -size % _EFI_IMAGE_STEP
    if size >= EFI_IMAGE_LIMIT:
        raise DiscPlanError(f"the EFI image needs {size >> 20} MiB, and El Torito allows 32")
    with warnings.catch_warnings():
        # The `fs` package below pyfatfs warns about pkg_resources when it is imported.
        warnings.simplefilter("ignore")
        try:
            from pyfatfs.PyFat import PyFat
            from pyfatfs.PyFatFS import PyFatFS
        except ImportError as error:
            raise BuildHostError(
                f"building discs needs more Python packages ({error}): "
                "install rebuildkit with them, `pip install '.[image]'`"
            ) from error
    with tempfile.NamedTemporaryFile(suffix=".fat") as file, _fat_clock(created_s):
        fat = PyFat()
        fat.mkfs(
            file.name,
            PyFat.FAT_TYPE_FAT12 if size <= _FAT12_LIMIT else PyFat.FAT_TYPE_FAT16,
            size=size,
            label="REBUILD",  # pyfatfs cuts it to 8 characters in the root directory
            volume_id=volume_id or 1,
        )
        fat.close()
        volume = PyFatFS(file.name, utc=True)
        for path, data in files.items():
            volume.makedirs(path.rpartition("/")[0], recreate=True)
            with volume.openbin(path, "w") as target:
                target.write(data)
        volume.close()
        image = bytearray(Path(file.name).read_bytes())
    _repair(image)
    return bytes(image)


def _repair(image: bytearray) -> None:
    """Put right what pyfatfs leaves: no geometry, and a wrong second entry in each FAT.

    mtools refuses both; firmware does not care.
    """
    _GEOMETRY.pack_into(image, _GEOMETRY_OFFSET, SECTORS_PER_TRACK, HEADS)
    _, reserved, fat_count, _, _, media, fat_sectors = _FAT_PLACES.unpack_from(
        image, _FAT_PLACES_OFFSET
    )
    for number in range(fat_count):
        start = (reserved + number * fat_sectors) * DISK_SECTOR
        image[start : start + 3] = bytes((media, 0xFF, 0xFF))


@contextmanager
def _fat_clock(seconds: int) -> Iterator[None]:
    """Make pyfatfs stamp everything with one time, in UTC."""
    from pyfatfs import FATDirectoryEntry, PyFatFS
    from pyfatfs.DosDateTime import DosDateTime

    class FixedTime(DosDateTime):  # type: ignore[misc]  # pyfatfs has no types
        """The clock that stands still."""

        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            moment: datetime.datetime = cls.fromtimestamp(seconds, tz or datetime.UTC)
            return moment

    modules = (FATDirectoryEntry, PyFatFS)
    try:
        for module in modules:
            module.DosDateTime = FixedTime
        yield
    finally:
        for module in modules:
            module.DosDateTime = DosDateTime


def with_boot_info(isolinux: bytes, *, descriptor_lba: int, own_lba: int) -> bytes:
    """Return isolinux.bin with the table that tells it where it lies.

    `descriptor_lba` is the primary volume descriptor's, both in 2048-byte sectors.
    Source: ISOLINUX, xorriso `-boot-info-table`: the checksum is the sum of all 32-bit words
    behind the table.
    """
    rest = isolinux[_BOOT_INFO_END:]
    rest += bytes(-len(rest) % 4)
    checksum = sum(struct.unpack(f"<{len(rest) // 4}I", rest)) & 0xFFFFFFFF
    table = _BOOT_INFO.pack(descriptor_lba, own_lba, len(isolinux), checksum)
    return isolinux[:_BOOT_INFO_OFFSET] + table + isolinux[_BOOT_INFO_END:]


def make_hybrid_mbr(
    code: bytes, *, image_size: int, isolinux_lba: int, efi_lba: int, efi_size: int, disk_id: int
) -> bytes:
    """Return the first 512 bytes of a disc that also starts as a USB stick.

    Args:
        code: syslinux's isohdpfx.bin, 432 bytes.
        image_size: bytes of the whole image, a multiple of 1 MiB.
        isolinux_lba: position of isolinux.bin, in 2048-byte sectors.
        efi_lba: position of the EFI image, in 2048-byte sectors.
        efi_size: bytes of the EFI image.
        disk_id: 32 bits.
    """
    assert len(code) == _MBR_CODE_SIZE, "isohdpfx.bin of another syslinux"
    assert image_size % CYLINDER == 0, "an image of whole cylinders"
    last_cylinder = min(image_size // CYLINDER, 1024) - 1
    last_chs = bytes((HEADS - 1, SECTORS_PER_TRACK | last_cylinder >> 8 << 6, last_cylinder & 0xFF))
    per_iso_sector = ISO_SECTOR // DISK_SECTOR
    whole = _PARTITION.pack(
        _ACTIVE, b"\0\1\0", _TYPE_EMPTY, last_chs, 0, min(image_size // DISK_SECTOR, 0xFFFFFFFF)
    )
    efi = _PARTITION.pack(
        0,
        b"\xfe\xff\xff",
        _TYPE_EFI,
        b"\xfe\xff\xff",
        efi_lba * per_iso_sector,
        efi_size // DISK_SECTOR,
    )
    location = _MBR_LOCATION.pack(isolinux_lba * per_iso_sector, disk_id)
    reserved = bytes(2)
    sector = code + location + reserved + whole + efi + bytes(2 * _PARTITION.size) + b"\x55\xaa"
    assert len(sector) == DISK_SECTOR
    return sector
