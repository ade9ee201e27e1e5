# SPDX-License-Identifier: Apache-2.0
"""A backup of a disk names what only its old hardware has, as one of the running machine does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backup.store.repository import StoredRepository
from tests.backup.agent.machines import back_up, make_disk, make_ext4, make_repository

pytestmark = pytest.mark.tools


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[StoredRepository]:
    with make_repository(tmp_path / "store") as repository:
        yield repository


def test_named(tmp_path: Path, repository: StoredRepository) -> None:
    """Of each volume with its partition, what keeps the system from starting first."""
    boot, root = tmp_path / "boot", tmp_path / "root"
    for directory in (boot / "grub", root / "etc/initramfs-tools/conf.d", root / "home/etc"):
        directory.mkdir(parents=True)
    (boot / "grub/device.map").write_text("(hd0)\t/dev/disk/by-id/ata-OLD_1234\n")
    (boot / "grub/grub.cfg").write_text("linux /vmlinuz root=/dev/vda2 ro\n")
    (root / "etc/fstab").write_text("UUID=1 / ext4 rw 0 1\n/dev/vda3 none swap sw 0 0\n")
    (root / "etc/initramfs-tools/conf.d/driver-policy").write_text("MODULES=dep\n")
    (root / "home/etc/fstab").write_text("/dev/vda9 / ext4 rw 0 1\n")
    volumes = [make_ext4(tmp_path / f"{tree.name}.img", tree, 8 << 20) for tree in (boot, root)]
    disk = make_disk(tmp_path / "pc.img", ("83", volumes[0]), ("83", volumes[1]))

    notes = [note for note in back_up(repository, disk).notes if note.startswith("pc.img part")]

    assert notes == [
        "pc.img partition 1: /grub/grub.cfg asks for root= /dev/vda2: it does not start where "
        "there is no such name; UUID= would do everywhere",
        "pc.img partition 2: /etc/initramfs-tools/conf.d/driver-policy leaves drivers out of the "
        "initramfs by MODULES=dep: it does not start where disks need another one; MODULES=most "
        "would do everywhere",
        "pc.img partition 1: /grub/device.map finds hd0 by /dev/disk/by-id/ata-OLD_1234: GRUB "
        "cannot be installed anew where there is no such name; the file can be removed",
        "pc.img partition 2: /etc/fstab swaps to /dev/vda3: it goes on without, maybe after a "
        "while, where there is no such name; UUID= would do everywhere",
    ]
