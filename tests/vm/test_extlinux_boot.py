# SPDX-License-Identifier: Apache-2.0
"""Machines whose boot loader is extlinux start after recovery, from ext4 and from NTFS.

Boot sector, ldlinux.sys and its module are what says "boot: " on the serial line, and the kernel
it then loads says the rest.  Backup and restore are the real commands.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fsdrivers import open_volume
from fsdrivers.device import FileDevice
from fsdrivers.partitions import open_partition, read_table
from imagebuilder.environment.build import prepare_boot_environment
from tests.scenario import Store
from tests.vm.ntfs_machines import (
    COMMAND_LINE,
    MARK,
    MIB,
    SECTOR,
    SYSLINUX_MBR,
    add_kernel,
    run,
    start_linux,
)
from tests.vm.old_pc import start

pytestmark = [pytest.mark.vm, pytest.mark.tools, pytest.mark.root]

START, SIZE = MIB, 60 * MIB
CONFIGURATION = f"""SERIAL 0 115200
DEFAULT linux
LABEL linux
  KERNEL /boot/vmlinuz
  INITRD /boot/initrd.img
  APPEND {COMMAND_LINE}
"""


@contextmanager
def mounted(image: Path, kind: str) -> Iterator[Path]:
    """Mount the volume of a disk through a loop device, which extlinux asks for its sectors."""
    place = image.with_suffix(".mount")
    place.mkdir()
    limits = ("-o", START, "--sizelimit", SIZE)
    device = run("losetup", "-f", "--show", *limits, image).strip()
    try:
        if kind == "ntfs":
            run("mkntfs", "-q", "-F", "-f", "-s", SECTOR, "-p", 2048, "-H", 255, "-S", 63, device)
            run("ntfs-3g", device, place)
        else:
            run("mke2fs", "-q", "-t", kind, device)
            run("mount", device, place)
        try:
            yield place
        finally:
            run("umount", place)
    finally:
        run("losetup", "-d", device)
        place.rmdir()


def make_disk(path: Path, kind: str) -> Path:
    """Make a disk that extlinux starts; a file that is gone left a gap in front of its own."""
    with path.open("wb") as file:
        file.truncate(START + SIZE + MIB)
    code = 7 if kind == "ntfs" else 83
    script = f"label: dos\nstart={START // SECTOR}, size={SIZE // SECTOR}, type={code}, bootable\n"
    run("sfdisk", "-q", path, text=script)
    environment = prepare_boot_environment(compression="zstd-fast")
    with mounted(path, kind) as root:
        (root / "before").mkdir()
        for index in range(100):
            (root / "before" / f"{index}").write_bytes(b"b" * 32768)
        run("sync", "-f", root)
        add_kernel(root / "boot", environment.kernel)
        (root / "boot" / "extlinux.conf").write_text(CONFIGURATION)
        run("sync", "-f", root)
        run("extlinux", "--install", root / "boot")
        shutil.rmtree(root / "before")
    with path.open("r+b") as file:
        file.write(SYSLINUX_MBR.read_bytes()[:440])
    return path


def place_of(path: Path) -> list[tuple[int, int]]:
    """Return where ldlinux.sys is in its volume."""
    with FileDevice.open(str(path)) as device:
        table = read_table(device)
        assert table is not None
        volume = open_volume(open_partition(device, table, 1))
        (node,) = (entry.node for entry in volume.walk() if entry.name == b"ldlinux.sys")
        return [(extent.position, extent.length) for extent in volume.extents(node)]


@pytest.mark.parametrize("kind", ["ext4", "ntfs"])
def test_starts_after_recovery(kind: str, tmp_path: Path) -> None:
    """Restored to a disk of the same size and to a larger one, where its file lies elsewhere.

    Starting depends on it: with the old volume's boot sector the restored disk stays silent.
    """
    disk = make_disk(tmp_path / f"{kind}.img", kind)
    store = Store(tmp_path)
    store.backup(disk)
    same = store.restore(disk, tmp_path / "same.img")
    larger = store.restore(disk, tmp_path / "larger.img", "--disk-size", "90M")

    for image in (same, larger):
        assert place_of(image) != place_of(disk)
        assert MARK in start_linux(image)
    with disk.open("rb") as file, same.open("r+b") as damaged:
        file.seek(START)
        damaged.seek(START)
        damaged.write(file.read(SECTOR))
    assert MARK not in start(same, port="-serial", memory_mib=512, timeout_s=5)
