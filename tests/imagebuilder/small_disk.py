# SPDX-License-Identifier: Apache-2.0
"""A small disk image made by foreign tools: a partition table, ext4, FAT and swap."""

from __future__ import annotations

import os
import random
from pathlib import Path

from tests.programs import run

MIB = 1 << 20
LAYOUT = """label: gpt
1 : start=1MiB, size=8MiB, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name=esp
2 : start=9MiB, size=24MiB, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, name=root
3 : start=33MiB, size=4MiB, type=0657FD6D-A4AB-43C4-84E5-0933C84B4F4F, name=swap
"""


def make_tree(directory: Path) -> None:
    """Fill a directory with a little of everything that needs no root."""
    noise = random.Random("small disk")
    (directory / "etc").mkdir(parents=True)
    (directory / "etc/hostname").write_text("small\n")
    (directory / "etc/os-release").write_text('PRETTY_NAME="Small Linux 1"\nID=small\n')
    for number in range(300):
        (directory / f"file{number}").write_bytes(noise.randbytes(200) * (1 + number % 30))
    (directory / "big").write_bytes(noise.randbytes(3 * MIB + 17))
    os.link(directory / "big", directory / "same")
    (directory / "link").symlink_to("etc/hostname")
    with (directory / "sparse").open("wb") as file:
        file.seek(5 * MIB)
        file.write(b"end")
    (directory / os.fsdecode(b"odd\xff\nname")).write_text("x")


def make_disk(directory: Path) -> Path:
    """Make the image below `directory`; return its path."""
    tree, disk = directory / "tree", directory / "disk.img"
    make_tree(tree)
    with disk.open("wb") as file:
        file.truncate(40 * MIB)
    run("sfdisk", "-q", str(disk), text=LAYOUT)
    run("mkfs.fat", "-F", "12", "-n", "ESP", "--offset", "2048", str(disk), "8192")
    run(
        "mke2fs",
        "-q",
        "-F",
        "-t",
        "ext4",
        "-b",
        "1024",
        "-L",
        "root",
        "-d",
        str(tree),
        "-E",
        f"offset={9 * MIB},root_owner=0:0",
        str(disk),
        "24576",
    )
    swap = directory / "swap.img"
    with swap.open("wb") as file:
        file.truncate(4 * MIB)
    run("mkswap", "-q", "-L", "swap", str(swap))
    with disk.open("r+b") as file:
        file.seek(33 * MIB)
        file.write(swap.read_bytes())
    return disk
