# SPDX-License-Identifier: Apache-2.0
"""ext volumes with features few have, through backup and restore, judged by e2fsck."""

from __future__ import annotations

from pathlib import Path

import pytest

from backup.agent.local_set import LocalSet
from backup.agent.sources import DiskSource
from backup.objects.keys import create_key_file
from fsdrivers.device import FileDevice
from fsdrivers.ext.volume import open_volume
from fsdrivers.partitions import open_partition, read_table
from rebuild.compare.disks import compare_machine
from rebuild.plan import TargetDisk
from rebuild.restore import apply_plan, make_plan
from tests.fsdrivers.ext.mkfs_images import assert_clean
from tests.fsdrivers.ext.volumes import Seen, debugfs, make_image, plain_tree, seen_by_us
from tests.programs import run
from tests.rebuild.machines import back_up

pytestmark = pytest.mark.tools

MIB = 1 << 20
SIZE = 96 * MIB
VOLUMES = (
    ("-b", 4096, "-C", 16384, "-O", "bigalloc,meta_bg,^resize_inode,mmp"),
    ("-b", 4096, "-O", "quota,project,inline_data,ea_inode",
     "-E", "quotatype=usrquota:grpquota:prjquota"),
    ("-b", 8192, "-O", "sparse_super2,^resize_inode"),
    ("-b", 4096, "-O", "casefold,encrypt,verity,orphan_file"),
)  # fmt: skip


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk with one partition for each kind of volume."""
    directory = tmp_path_factory.mktemp("disk")
    tree = plain_tree(directory / "tree")
    path = directory / "sda.img"
    with path.open("wb") as file:
        file.truncate(MIB + len(VOLUMES) * SIZE + MIB)
    script = "label: gpt\n" + f"size={SIZE // 512}\n" * len(VOLUMES)
    run("sfdisk", "-q", path, text=script)
    for index, options in enumerate(VOLUMES):
        image = make_image(directory / "volume", SIZE, "-t", "ext4", *options, source=tree)
        if "project" in str(options):
            debugfs(image, "sif small projid 77", "sif large projid 4000000000")
            run("sh", "-c", 'e2fsck -fy "$0" > /dev/null; test $? -le 1', image)
        seek = f"seek={(MIB + index * SIZE) // MIB}"
        run("dd", f"if={image}", f"of={path}", "bs=1M", seek, "conv=notrunc,sparse", "status=none")
        image.unlink()
    return path


def seen_on(disk: Path) -> list[dict[bytes, Seen]]:
    """Return what each volume of a disk holds, without the numbers of inodes."""
    found = []
    with FileDevice.open(disk) as device:
        table = read_table(device)
        assert table is not None
        for number in range(1, len(VOLUMES) + 1):
            seen = seen_by_us(open_volume(open_partition(device, table, number)))
            found.append({path: view._replace(number=0) for path, view in seen.items()})
    return found


@pytest.mark.parametrize("size", [400 * MIB, 700 * MIB], ids=["same", "larger"])
def test_everything_comes_back(disk: Path, tmp_path: Path, size: int) -> None:
    """Every volume is equal by comparison and by our reader, and e2fsck has nothing to say."""
    machine = back_up(tmp_path, [disk])
    unlocked = machine.unlocked()
    target = tmp_path / "target.img"
    with target.open("wb") as file:
        file.truncate(size)
    (recorded,) = unlocked.machine.disks
    plan = make_plan(unlocked, {recorded.number: TargetDisk(str(target), size, 512)}, is_blank=True)
    apply_plan(unlocked, plan, machine.medium())

    with FileDevice.open(target) as device:
        assert compare_machine(unlocked.machine, {recorded.number: device}, unlocked.key).is_equal
    assert seen_on(target) == seen_on(disk)
    with FileDevice.open(target) as device:
        table = read_table(device)
    assert table is not None
    for entry in table.entries:
        part = (f"skip={entry.start // MIB}", f"count={-(-entry.size // MIB)}")
        image = tmp_path / "volume"
        run("dd", f"if={target}", f"of={image}", "bs=1M", *part, "conv=sparse", "status=none")
        assert_clean(image)
        image.unlink()


def make_small_disk(path: Path, *options: object) -> Path:
    """Make a disk with one ext4 partition that holds a file."""
    (path.parent / "file").write_bytes(b"content" * 1000)
    image = make_image(path.with_suffix(".volume"), SIZE, "-t", "ext4", "-b", 1024, *options)
    debugfs(image, f"write {path.parent / 'file'} file")
    with path.open("wb") as file:
        file.truncate(MIB + SIZE + MIB)
    run("sfdisk", "-q", path, text=f"label: gpt\nsize={SIZE // 512}\n")
    run("dd", f"if={image}", f"of={path}", "bs=1M", "seek=1", "conv=notrunc", "status=none")
    image.unlink()
    return path


def test_damaged_superblock_is_reported_and_restored(tmp_path: Path) -> None:
    """What is read from a copy of the superblock is kept whole, with a warning."""
    disk = make_small_disk(tmp_path / "sda.img")
    with FileDevice.open(disk, writable=True) as device:
        device.write(MIB + 1024 + 5, b"\x01")  # of its number of blocks
    local, source = LocalSet(create_key_file("anna", "password").master, None), DiskSource(disk)
    assert source.inspect(allow_raw=False) == []
    source.scan(local, None)
    assert any("copy of the superblock in group 1" in text for text in local.warnings)
    machine = back_up(tmp_path, [disk])
    unlocked = machine.unlocked()
    target = tmp_path / "target.img"
    size = disk.stat().st_size
    with target.open("wb") as file:
        file.truncate(size)
    (recorded,) = unlocked.machine.disks
    plan = make_plan(unlocked, {recorded.number: TargetDisk(str(target), size, 512)}, is_blank=True)
    apply_plan(unlocked, plan, machine.medium())

    with FileDevice.open(target) as device:
        table = read_table(device)
        assert table is not None
        volume = open_volume(open_partition(device, table, 1))
        assert volume.warnings() == []
        assert [entry.name for entry in volume.walk()] == [b"", b"lost+found", b"file"]


def test_encrypted_files_are_left_out(tmp_path: Path) -> None:
    """A file that could not be made again is counted as missing; an image of the volume has it."""
    disk = make_small_disk(tmp_path / "sda.img", "-O", "encrypt")
    with FileDevice.open(disk, writable=True) as device:
        table = read_table(device)
        assert table is not None
        start = table.entries[0].start
    volume = tmp_path / "volume"
    run("dd", f"if={disk}", f"of={volume}", "bs=1M", f"skip={start // MIB}", "status=none")
    debugfs(volume, "set_inode_field file flags 0x80800")
    run("dd", f"if={volume}", f"of={disk}", "bs=1M", "seek=1", "conv=notrunc", "status=none")

    assert back_up(tmp_path, [disk]).unlocked().header.missing == 1
    assert DiskSource(disk).inspect(allow_raw=True) == []
