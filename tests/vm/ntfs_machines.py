# SPDX-License-Identifier: Apache-2.0
"""Machines that start from NTFS: by Microsoft's own boot record, and by GRUB; and one for UEFI.

The volume with the boot record was formatted by Windows; our own BOOTMGR on it says that it
was loaded.  The UEFI disk is laid out as the set-up of Windows 11 does it.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fsdrivers.ntfs.format.records import BootSector
from imagebuilder.environment.build import cache_directory as boot_cache
from imagebuilder.environment.initramfs import Archive
from imagebuilder.environment.packages import find_packages, unpacked_packages
from tests.fsdrivers.ntfs.volumes import (
    get_xattr,
    make_image,
    mounted,
    populate,
    windows_volume,
)
from tests.vm.dos_disks import system_file
from tests.vm.old_pc import GEOMETRY, SECTOR, assembled, start

DIRECTORY = Path(__file__).parent
MIB = 1 << 20
SYSLINUX_MBR = Path("/usr/lib/syslinux/mbr/mbr.bin")
GRUB = Path("/usr/lib/grub/i386-pc")
BOOTMGR_SIZE = 30 * 1024
WINDOWS_SECTORS = 14336  # of the volume that Windows made, its second boot sector included
EXT_START, EXT_SECTORS = 63, 8 * MIB // SECTOR
WINDOWS_START = EXT_START + EXT_SECTORS
MARK = "STARTED-FROM-NTFS"
ATTRIBUTES = "system.ntfs_attrib"
COMPRESSED = 0x800
# A busy host may keep the timer of an emulated machine from ticking when Linux looks at it.
COMMAND_LINE = "console=ttyS0 quiet panic=-1 no_timer_check"
RECOVERY_TYPE = "DE94BBA4-06D1-4D40-A16A-BFD50179D6AC"
WINDOWS_11 = f"""label: gpt
label-id: 3F2504E0-4F89-41D3-9A0C-0305E82C3301
1 : start=2048, size=36MiB, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, \
name="EFI system partition", attrs="GUID:63"
2 : size=16MiB, type=E3C9E316-0B5C-4DB8-817D-F92DF00215AE, \
name="Microsoft reserved partition", attrs="GUID:63"
3 : size=64MiB, type=EBD0A0A2-B9E5-4433-87C0-68B6B72699C7, name="Basic data partition"
4 : size=24MiB, type={RECOVERY_TYPE}, name="Recovery", attrs="RequiredPartition GUID:63"
"""


def make_windows_disk(path: Path, *, is_root_compressed: bool, mbr: bytes = b"") -> None:
    """Make a disk that starts by the boot record of Windows, behind a small ext4.

    `mbr`: code of the master boot record; else that of syslinux, which counts sectors.
    """
    with path.with_suffix(".volume").open("wb") as file:
        file.write(windows_volume().read_bytes()[: WINDOWS_SECTORS * SECTOR])
    volume = Path(file.name)
    with ntfs(volume, "nocompression") as root:
        code = assembled(DIRECTORY / "bootmgr.s")
        (root / "bootmgr").write_bytes(system_file(code, BOOTMGR_SIZE))
        flags = int.from_bytes(get_xattr(os.fsencode(root), ATTRIBUTES) or b"", "little")
        assert flags & COMPRESSED
        if not is_root_compressed:
            os.setxattr(root, ATTRIBUTES, struct.pack("<I", flags & ~COMPRESSED))
    slots = b""
    for status, kind, place, sectors in (
        (0, 0x83, EXT_START, EXT_SECTORS),
        (0x80, 7, WINDOWS_START, WINDOWS_SECTORS),
    ):
        first, last = GEOMETRY.encode(place), GEOMETRY.encode(place + sectors - 1)
        slots += struct.pack("<B3sB3sII", status, first, kind, last, place, sectors)
    code = (mbr or SYSLINUX_MBR.read_bytes()).ljust(440, b"\0")
    with path.open("wb") as file:
        file.write(code + b"NTFS\0\0" + slots.ljust(64, b"\0") + b"\x55\xaa")
        file.seek(WINDOWS_START * SECTOR)
        file.write(volume.read_bytes())
        file.truncate((WINDOWS_START + WINDOWS_SECTORS) * SECTOR)
    volume.unlink()
    ext = ("mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", "-E", f"offset={EXT_START * SECTOR}")
    run(*ext, path, EXT_SECTORS // 2)
    for sector in (0, WINDOWS_SECTORS - 1):
        change_boot_sector(path, WINDOWS_START + sector, hidden_sectors=WINDOWS_START)


def change_boot_sector(path: Path, sector: int, **fields: int) -> None:
    """Change 32-bit fields of an NTFS boot sector on a disk."""
    with path.open("r+b") as file:
        for name, value in fields.items():
            file.seek(sector * SECTOR + BootSector.OFFSETS[name])
            file.write(struct.pack("<I", value))


def boot_sector_of(path: Path) -> tuple[int, BootSector]:
    """Return where on an MBR disk the second partition starts, in sectors, and its boot sector."""
    with path.open("rb") as file:
        file.seek(446 + 16 + 8)
        (place,) = struct.unpack("<I", file.read(4))
        file.seek(place * SECTOR)
        return place, BootSector.unpack(file.read(SECTOR))


@contextmanager
def ntfs(image: Path, options: str = "", offset: int = 0, size: int = 0) -> Iterator[Path]:
    """Mount an NTFS volume by ntfs-3g with all that it can show."""
    shown = "permissions,streams_interface=xattr,efs_raw" + (options and "," + options)
    with tempfile.TemporaryDirectory() as directory:
        limits = ["-o", str(offset), *(["--sizelimit", str(size)] if size else [])]
        device = run("losetup", "-f", "--show", *limits, image).strip()
        try:
            with mounted(Path(device), Path(directory), shown) as root:
                yield root
        finally:
            run("losetup", "-d", device)


def make_grub_disk(path: Path, kernel: Path) -> None:
    """Make a disk whose GRUB finds itself, a kernel and an initrd on NTFS."""
    with path.open("wb") as file:
        file.truncate(96 * MIB)
    run("sfdisk", "-q", path, text="label: dos\n1 : start=2048, type=7, bootable\n")
    volume = path.with_suffix(".volume")
    make_image(volume, 95 * MIB, "-p", 2048, "-H", 255, "-S", 63, "-L", "SYSTEM")
    with ntfs(volume) as root:
        populate(root)
        boot = root / "boot"
        shutil.copytree(GRUB, boot / "grub/i386-pc", ignore=shutil.ignore_patterns("*.img"))
        add_kernel(boot, kernel)
        (boot / "grub/grub.cfg").write_text(
            "serial --unit=0 --speed=115200\nterminal_output serial\n"
            f"linux /boot/vmlinuz {COMMAND_LINE}\n"
            "initrd /boot/initrd.img\nboot\n"
        )
    core = path.with_suffix(".core")
    prefix = ("-p", "(hd0,msdos1)/boot/grub")
    run("grub-mkimage", "-O", "i386-pc", *prefix, "-o", core, "biosdisk", "part_msdos", "ntfs")
    with path.open("r+b") as file:
        file.write((GRUB / "boot.img").read_bytes()[:440])  # which takes sector 1 and goes on
        file.seek(SECTOR)
        file.write(core.read_bytes())
        file.seek(2048 * SECTOR)
        file.write(volume.read_bytes())
    core.unlink()
    volume.unlink()


def add_kernel(directory: Path, kernel: Path) -> None:
    """Put a kernel and an initrd that says `MARK` into a directory, made if it is not there."""
    directory.mkdir(exist_ok=True)
    initrd = Archive()
    initrd.add_base()
    initrd.add_file("init", mark_program(), is_executable=True)
    (directory / "vmlinuz").write_bytes(kernel.read_bytes())
    (directory / "initrd.img").write_bytes(initrd.pack())


def mark_program() -> bytes:
    """Return a program for Linux that says `MARK` and ends the machine, as an ELF file."""
    with tempfile.TemporaryDirectory() as directory:
        made, program = Path(directory, "init.o"), Path(directory, "init")
        run("as", "--64", DIRECTORY / "mark_init.s", "-o", made)
        run("ld", "-static", "-s", made, "-o", program)
        return program.read_bytes()


def efi_loader() -> bytes:
    """Return a GRUB for UEFI that starts the kernel it finds on the volume "Windows"."""
    (package,) = find_packages(["grub-efi-amd64-bin"])
    with (
        unpacked_packages([package], boot_cache() / "packages") as trees,
        tempfile.TemporaryDirectory() as directory,
    ):
        modules = trees[package.name] / "usr/lib/grub/x86_64-efi"
        config, image = Path(directory, "config"), Path(directory, "image")
        config.write_text(
            "search --no-floppy --label Windows --set root\n"
            f"linux /boot/vmlinuz {COMMAND_LINE}\n"
            "initrd /boot/initrd.img\nboot\n"
        )
        names = ("part_gpt", "ntfs", "linux", "search", "search_label", "normal", "configfile")
        options = ("-O", "x86_64-efi", "-d", modules, "-c", config, "-p", "/", "-o", image)
        run("grub-mkimage", *options, *names)
        return image.read_bytes()


def make_windows_11_disk(path: Path, kernel: Path | None = None) -> None:
    """Make a GPT disk with ESP, reserved partition, a rich system volume and a recovery one.

    With a `kernel` it starts, by GRUB in the place of Microsoft's loader.
    """
    loader = efi_loader() if kernel is not None else b"loader" * 25_000
    with path.open("wb") as file:
        file.truncate(144 * MIB)
    run("sfdisk", "-q", path, text=WINDOWS_11)
    starts = [2048, *(2048 + mib * 2048 for mib in (36, 52, 116))]
    run("mkfs.fat", "-F", "32", "-s", "1", "-n", "SYSTEM", "--offset", 2048, path, 36 * 1024)
    esp = f"{path}@@{2048 * SECTOR}"
    run("mmd", "-i", esp, "::/EFI", "::/EFI/Boot", "::/EFI/Microsoft", "::/EFI/Microsoft/Boot")
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "loader")
        file.write_bytes(loader)
        run("mcopy", "-i", esp, file, "::/EFI/Boot/bootx64.efi")
        run("mcopy", "-i", esp, file, "::/EFI/Microsoft/Boot/bootmgfw.efi")
    for place, mib, label in ((starts[2], 64, "Windows"), (starts[3], 24, "Recovery")):
        volume = path.with_suffix(".volume")
        make_image(volume, mib * MIB, "-p", place, "-H", 255, "-S", 63, "-L", label)
        with ntfs(volume) as root:
            if label == "Windows":
                populate(root)
                fill_windows(root)
                if kernel is not None:
                    add_kernel(root / "boot", kernel)
            else:
                (root / "Recovery/WindowsRE").mkdir(parents=True)
                (root / "Recovery/WindowsRE/winre.wim").write_bytes(b"wim" * 100_000)
        with path.open("r+b") as file:
            file.seek(place * SECTOR)
            file.write(volume.read_bytes())
        volume.unlink()


def fill_windows(root: Path) -> None:
    """Add what Windows makes anew itself: a page file of bytes that nobody needs."""
    (root / "pagefile.sys").write_bytes(b"page" * (MIB // 2))
    os.setxattr(root / "pagefile.sys", ATTRIBUTES, struct.pack("<I", 0x26))
    (root / "Windows/System32/config").mkdir(exist_ok=True)
    (root / "Windows/System32/config/SYSTEM").write_bytes(b"regf" + bytes(8188))


def start_linux(path: Path) -> str:
    """Start a disk of ours that has a kernel; return what it said on the serial line."""
    return start(path, port="-serial", memory_mib=512)


def run(*command: object, text: str | None = None) -> str:
    """Run a program; return what it prints."""
    done = subprocess.run(
        [os.fspath(word) if isinstance(word, Path) else str(word) for word in command],
        capture_output=True,
        text=True,
        input=text,
        env={**os.environ, "LC_ALL": "C"},
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout
