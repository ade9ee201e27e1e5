# SPDX-License-Identifier: Apache-2.0
"""DOS and syslinux start after recovery: what finds its files by their places finds them.

Each disk goes through the whole main job with the real commands: backup into a store, restore
from it to an image.
"""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fsdrivers.fat.format import BootSector16, DirectoryEntry
from tests.scenario import PASSWORD, USER, must, rebuildkit
from tests.vm.dos_disks import (
    DOS_SECTORS,
    DOS_START,
    FILE,
    STARTED,
    fix,
    make_disk,
    open_dos,
)
from tests.vm.old_pc import SECTOR, start

pytestmark = [pytest.mark.vm, pytest.mark.tools]

MIB = 1 << 20
PROMPT = "boot: "  # of syslinux, after it has found all its parts
SWAP = random.Random(9).randbytes(MIB)
GARBAGE = b"\xa5" * MIB


@pytest.fixture(scope="module", params=[12, 16, 32], ids=["fat12", "fat16", "fat32"])
def bits(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


@pytest.fixture(scope="module")
def scattered(bits: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk with a DOS whose files lie in pieces anywhere, and with a swap file."""
    path = tmp_path_factory.mktemp("dos") / "scattered.img"
    make_disk(path, bits)
    editor, device = open_dos(path)
    number = editor.create(1, b"WIN386.SWP", FILE).number
    editor.write(number, 0, SWAP)
    editor.close()
    device.close()
    return path


@pytest.fixture(scope="module")
def sound(scattered: Path) -> Path:
    """The same disk with everything in its place, as a running machine has it."""
    path = scattered.with_name("sound.img")
    shutil.copy(scattered, path)
    fix(path)
    return path


@pytest.fixture(scope="module")
def store(scattered: Path, sound: Path) -> tuple[str | Path, ...]:
    """A store with a backup of both; returns the options that name it."""
    password = scattered.with_name("password")
    password.write_text(PASSWORD)
    credentials = ("--user", USER, "--password-file", password)
    place = scattered.with_name("store")
    must(rebuildkit("register", "--store", place, *credentials))
    for disk in (scattered, sound):
        made = rebuildkit(
            "backup", "--store", place, *credentials, "--machine", disk.stem, "--disk", disk
        )
        must(made)
    return ("--from", place, *credentials)


def restore(store: tuple[str | Path, ...], machine: str, image: Path, *options: str) -> Path:
    must(
        rebuildkit(
            "restore", *store, "--machine", machine, "--disk", image, "--yes", "--verify", *options
        )
    )
    return image


def test_starts_in_its_place_only(scattered: Path, sound: Path) -> None:
    """Files anywhere do not start; moved into their places they do."""
    assert start(scattered) == "NO-SYSTEM"
    assert start(sound) == STARTED


@pytest.mark.parametrize("machine", ["sound", "scattered"])
def test_recovered_to_the_same_place(
    store: tuple[str | Path, ...], machine: str, tmp_path: Path
) -> None:
    """The recovered disk starts, even where the files of the old one were in no order."""
    assert start(restore(store, machine, tmp_path / "new.img")) == STARTED


@pytest.mark.parametrize(("size", "grow"), [("200M", 1), ("600M", 1), ("600M", 2)])
def test_recovered_to_another_disk(
    store: tuple[str | Path, ...], size: str, grow: int, tmp_path: Path
) -> None:
    """On a larger disk DOS lies elsewhere or is larger, the BIOS counts other heads; it starts."""
    options = ("--disk-size", size, "--grow", str(grow))
    image = restore(store, "sound", tmp_path / "new.img", *options)
    editor, device = open_dos(image)
    boot = editor.template.boot
    device.close()

    assert boot.hidden_sectors > DOS_START
    assert (boot.total_sectors > 2 * DOS_SECTORS[editor.geometry.bits]) is (grow == 2)
    assert boot.heads == (16 if size == "200M" else 32)
    assert start(image) == STARTED
    assert start(image, None) == STARTED, "also where the BIOS follows the table"


def test_swap_file_comes_back_blank(
    store: tuple[str | Path, ...], sound: Path, tmp_path: Path
) -> None:
    """A swap file is not in the backup; on a disk full of old bytes it comes back as zeros."""
    image = tmp_path / "used.img"
    with image.open("wb") as file:
        for _ in range(-(-sound.stat().st_size // MIB)):
            file.write(GARBAGE)
        file.truncate(sound.stat().st_size)
    restore(store, "sound", image)
    editor, device = open_dos(image)
    node = editor.lookup(1, b"win386.swp")
    content = editor.read(node, 0, node.size)
    device.close()
    packs = list(sound.with_name("store").glob("users/*/packs/*/*"))

    assert (node.size, node.flags) == (MIB, 0x27)
    assert content == bytes(MIB)
    assert 0 < sum(pack.stat().st_size for pack in packs) < MIB


def patched(path: Path, position: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        file.write(data)


def swap_entries(path: Path) -> None:
    """Exchange the first two entries of the root directory."""
    editor, device = open_dos(path)
    root = editor.session.directory(1).position_of(0)
    first, second = editor.device.read(root, 32), editor.device.read(root + 32, 32)
    editor.device.write(root, second + first)
    device.close()


def move_io(path: Path) -> None:
    """Move IO.SYS, whole, to other clusters."""
    rewrite_io(path, 0)


def break_io(path: Path) -> None:
    """Leave the first half of IO.SYS where it is and move the rest."""
    rewrite_io(path, 4096)


def rewrite_io(path: Path, kept: int) -> None:
    editor, device = open_dos(path)
    node = editor.lookup(1, b"IO.SYS")
    data = editor.read(node, 0, node.size)
    editor.truncate(node.number, kept)
    filler = editor.create(1, b"FILLER", FILE)
    editor.session.fats.next_free = 2
    editor.write(filler.number, 0, b"z" * 4096)
    editor.write(node.number, kept, data[kept:])
    editor.close()
    device.close()


def move_msdos(path: Path) -> None:
    """Move MSDOS.SYS away from behind IO.SYS."""
    editor, device = open_dos(path)
    node = editor.lookup(1, b"MSDOS.SYS")
    data = editor.read(node, 0, node.size)
    place = editor.extents(node)[0].position
    editor.truncate(node.number, 0)
    editor.write(editor.create(1, b"FILLER", FILE).number, 0, b"z" * 4096)
    editor.write(node.number, 0, data)
    editor.device.write(place, b"z" * 512)
    editor.close()
    device.close()


def shift_hidden_sectors(path: Path) -> None:
    """Have the boot sector think that it is elsewhere."""
    at = DOS_START * SECTOR + BootSector16.OFFSETS["hidden_sectors"]
    patched(path, at, struct.pack("<I", DOS_START + 1))


def wrong_heads(path: Path) -> None:
    """Have the boot sector count other heads than the BIOS."""
    patched(path, DOS_START * SECTOR + BootSector16.OFFSETS["heads"], struct.pack("<H", 255))


def clear_active(path: Path) -> None:
    """Take the active flag away."""
    patched(path, 446 + 16, b"\0")


def wrong_chs(path: Path) -> None:
    """Have the partition table lead to another track."""
    patched(path, 446 + 16 + 1, b"\x01\x01\x00")


BREAKS: list[Callable[[Path], None]] = [
    swap_entries,
    move_io,
    break_io,
    move_msdos,
    shift_hidden_sectors,
    wrong_heads,
    clear_active,
    wrong_chs,
]


@pytest.mark.parametrize("damage", BREAKS, ids=lambda damage: damage.__name__)
def test_each_condition_counts(sound: Path, damage: Callable[[Path], None], tmp_path: Path) -> None:
    """With any one condition broken the disk does not start; so the tests above mean something."""
    disk = tmp_path / "broken.img"
    shutil.copy(sound, disk)
    damage(disk)

    assert start(disk) != STARTED


@pytest.mark.parametrize(
    "damage", [swap_entries, move_io, break_io, move_msdos, shift_hidden_sectors, clear_active]
)
def test_fix_dos(sound: Path, damage: Callable[[Path], None], tmp_path: Path) -> None:
    """`fs fix-dos` makes the broken disk start again, and says what it did."""
    disk = tmp_path / "broken.img"
    shutil.copy(sound, disk)
    damage(disk)
    done = must(rebuildkit("fs", "fix-dos", disk, "--partition", "2", "--json")).json["done"]

    assert done
    assert start(disk) == STARTED
    again = must(rebuildkit("fs", "fix-dos", disk, "--partition", "2"))
    assert again.out == "Everything is in its place.\n"


def test_fix_dos_geometry(sound: Path, tmp_path: Path) -> None:
    """A disk copied to a larger one, where the BIOS counts other heads, starts after fix-dos."""
    disk = tmp_path / "larger.img"
    shutil.copy(sound, disk)
    with disk.open("r+b") as file:
        file.truncate(600 * MIB)
    assert start(disk) != STARTED
    must(rebuildkit("fs", "fix-dos", disk, "--geometry", "auto"))

    assert start(disk) == STARTED


@pytest.mark.parametrize("size", ["", "200M"])
def test_syslinux(bits: int, size: str, tmp_path: Path) -> None:
    """A syslinux disk starts after recovery, in the same place and in another one."""
    disk, new = tmp_path / "syslinux.img", tmp_path / "new.img"
    make_syslinux_disk(disk, bits)
    assert PROMPT in serial_output(disk)
    password = tmp_path / "password"
    password.write_text(PASSWORD)
    credentials = ("--user", USER, "--password-file", password)
    place = tmp_path / "store"
    must(rebuildkit("register", "--store", place, *credentials))
    must(rebuildkit("backup", "--store", place, *credentials, "--machine", "s", "--disk", disk))
    restore(("--from", place, *credentials), "s", new, *(("--disk-size", size) if size else ()))

    assert PROMPT in serial_output(new)


def test_syslinux_needs_its_place(tmp_path: Path) -> None:
    """With ldlinux.sys in other clusters syslinux does not start; the test above means that."""
    disk = tmp_path / "syslinux.img"
    make_syslinux_disk(disk, 16)
    editor, device = open_dos(disk)
    node = editor.lookup(1, b"ldlinux.sys")
    data = editor.read(node, 0, node.size)
    place = editor.extents(node)[0].position
    editor.truncate(node.number, 0)
    editor.write(editor.create(1, b"FILLER", FILE).number, 0, b"z" * len(data))
    editor.write(node.number, 0, data)
    editor.device.write(place, bytes(SECTOR))
    editor.close()
    device.close()

    assert PROMPT not in serial_output(disk, timeout_s=8)


def make_syslinux_disk(path: Path, bits: int) -> None:
    """Make a disk that syslinux starts and then greets on the serial line."""
    make_disk(path, bits)
    editor, device = open_dos(path)
    config = b"SERIAL 0 115200\nPROMPT 1\n"
    editor.write(editor.create(1, b"syslinux.cfg", FILE).number, 0, config)
    editor.close()
    device.close()
    subprocess.run(
        ["syslinux", "--install", "--offset", str(DOS_START * SECTOR), path],
        check=True,
        capture_output=True,
    )
    patched(path, 0, Path("/usr/lib/syslinux/mbr/mbr.bin").read_bytes()[:440])


def serial_output(path: Path, timeout_s: int = 30) -> str:
    """Start a disk; return what it said on the serial line in the time syslinux needs."""
    log = path.with_suffix(".log")
    command = [
        "qemu-system-x86_64",
        "-machine",
        "pc",
        "-accel",
        "tcg",
        "-m",
        "64",
        "-nodefaults",
        "-display",
        "none",
        "-drive",
        f"file={path},format=raw,if=ide,snapshot=on",
        "-serial",
        f"file:{log}",
    ]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(timeout_s * 10):
                said = log.read_text(errors="replace") if log.exists() else ""
                if PROMPT in said or process.poll() is not None:
                    return said
                try:
                    process.wait(0.1)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            process.kill()
    return said


def test_disk_is_what_it_says(sound: Path, bits: int) -> None:
    """The disk these tests start has the system in the places they are about."""
    editor, device = open_dos(sound)
    slots = list(editor.iter_root())
    names = [DirectoryEntry.pack(slot.entry)[:11] for slot in slots[:2]]
    device.close()

    assert names == [b"IO      SYS", b"MSDOS   SYS"]
    assert editor.geometry.bits == bits
    assert editor.geometry.total_sectors <= DOS_SECTORS[bits]
