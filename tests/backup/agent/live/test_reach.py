# SPDX-License-Identifier: Apache-2.0
"""A mounted volume is read as itself, wherever and however it is mounted."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from backup.agent.backup import run_backup
from backup.agent.errors import NotRecoverableError
from backup.agent.live import source
from backup.agent.local_set import LocalSet
from backup.agent.machine import KernelDisk, KernelPartition, Machine, Mount, read_mounts
from backup.agent.result import BackupOptions
from tests.backup.agent.machines import (
    MACHINE,
    MASTER,
    MIB,
    back_up_live,
    live_volume,
    loop_device,
    make_disk,
    make_ext4,
    make_repository,
    numbers_of,
    read_data_set,
)

pytestmark = [pytest.mark.root, pytest.mark.tools]

EXPECTED = {b"/precious": b"important", b"/user/mail": b"not on the medium yet"}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The image of a volume."""
    tree = tmp_path / "tree"
    (tree / "user").mkdir(parents=True)
    (tree / "precious").write_bytes(b"important")
    return make_ext4(tmp_path / "sda", tree, 32 * MIB)


def files_of(directory: Path, machine: Machine) -> dict[bytes, bytes]:
    """Back up a machine, and return the files of the data set."""
    with make_repository(directory / "store") as repository:
        (result,) = back_up_live(repository, machine)
        assert not result.warnings
        assert not result.missing
        return read_data_set(repository).files


@contextmanager
def mounted_on(point: Path, *arguments: str) -> Iterator[None]:
    """Mount something for the time of the block."""
    subprocess.run(["mount", *arguments, str(point)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(point)], check=True)


def test_covered(image: Path) -> None:
    """What is mounted over a volume is not taken for it."""
    with live_volume(image) as (root, machine):
        (root / "user" / "mail").write_bytes(EXPECTED[b"/user/mail"])
        with mounted_on(root, "-t", "tmpfs", "none"):
            (root / "of-the-tmpfs").write_bytes(b"wrong")
            found = files_of(image.parent, replace(machine, mounts=read_mounts()))
    assert found == EXPECTED


