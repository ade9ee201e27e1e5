# SPDX-License-Identifier: Apache-2.0
"""The EFI image, ISOLINUX's table and the hybrid boot record."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest

from imagebuilder.disc.boot_image import make_efi_image, make_hybrid_mbr, with_boot_info
from imagebuilder.errors import DiscPlanError

FILES = {
    "/EFI/BOOT/BOOTX64.EFI": b"MZ" + bytes(1_000_000),
    "/EFI/BOOT/grubx64.efi": b"MZ" + b"g" * 2_500_000,
    "/boot/grub/grub.cfg": b"boot\n",
}


@pytest.mark.tools
def test_efi_image_is_sound_to_foreign_tools(tmp_path: Path) -> None:
    """fsck.fat finds nothing, and mtools reads every file as it was given."""
    path = tmp_path / "efi.img"
    path.write_bytes(make_efi_image(FILES, created_s=1_700_000_000, volume_id=0x1234ABCD))

    check = subprocess.run(["fsck.fat", "-n", path], capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stdout
    for name, data in FILES.items():
        read = subprocess.run(["mtype", "-i", path, f"::{name}"], capture_output=True, check=True)
        assert read.stdout == data


def test_efi_image_is_reproducible() -> None:
    """Equal files and an equal time give equal bytes."""
    one = make_efi_image(FILES, created_s=1_700_000_000, volume_id=7)
    two = make_efi_image(FILES, created_s=1_700_000_000, volume_id=7)

    assert one == two
    assert one != make_efi_image(FILES, created_s=1_600_000_000, volume_id=7)


@pytest.mark.parametrize("size_mib", [1, 15, 17, 30])
def test_efi_image_of_any_size(size_mib: int, tmp_path: Path) -> None:
    """Images on both sides of the step from FAT12 to FAT16 stay below El Torito's 32 MiB."""
    image = make_efi_image({"/A": bytes(size_mib << 20)}, created_s=0x60000000, volume_id=1)

    assert len(image) < 32 << 20
    assert image[510:512] == b"\x55\xaa"


def test_too_large_efi_image_is_refused() -> None:
    """El Torito cannot describe 32 MiB."""
    with pytest.raises(DiscPlanError, match="El Torito"):
        make_efi_image({"/A": bytes(32 << 20)}, created_s=0, volume_id=1)


def test_boot_information_table() -> None:
    """Places, size and checksum stand at byte 8; all else of isolinux.bin stays."""
    original = bytes(range(256)) * 3 + b"abc"

    patched = with_boot_info(original, descriptor_lba=16, own_lba=0x1234)

    rest = original[64:] + bytes(-len(original[64:]) % 4)
    checksum = sum(struct.unpack(f"<{len(rest) // 4}I", rest)) & 0xFFFFFFFF
    assert struct.unpack_from("<IIII", patched, 8) == (16, 0x1234, len(original), checksum)
    assert patched[24:64] == bytes(40)
    assert (patched[:8], patched[64:]) == (original[:8], original[64:])


@pytest.mark.parametrize("size_mib", [1, 37, 1023, 1024, 1025, 4096])
def test_hybrid_boot_record(size_mib: int) -> None:
    """Code, place of isolinux.bin, the whole image as active partition, the EFI image."""
    code = bytes(range(1, 217)) * 2
    record = make_hybrid_mbr(
        code,
        image_size=size_mib << 20,
        isolinux_lba=100,
        efi_lba=33,
        efi_size=5 << 20,
        disk_id=0xCAFEF00D,
    )

    assert len(record) == 512
    assert record[:432] == code
    assert struct.unpack_from("<QI", record, 432) == (400, 0xCAFEF00D)
    assert record[446] == 0x80
    assert struct.unpack_from("<II", record, 454) == (0, size_mib << 11)
    assert record[466] == 0xEF
    assert struct.unpack_from("<II", record, 470) == (132, 5 << 11)
    last = min(size_mib, 1024) - 1
    assert record[451:454] == bytes((63, 32 | last >> 8 << 6, last & 0xFF))
    assert record[510:] == b"\x55\xaa"
