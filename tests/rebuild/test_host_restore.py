# SPDX-License-Identifier: Apache-2.0
"""`rebuildkit restore` on a host: targets of all kinds, and one sentence for each that fails."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.rebuild.machines import USER, SmallMachine, names_in
from tests.scenario import Outcome, must, rebuildkit

pytestmark = pytest.mark.tools
MIB = 1 << 20


@pytest.fixture
def credentials(mbr_machine: SmallMachine, tmp_path: Path) -> tuple[str, ...]:
    """Options for the id, with the recovery key for a password: it costs no Argon2id."""
    path = tmp_path / "key"
    path.write_text(mbr_machine.recovery_key + "\n")
    return ("--user", USER, "--password-file", str(path))


@pytest.fixture
def copy(mbr_machine: SmallMachine, tmp_path: Path) -> Path:
    """A copy of the medium, to damage."""
    return Path(shutil.copytree(mbr_machine.medium_path, tmp_path / "medium"))


def sentence(outcome: Outcome) -> str:
    """Return the only line on standard error."""
    lines = outcome.err.strip().splitlines()
    assert len(lines) == 1, outcome.err
    assert "Traceback" not in outcome.err
    return lines[0].removeprefix("rebuildkit: ")


def test_disk_in_use_before_is_replaced(
    mbr_machine: SmallMachine, credentials: tuple[str, ...], tmp_path: Path
) -> None:
    """An image that held something else holds the machine afterwards, and nothing else."""
    image = tmp_path / "used.img"
    image.write_bytes(b"\xee" * (80 * MIB))
    source = ("restore", "--from", mbr_machine.medium_path, *credentials, "--disk", image)

    plan = must(rebuildkit(*source, "--plan"))
    assert "grows" in plan.out
    assert image.read_bytes().count(0xEE) == 80 * MIB, "a plan writes nothing"
    done = must(rebuildkit(*source, "--yes", "--verify"))

    assert "all equal" in done.out
    for number in (1, 2):
        check = ["fsck.fat", "-n"] if number == 1 else ["e2fsck", "-fn"]
        volume = tmp_path / f"volume{number}"
        table = must(rebuildkit("fs", "probe", image, "--json")).json["partitions"][number - 1]
        with image.open("rb") as file:
            file.seek(table["start"])
            volume.write_bytes(file.read(table["size"]))
        subprocess.run([*check, str(volume)], check=True, capture_output=True)


def test_incomplete_medium_is_20_and_partial_on_demand(
    mbr_machine: SmallMachine, copy: Path, credentials: tuple[str, ...], tmp_path: Path
) -> None:
    """A missing pack: refused before anything is written; `--incomplete` restores the rest."""
    (copy / "objects/00000001.pak").unlink()
    image = tmp_path / "new.img"
    source = ("restore", "--from", copy, *credentials, "--disk", image, "--yes")

    refused = rebuildkit(*source)
    assert refused.code == 20
    assert re.search(r"incomplete: 1 of \d packs missing or cut short", sentence(refused))
    assert not image.exists()
    partial = rebuildkit(*source, "--incomplete", "--json")
    assert partial.code == 3
    failed = {item["path"] for item in partial.json["failures"]}
    unlocked = mbr_machine.unlocked()
    assert failed == names_in(unlocked, 1, 0, unlocked.header.packs[1].size)
    assert partial.json["result"] == "partial"


def test_damaged_table_is_21(copy: Path, credentials: tuple[str, ...], tmp_path: Path) -> None:
    """Both copies of the table damaged at one place: 21, nothing written."""
    for name in ("objtab.dat", "copies/objtab.dat"):
        data = bytearray((copy / name).read_bytes())
        data[300] ^= 1
        (copy / name).write_bytes(data)
    image = tmp_path / "new.img"

    outcome = rebuildkit("restore", "--from", copy, *credentials, "--disk", image, "--yes")

    assert outcome.code == 21
    assert "objtab.dat" in sentence(outcome)
    assert not image.exists()


@pytest.mark.parametrize(("name", "code"), [("hash.dat", 20), ("objtab.dat", 20)])
def test_newer_format_is_20(
    copy: Path, credentials: tuple[str, ...], tmp_path: Path, name: str, code: int
) -> None:
    """A disc of a newer release is said to be that."""
    for path in (copy / name, copy / "copies" / name):
        data = bytearray(path.read_bytes())
        data[6] = 7
        path.write_bytes(data)

    outcome = rebuildkit(
        "restore", "--from", copy, *credentials, "--disk", tmp_path / "new.img", "--yes"
    )

    assert outcome.code == code
    assert "newer rebuildkit (format 7)" in sentence(outcome)


def test_source_is_no_target(
    mbr_machine: SmallMachine, credentials: tuple[str, ...], tmp_path: Path
) -> None:
    """A file that the restore would read from is refused as its target."""
    table = mbr_machine.medium_path / "objtab.dat"
    link = tmp_path / "link"
    link.symlink_to(table)
    before = table.read_bytes()

    for target in (table, link):
        outcome = rebuildkit(
            "restore",
            "--from",
            mbr_machine.medium_path,
            *credentials,
            "--disk",
            target,
            "--yes",
        )
        assert outcome.code == 24
        assert "is where the restore reads from" in sentence(outcome)
    assert table.read_bytes() == before


def test_directory_is_no_disk(
    mbr_machine: SmallMachine, credentials: tuple[str, ...], tmp_path: Path
) -> None:
    """A directory as target is a usage error."""
    outcome = rebuildkit(
        "restore", "--from", mbr_machine.medium_path, *credentials, "--disk", tmp_path, "--yes"
    )

    assert outcome.code == 2
    sentence(outcome)


def test_partition_that_cannot_grow_is_23(
    mbr_machine: SmallMachine, credentials: tuple[str, ...], tmp_path: Path
) -> None:
    """The wish to grow a FAT or swap partition is refused by its number."""
    image = tmp_path / "new.img"
    source = ("restore", "--from", mbr_machine.medium_path, *credentials, "--disk", image)

    outcome = rebuildkit(*source, "--disk-size", "128M", "--grow", "3", "--yes")

    assert outcome.code == 23
    assert "partition 3 cannot grow" in sentence(outcome)
    assert not image.exists()


def test_target_that_fails_half_way_is_removed(
    mbr_machine: SmallMachine, credentials: tuple[str, ...], tmp_path: Path
) -> None:
    """A target that takes no more bytes: one sentence, no image that looks like a disk."""
    image = tmp_path / "new.img"
    command = (
        "prlimit",
        f"--fsize={8 * MIB}",
        sys.executable,
        "-m",
        "imagebuilder.cli",
        "restore",
        "--from",
        mbr_machine.medium_path,
        *credentials,
        "--disk",
        image,
        "--yes",
    )
    # The image is made before the limit counts: making it does not count as a write.
    image.touch()
    os.truncate(image, mbr_machine.disks[0].stat().st_size)

    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)

    assert done.returncode == 1
    line = sentence(Outcome(done.returncode, done.stdout, done.stderr, 0.0))
    assert re.search(r"new\.img failed: cannot write .*; it holds no usable machine", line)


@contextmanager
def mounted(path: Path, *options: str) -> Iterator[Path]:
    """Mount something for a while."""
    path.mkdir()
    subprocess.run(["mount", *options, str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


@contextmanager
def loop_device(image: Path) -> Iterator[str]:
    """Attach an image with its partitions."""
    done = subprocess.run(
        ["losetup", "--find", "--show", "--partscan", str(image)],
        capture_output=True,
        text=True,
        check=True,
    )
    device = done.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@pytest.mark.root
def test_full_filesystem_is_22(
    mbr_machine: SmallMachine, credentials: tuple[str, ...], tmp_path: Path
) -> None:
    """No room where the image lies: 22, the sentence says so, the image is gone."""
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=6m", "none") as place:
        image = place / "new.img"
        outcome = rebuildkit(
            "restore",
            "--from",
            mbr_machine.medium_path,
            *credentials,
            "--disk",
            image,
            "--yes",
        )

        assert outcome.code == 22
        assert "the filesystem it is on is full" in sentence(outcome)
        assert list(place.iterdir()) == []


@pytest.mark.root
def test_block_device_is_restored_unless_in_use(
    mbr_machine: SmallMachine, credentials: tuple[str, ...], tmp_path: Path
) -> None:
    """A block device is written and verified; with a partition of it mounted it is refused."""
    image = tmp_path / "disk.img"
    shutil.copyfile(mbr_machine.disks[0], image)
    source = ("restore", "--from", mbr_machine.medium_path, *credentials)
    with loop_device(image) as device:
        refused: Outcome | None = None
        if os.path.exists(f"{device}p2"):  # not where no udev makes partition nodes
            with mounted(tmp_path / "mount", "-o", "ro", f"{device}p2"):
                refused = rebuildkit(*source, "--disk", device, "--yes")
        done = must(rebuildkit(*source, "--disk", device, "--yes", "--verify"))

    assert "all equal" in done.out
    if refused is not None:
        assert refused.code == 24
        assert f"{device} is in use: {device}p2" in sentence(refused)


@pytest.mark.root
def test_whole_device_in_use_is_24(
    mbr_machine: SmallMachine, credentials: tuple[str, ...], tmp_path: Path
) -> None:
    """A volume without a partition table, mounted: refused, and still whole."""
    image = tmp_path / "volume.img"
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    subprocess.run(["mke2fs", "-q", "-F", str(image)], check=True)
    with loop_device(image) as device, mounted(tmp_path / "mount", device):
        outcome = rebuildkit(
            "restore",
            "--from",
            mbr_machine.medium_path,
            *credentials,
            "--disk",
            device,
            "--yes",
        )
    assert outcome.code == 24
    assert f"{device} is in use" in sentence(outcome)
    subprocess.run(["e2fsck", "-fn", str(image)], check=True, capture_output=True)


@pytest.mark.root
def test_image_in_use_is_24(
    mbr_machine: SmallMachine, credentials: tuple[str, ...], tmp_path: Path
) -> None:
    """An image file with a partition of it mounted is refused as a disk would be, and untouched."""
    image, point = tmp_path / "disk.img", tmp_path / "mount"
    shutil.copyfile(mbr_machine.disks[0], image)
    place = int(subprocess.check_output(["partx", "-rgo", "START", "-n", "2", image])) * 512
    with mounted(point, "-o", f"ro,loop,offset={place}", str(image)):
        outcome = rebuildkit(
            "restore",
            "--from",
            mbr_machine.medium_path,
            *credentials,
            "--disk",
            image,
            "--yes",
        )
    assert outcome.code == 24
    words = sentence(outcome)
    assert words.startswith(f"{image} is in use: /dev/loop")
    assert words.endswith(f" is attached to it and mounted at {point}")
    assert image.read_bytes() == mbr_machine.disks[0].read_bytes()