def test_covered_where_nothing_helps(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel cannot mount once more, a covered volume is refused by its name."""

    def refuse(*_: object) -> int:
        raise OSError(38, "not implemented")

    monkeypatch.setattr(source, "mount_again", refuse)
    monkeypatch.setattr(source, "open_tree", refuse)
    with live_volume(image) as (root, machine):
        (root / "user" / "mail").write_bytes(EXPECTED[b"/user/mail"])
        assert files_of(image.parent, machine) == EXPECTED
        with mounted_on(root, "-t", "tmpfs", "none"):
            machine = replace(machine, mounts=read_mounts())
            with (
                make_repository(image.parent / "other") as repository,
                pytest.raises(NotRecoverableError, match="covered by another mount") as caught,
            ):
                back_up_live(repository, machine)
    assert [problem.device for problem in caught.value.problems] == [str(root)]


def test_part_of_it(image: Path) -> None:
    """A volume of which only a directory is mounted is read whole, and through the kernel."""
    with live_volume(image) as (root, machine):
        part = image.parent / "part"
        part.mkdir()
        (root / "user" / "mail").write_bytes(EXPECTED[b"/user/mail"])
        subprocess.run(["mount", "--bind", str(root / "user"), str(part)], check=True)
        try:
            subprocess.run(["umount", str(root)], check=True)
            found = files_of(image.parent, replace(machine, mounts=read_mounts()))
        finally:
            subprocess.run(["umount", str(part)], check=True)
            subprocess.run(["mount", machine.disks[0].path, str(root)], check=True)
    assert found == EXPECTED


def test_unmounted_but_in_use(image: Path) -> None:
    """So is a volume that no namespace shows any more, and that a process still writes to."""
    with live_volume(image) as (root, machine):
        with (root / "user" / "mail").open("wb") as stream:
            subprocess.run(["umount", "--lazy", str(root)], check=True)
            stream.write(EXPECTED[b"/user/mail"])
            stream.flush()
            found = files_of(image.parent, replace(machine, mounts=read_mounts()))
        subprocess.run(["mount", machine.disks[0].path, str(root)], check=True)
    assert found == EXPECTED


def test_other_namespace(image: Path) -> None:
    """So is a volume that is mounted in another mount namespace alone, as of a hardened unit."""
    with live_volume(image) as (root, machine):
        (root / "user" / "mail").write_bytes(EXPECTED[b"/user/mail"])
        os.sync()
        unit = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", "echo ready; read line"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert unit.stdout is not None
        assert unit.stdout.readline() == b"ready\n"
        try:
            subprocess.run(["umount", str(root)], check=True)
            mounts = read_mounts()
            found = files_of(image.parent, replace(machine, mounts=mounts))
        finally:
            unit.communicate(b"\n")
            subprocess.run(["mount", machine.disks[0].path, str(root)], check=True)
    assert found == EXPECTED
    assert any(mount.point == os.fsencode(root) for mount in mounts)


def test_raw_image_of_something_in_use(tmp_path: Path) -> None:
    """What is kept as a raw image while others use it is named, and the set is partial."""
    volume = tmp_path / "volume"
    volume.write_bytes(os.urandom(4 * MIB))
    disk = make_disk(tmp_path / "disk", ("83", volume))
    with (
        make_repository(tmp_path / "store") as repository,
        loop_device(disk) as whole,
        loop_device(disk, MIB) as part,
    ):
        size = disk.stat().st_size
        partition = KernelPartition(os.path.basename(part), 1, numbers_of(part), MIB, 4 * MIB)
        kernel = KernelDisk("sda", whole, numbers_of(whole), size, False, "", "", (partition,))
        machine = Machine((kernel,), (), ())
        (quiet,) = back_up_live(repository, machine)
        user = os.open(part, os.O_RDONLY | os.O_EXCL)
        try:
            (used,) = back_up_live(repository, machine)
        finally:
            os.close(user)
    assert not quiet.is_partial
    assert used.mixed == 1
    assert used.warnings[0].startswith(f"{part}: is kept as a raw image, is in use")


@pytest.mark.parametrize("change", ["", "a new file", "other content"])
def test_fat_that_changes_while_it_is_read(tmp_path: Path, change: str) -> None:
    """A mounted FAT volume, read from its device, is named if anything on it changed meanwhile."""
    volume = tmp_path / "volume"
    with volume.open("wb") as stream:
        stream.truncate(8 * MIB)
    subprocess.run(["mkfs.vfat", str(volume)], check=True, capture_output=True)
    disk = make_disk(tmp_path / "disk", ("ef", volume))
    source_file = tmp_path / "file"

    def copy(name: str, content: bytes) -> None:
        source_file.write_bytes(content)
        target = ["-i", f"{disk}@@{MIB}", str(source_file), f"::{name}"]
        subprocess.run(["mcopy", "-o", *target], check=True)

    copy("loader", b"first" * 1000)
    with (
        make_repository(tmp_path / "store") as repository,
        loop_device(disk) as whole,
        loop_device(disk, MIB) as part,
    ):
        partition = KernelPartition(os.path.basename(part), 1, numbers_of(part), MIB, 8 * MIB)
        mount = Mount(numbers_of(part), b"/", b"/boot/efi", "vfat", os.fsencode(part))
        size = disk.stat().st_size
        kernel = KernelDisk("sda", whole, numbers_of(whole), size, False, "", "", (partition,))

        class Changing(source.LiveSource):
            def settle(self, local: LocalSet, *, is_last: bool) -> bool:
                if change == "a new file":
                    copy("other", b"new")
                elif change:
                    copy("loader", b"second" * 1000)
                return super().settle(local, is_last=is_last)

        machine = Machine((kernel,), (mount,), ())
        options = BackupOptions(workers=2)
        result = run_backup(repository, MASTER, MACHINE, [Changing(machine)], options)
    assert result.is_partial == bool(change)
    said = [warning for warning in result.warnings if "changed while it was read" in warning]
    assert len(said) == result.mixed == bool(change)
