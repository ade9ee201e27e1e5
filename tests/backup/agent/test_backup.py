# SPDX-License-Identifier: Apache-2.0
"""Whole backups of small real disk images into a store directory."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backup.agent.errors import WorkerError
from backup.agent.result import BackupOptions
from backup.client.repository import HttpServer
from backup.objects.content import PIECE_SIZE
from backup.objects.model import DiskObject, LabelObject, ObjectKind, Region
from backup.objects.pack import TARGET_SIZE
from backup.objects.table import TableReader
from backup.store.repository import StoredRepository
from tests.backup.agent.machines import (
    MACHINE,
    MASTER,
    MIB,
    back_up,
    files_below,
    make_disk,
    make_ext4,
    make_repository,
    read_data_set,
)
from tests.backup.repositories import SECRET, key_file
from tests.backup.server_process import ServerProcess

pytestmark = pytest.mark.tools


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[StoredRepository]:
    with make_repository(tmp_path / "store") as repository:
        yield repository


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small tree with most of what a filesystem can hold."""
    root = tmp_path / "tree"
    root.mkdir()
    (root / "empty").write_bytes(b"")
    (root / "etc").mkdir()
    (root / "etc" / "os-release").write_bytes(b'ID=debian\nVERSION_ID="12"\n')
    (root / "etc" / "fstab").write_bytes(b"UUID=1 / ext4 defaults 0 1\n")
    (root / "large").write_bytes(random.Random(1).randbytes(10 * MIB + 77))
    (root / "exact").write_bytes(random.Random(2).randbytes(PIECE_SIZE))
    (root / "link").symlink_to("etc/fstab")
    os.link(root / "etc" / "fstab", root / "etc" / "fstab.hard")
    with open(os.fsencode(root) + b"/bad\xff\nname", "wb") as stream:
        stream.write(b"odd")
    with (root / "sparse").open("wb") as stream:
        stream.seek(3 * MIB)
        stream.write(b"x" * 5000)
        stream.truncate(9 * MIB)
    for number in range(100):
        (root / f"small{number}").write_bytes(b"content %d " % number * 50)
    return root


def make_machine(directory: Path, tree: Path, size: int = 48 * MIB) -> Path:
    """Make a disk with one ext4 partition labelled MAIN."""
    volume = make_ext4(directory / "volume.img", tree, size, "-L", "MAIN")
    return make_disk(directory / "disk.img", ("83", volume))


def debugfs(disk: Path, *commands: str) -> None:
    """Change the first partition of a disk image with debugfs."""
    subprocess.run(
        ["debugfs", "-w", "-f", "-", f"{disk}?offset={MIB}"],
        input="\n".join(commands),
        text=True,
        check=True,
        capture_output=True,
    )


def test_first_backup(tmp_path: Path, tree: Path, repository: StoredRepository) -> None:
    """A first backup holds every object of the disk with its content, and opens whole."""
    disk = make_machine(tmp_path, tree)
    result = back_up(repository, disk)
    data_set = read_data_set(repository)

    assert data_set.files == files_below(tree)
    assert result.objects == len(data_set.objects) == result.new
    assert (result.changed, result.unchanged, result.removed) == (0, 0, 0)
    assert not result.warnings
    assert data_set.nodes[b"/link"].target == b"etc/fstab"
    hard = data_set.nodes[b"/etc/fstab.hard"], data_set.nodes[b"/etc/fstab"]
    assert {node.kind for node in hard} == {ObjectKind.HARD_LINK, ObjectKind.FILE}
    labels = [obj.label for obj in data_set.objects.values() if isinstance(obj, LabelObject)]
    assert labels == [b"MAIN"]
    assert all(obj.signature for obj in data_set.objects.values())


def test_a_killed_packing_process_is_an_error_of_the_agent(
    tmp_path: Path, tree: Path, repository: StoredRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A packing process that is killed ends the run with a sentence, and nothing is committed."""
    parent = os.getpid()

    def put_pack(machine: str, data: bytes) -> None:
        assert os.getpid() != parent, "the small disk takes several processes"
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(repository, "put_pack", put_pack)
    with pytest.raises(WorkerError, match="packing process was killed by signal 9; the last data"):
        back_up(repository, make_machine(tmp_path, tree))

    assert not repository.data_sets()


def test_packs_are_closed_by_what_is_in_them(tmp_path: Path, repository: StoredRepository) -> None:
    """Content that compresses fills packs of 8 MiB as well; only the last pack of each process has
    less, and every piece opens."""
    source, tree = random.Random(3), tmp_path / "tree"
    tree.mkdir()
    for number in range(45):
        (tree / f"text{number}").write_bytes(source.randbytes(MIB * 3 // 4).hex().encode())
    for number in range(2000):
        (tree / f"small{number}").write_bytes(source.randbytes(source.randint(1, 3000)))
    result = back_up(repository, make_machine(tmp_path, tree, 96 * MIB))
    data_set = read_data_set(repository)
    with repository.open_table(repository.data_sets(MACHINE)[-1].id) as stream:
        reader = TableReader(MASTER, stream)
        list(reader)
        sizes = sorted(pack.size for pack in reader.summary.packs)

    assert data_set.files == files_below(tree)
    assert len(sizes) == result.packs_sent
    assert len([size for size in sizes if size < TARGET_SIZE]) <= 2
    assert all(size < TARGET_SIZE + PIECE_SIZE + 200 for size in sizes)
    assert len(sizes) >= 4


def test_what_two_processes_meet_is_kept_once_at_most_each(
    tmp_path: Path, repository: StoredRepository
) -> None:
    """Content that is met again, in an open pack or in one that is closed, is not sent again."""
    source, tree = random.Random(4), tmp_path / "tree"
    tree.mkdir()
    known = [source.randbytes(MIB) for _ in range(3)]
    for number in range(45):
        (tree / f"file{number:02}").write_bytes(known[number % 3] + b"%d" % number)
    result = back_up(repository, make_machine(tmp_path, tree, 96 * MIB))

    assert read_data_set(repository).files == files_below(tree)
    assert result.bytes_sent < 2 * sum(map(len, known)) + MIB


def test_boot_code_and_gap_are_kept(
    tmp_path: Path, tree: Path, repository: StoredRepository
) -> None:
    """The disk's content is its boot code and the sectors before the first partition."""
    disk = make_machine(tmp_path, tree)
    with disk.open("r+b") as stream:
        stream.write(b"\xeb\x63boot code")
        stream.seek(512)
        stream.write(b"core image" * 3000)
    back_up(repository, disk)
    data_set = read_data_set(repository)
    (obj,) = (obj for obj in data_set.objects.values() if isinstance(obj, DiskObject))
    head = disk.read_bytes()[:MIB]

    assert (obj.name, obj.scheme, obj.size) == ("disk.img", "mbr", disk.stat().st_size)
    assert data_set.contents[obj.number] == head[:440] + bytes(72) + head[512:]


def test_sparse_files(tmp_path: Path, tree: Path, repository: StoredRepository) -> None:
    """A sparse file keeps its map, and holes have no content."""
    disk = make_machine(tmp_path, tree)
    back_up(repository, disk)
    node = read_data_set(repository).nodes[b"/sparse"]

    assert node.regions == (Region(3 * MIB, 8192, False),)
    assert [(piece.offset, piece.length) for piece in node.pieces] == [(3 * MIB, 8192)]


def test_system_is_recognised(tmp_path: Path, tree: Path, repository: StoredRepository) -> None:
    """The data set says which operating system it is of."""
    disk = make_machine(tmp_path, tree)
    result = back_up(repository, disk)
    assert result.data_set is not None
    with repository.open_table(result.data_set.id) as stream:
        summary = TableReader(MASTER, stream).summary

    assert (summary.system["os"], summary.system["os_version"]) == ("debian", "12")
    assert summary.system["firmware"] == "bios"
    assert summary.machine == MACHINE
    assert summary.generation == 1


def test_unchanged_backup(tmp_path: Path, tree: Path, repository: StoredRepository) -> None:
    """A second backup of the same disk sends no pack, and its data set is as whole."""
    disk = make_machine(tmp_path, tree)
    first = back_up(repository, disk)
    second = back_up(repository, disk)

    assert second.packs_sent == 0
    assert second.unchanged == second.objects == first.objects
    assert (second.new, second.changed, second.removed) == (0, 0, 0)
    assert second.data_set is not None
    assert second.data_set.generation == 2
    assert read_data_set(repository).files == files_below(tree)


def test_changes_between_backups(tmp_path: Path, tree: Path, repository: StoredRepository) -> None:
    """New, changed, renamed and deleted objects are told apart, and only content that is new
    is sent."""
    disk = make_machine(tmp_path, tree)
    time.sleep(1.1)  # mke2fs writes times in whole seconds
    back_up(repository, disk)
    added = tmp_path / "added"
    added.write_bytes(b"a new file" * 100)
    debugfs(
        disk,
        "rm small1",
        f"write {added} new",
        "ln large etc/moved",
        "unlink large",
        "set_inode_field small2 mode 0100600",
    )
    result = back_up(repository, disk)
    data_set = read_data_set(repository)
    expected = files_below(tree)
    del expected[b"/small1"]
    expected[b"/new"] = added.read_bytes()
    expected[b"/etc/moved"] = expected.pop(b"/large")

    assert data_set.files == expected
    assert data_set.nodes[b"/small2"].mode == 0o600
    assert result.packs_sent == 1
    assert result.bytes_read < 3 * MIB
    assert result.removed == 1
    assert result.new == 1
    assert result.changed >= 1


def test_content_is_sent_once(tmp_path: Path, tree: Path, repository: StoredRepository) -> None:
    """Equal content is stored once, within a run and between runs."""
    for copy in ("copy1", "copy2", "copy3"):
        shutil.copy(tree / "large", tree / copy)
    disk = make_machine(tmp_path, tree, 96 * MIB)
    first = back_up(repository, disk, options=BackupOptions(workers=1))
    again = make_machine(tmp_path, tree, 90 * MIB)
    second = back_up(repository, again)

    assert 10 * MIB < first.bytes_sent < 13 * MIB
    assert second.bytes_sent < MIB
    assert read_data_set(repository).files == files_below(tree)


def test_exclusions(tmp_path: Path, tree: Path, repository: StoredRepository) -> None:
    """What is excluded is not in the set, nor anything below it; what a start needs is named."""
    disk = make_machine(tmp_path, tree)
    done = back_up(repository, disk, options=BackupOptions(exclude=(b"/small?",)))
    assert not any("--exclude" in note for note in done.notes)
    done = back_up(repository, disk, options=BackupOptions(exclude=(b"/etc", b"/small?")))
    assert (
        "--exclude leaves out /etc: a machine that is restored from this data set will not start"
        in done.notes
    )
    paths = set(read_data_set(repository).nodes)

    assert b"/small10" in paths
    assert not any(path.startswith(b"/etc") for path in paths)
    assert b"/small1" not in paths


def test_thin_packs_are_rewritten(tmp_path: Path, tree: Path, repository: StoredRepository) -> None:
    """When most of a pack is no longer needed, the rest is sent again and the pack dropped."""
    disk = make_machine(tmp_path, tree)
    back_up(repository, disk, options=BackupOptions(workers=1))
    debugfs(disk, "rm large", "rm exact")
    back_up(repository, disk, options=BackupOptions(workers=1))
    result = back_up(repository, disk, options=BackupOptions(workers=1))
    expected = files_below(tree)
    del expected[b"/large"], expected[b"/exact"]

    assert result.data_set is not None
    assert result.data_set.size < MIB
    assert result.changed == 0
    assert read_data_set(repository).files == expected


def test_two_disks_of_one_name(tmp_path: Path, tree: Path, repository: StoredRepository) -> None:
    """Two images with the same file name are two disks with names of their own."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    back_up(repository, make_machine(tmp_path / "a", tree), make_machine(tmp_path / "b", tree))
    disks = [
        obj.name
        for obj in read_data_set(repository).objects.values()
        if isinstance(obj, DiskObject)
    ]

    assert len(disks) == len(set(disks)) == 2


def test_damaged_previous_table(tmp_path: Path, tree: Path, repository: StoredRepository) -> None:
    """A previous table that cannot be read costs a note and time, not the backup."""
    disk = make_machine(tmp_path, tree)
    first = back_up(repository, disk)
    assert first.data_set is not None
    (table,) = (tmp_path / "store").rglob(f"tables/{first.data_set.id}")
    data = bytearray(table.read_bytes())
    data[len(data) // 2] ^= 1
    table.write_bytes(data)
    second = back_up(repository, disk)

    assert any("cannot be compared" in note for note in second.notes)
    assert second.new == second.objects
    assert read_data_set(repository).files == files_below(tree)


def test_lost_pack(tmp_path: Path, tree: Path, repository: StoredRepository) -> None:
    """When the store has lost a pack, the next run notices and sends its content again."""
    disk = make_machine(tmp_path, tree)
    back_up(repository, disk)
    packs = sorted((tmp_path / "store").rglob("packs/*/*"), key=lambda path: path.stat().st_size)
    packs[-1].unlink()
    result = back_up(repository, disk)

    assert any("healed 1 damaged pack" in note for note in result.notes)
    assert read_data_set(repository).files == files_below(tree)


def test_over_https(tmp_path: Path, tree: Path) -> None:
    """A backup goes to a server as it goes to a directory, from several processes at once."""
    disk = make_machine(tmp_path, tree)
    (tmp_path / "server").mkdir()
    with (
        ServerProcess.start(tmp_path / "server") as server,
        HttpServer(server.url, server.fingerprint) as host,
    ):
        host.register("user", key_file(), SECRET)
        with host.login("user", SECRET) as repository:
            first = back_up(repository, disk)
            second = back_up(repository, disk)
            data_set = read_data_set(repository)

    assert data_set.files == files_below(tree)
    assert first.packs_sent > 1
    assert second.packs_sent == 0
    assert second.unchanged == second.objects
