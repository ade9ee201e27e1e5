# SPDX-License-Identifier: Apache-2.0
"""The running machine as a source: what the kernel says, and walking mounted trees."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import stat
import subprocess
import time
from pathlib import Path

import pytest

from backup.agent.exclusions import compile_exclusions
from backup.agent.live.linux import file_extents
from backup.agent.live.reader import LiveReader
from backup.agent.live.scan import LiveScan
from backup.agent.local_set import LocalSet
from backup.agent.machine import (
    KernelDisk,
    KernelPartition,
    Machine,
    Mount,
    iter_mounts,
    read_machine,
)
from backup.agent.previous import index_objects
from backup.objects.model import (
    DiskObject,
    MarkerObject,
    NodeObject,
    ObjectKind,
    SecurityObject,
    VolumeObject,
)
from fsdrivers.volume import Plain
from tests.backup.agent.machines import (
    MASTER,
    MIB,
    back_up_live,
    files_below,
    loop_device,
    make_disk,
    make_ext4,
    make_repository,
    numbers_of,
    read_data_set,
)
from tests.fsdrivers.ext.volumes import make_image, mounted, open_image

is_root = os.geteuid() == 0


def scan(tree: Path, previous: LocalSet | None = None, **options: object) -> LocalSet:
    """Walk a directory as if it were a mounted volume."""
    known = None
    if previous is not None:
        known = index_objects(previous.objects, started_ns=time.time_ns())
    local = LocalSet(MASTER, known)
    local.add(DiskObject(1, "sda", MIB, 512, "none", {}))
    volume = VolumeObject(2, 1, 0, "ext4", MIB, 0, "uuid", b"", {}, mount_point=b"/")
    local.add(volume)
    LiveScan(local, volume, os.fsencode(tree), b"/", **options).run()  # type: ignore[arg-type]
    return local


def nodes_of(local: LocalSet) -> dict[str, NodeObject]:
    """Return the nodes of a local set by path."""
    return {
        local.path_of(place): obj
        for place, obj in enumerate(local.objects)
        if isinstance(obj, NodeObject)
    }


def test_all_kinds_of_nodes(tmp_path: Path) -> None:
    """Every kind of node is listed with what lstat says of it."""
    (tmp_path / "directory").mkdir(mode=0o751)
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to(b"a\xff\nb".decode("utf-8", "surrogateescape"))
    os.link(tmp_path / "file", tmp_path / "hard")
    os.mkfifo(tmp_path / "fifo", 0o640)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    if is_root:
        os.mknod(tmp_path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    nodes = nodes_of(scan(tmp_path))

    assert nodes["/link"].target == b"a\xff\nb"
    assert {nodes["/file"].kind, nodes["/hard"].kind} == {ObjectKind.FILE, ObjectKind.HARD_LINK}
    assert nodes["/fifo"].kind is ObjectKind.FIFO
    assert nodes["/socket"].kind is ObjectKind.SOCKET
    if is_root:
        assert nodes["/null"].device == (1, 3)
    for path, node in nodes.items():
        status = os.lstat(f"{tmp_path}{path}")
        if node.kind is not ObjectKind.HARD_LINK:
            assert (node.mode, node.uid) == (stat.S_IMODE(status.st_mode), status.st_uid)
            assert node.modified_ns == status.st_mtime_ns
            assert node.changed_ns == status.st_ctime_ns
            assert node.source_number == status.st_ino
            assert node.size == (status.st_size if node.kind in (2, 3) else 0)


def test_numbers_ascend_and_parents_come_first(tmp_path: Path) -> None:
    """Numbers are consecutive, and what an object refers to has a smaller one."""
    for number in range(20):
        directory = tmp_path / f"d{number % 3}" / f"e{number % 5}"
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"f{number}"
        path.write_bytes(b"x")
        with contextlib.suppress(OSError):
            os.setxattr(path, b"user.number", str(number % 4).encode())
    objects = scan(tmp_path).objects

    assert [obj.number for obj in objects] == list(range(1, len(objects) + 1))
    for obj in objects:
        if isinstance(obj, NodeObject):
            assert max(obj.parent, obj.security, obj.volume) < obj.number


def test_unchanged_objects_are_taken_over(tmp_path: Path) -> None:
    """A second walk takes over what is unchanged and queues only what has to be read."""
    (tmp_path / "kept").write_bytes(b"kept")
    (tmp_path / "changed").write_bytes(b"before")
    (tmp_path / "gone").write_bytes(b"gone")
    first = scan(tmp_path)
    kept = nodes_of(first)["/kept"]
    time.sleep(0.05)
    (tmp_path / "changed").write_bytes(b"after!")
    (tmp_path / "gone").unlink()
    (tmp_path / "new").write_bytes(b"new")
    second = scan(tmp_path, first)

    assert nodes_of(second)["/kept"] is kept
    read = {second.path_of(work.place) for work in second.work}
    assert read == {"/changed", "/new"}
    left = (*second.previous.iter_left(), *second.replaced)  # its inode may be used again
    assert {old.name for old in left} == {b"gone"}


def test_recent_changes_are_read_again(tmp_path: Path) -> None:
    """What changed within a clock tick of the previous run is not trusted to be unchanged."""
    (tmp_path / "file").write_bytes(b"content")
    first = scan(tmp_path)
    changed_ns = nodes_of(first)["/file"].changed_ns
    assert changed_ns is not None
    known = index_objects(first.objects, started_ns=changed_ns + 1_000_000)
    local = LocalSet(MASTER, known)
    local.add(DiskObject(1, "sda", MIB, 512, "none", {}))
    volume = VolumeObject(2, 1, 0, "ext4", MIB, 0, "uuid", b"", {}, mount_point=b"/")
    local.add(volume)
    LiveScan(local, volume, os.fsencode(tmp_path), b"/").run()

    assert [local.path_of(work.place) for work in local.work] == ["/file"]


def test_exclusions(tmp_path: Path) -> None:
    """Excluded paths are as users see them, and nothing below them is visited."""
    (tmp_path / "var" / "cache" / "apt").mkdir(parents=True)
    (tmp_path / "var" / "log").mkdir()
    local = scan(tmp_path, is_excluded=compile_exclusions([b"/var/cache"]))

    assert set(nodes_of(local)) == {"/", "/var", "/var/log"}


def test_names_and_paths_of_any_length(tmp_path: Path) -> None:
    """Trees deeper than any path may be long are walked, and their files can be read."""
    descriptor = os.open(tmp_path, os.O_RDONLY)
    for _ in range(25):
        os.mkdir(b"d" * 250, dir_fd=descriptor)
        below = os.open(b"d" * 250, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    file = os.open(b"\xff\xfe\n", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor)
    os.write(file, b"deep")
    os.close(file)
    os.close(descriptor)
    local = scan(tmp_path)
    (work,) = local.work
    loaded = local.readers[work.reader].load(local.objects[work.place], None, None)

    assert loaded.chunks == [(0, b"deep")]
    subprocess.run(["rm", "-rf", str(tmp_path / ("d" * 250))], check=True)


def load(local: LocalSet, path: str) -> tuple[bytes, NodeObject, object]:
    """Read a file of a local set as a worker does; return its content and what came with it."""
    for work in local.work:
        obj = local.objects[work.place]
        if local.path_of(work.place) == path and isinstance(obj, NodeObject):
            loaded = local.readers[work.reader].load(obj, None, work.ranges)
            content = bytearray(obj.size)
            for offset, data in loaded.chunks:
                content[offset : offset + len(data)] = data
            return bytes(content), obj, loaded
    raise AssertionError(path)


def test_sparse_and_unwritten_parts(tmp_path: Path) -> None:
    """Holes and preallocated parts of a live file are told apart where the kernel does."""
    path = tmp_path / "sparse"
    with path.open("wb") as stream:
        stream.truncate(4 * MIB)
        stream.seek(MIB)
        stream.write(b"x" * 4096)
        os.posix_fallocate(stream.fileno(), 2 * MIB, MIB)
        stream.flush()
        os.fsync(stream.fileno())
        knows_unwritten = file_extents(stream.fileno(), 4 * MIB) is not None
    content, _, loaded = load(scan(tmp_path), "/sparse")
    regions = loaded.regions  # type: ignore[attr-defined]

    assert content == path.read_bytes()
    assert regions[0] == (MIB, 4096, False)
    if knows_unwritten:
        assert regions[1:] == ((2 * MIB, MIB, True),)


def test_reading_leaves_no_access_time(tmp_path: Path) -> None:
    """Neither walking nor reading changes the time of the last access."""
    path = tmp_path / "file"
    path.write_bytes(b"content")
    for target in (path, tmp_path):
        os.utime(target, ns=(1_000_000_000, time.time_ns()))
    load(scan(tmp_path), "/file")

    assert os.stat(path).st_atime_ns == 1_000_000_000
    assert os.stat(tmp_path).st_atime_ns == 1_000_000_000


def test_file_that_changes_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that never holds still is kept as it was read last, with a warning, and size and
    content agree."""
    path = tmp_path / "log"
    path.write_bytes(b"line\n" * 800_000)
    local = scan(tmp_path)
    pread = os.pread

    def pread_while_others_write(descriptor: int, length: int, offset: int) -> bytes:
        with path.open("ab") as stream:
            stream.write(b"more\n")
        return pread(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", pread_while_others_write)
    _, _, loaded = load(local, "/log")
    size = sum(len(data) for _, data in loaded.chunks)  # type: ignore[attr-defined]

    assert "changed while it was read" in loaded.warning  # type: ignore[attr-defined]
    assert loaded.facts.size == size >= 4_000_000  # type: ignore[attr-defined]


def test_file_changed_since_the_scan(tmp_path: Path) -> None:
    """A file that changed between scan and reading is taken as it is when it is read."""
    path = tmp_path / "file"
    path.write_bytes(b"before")
    local = scan(tmp_path)
    path.write_bytes(b"after that")
    _, _, loaded = load(local, "/file")

    assert loaded.chunks == [(0, b"after that")]  # type: ignore[attr-defined]
    assert loaded.facts.size == 10  # type: ignore[attr-defined]
    assert not loaded.warning  # type: ignore[attr-defined]


def test_file_that_is_gone_or_replaced(tmp_path: Path) -> None:
    """A file that was removed is gone; one that was replaced is the other one, with all it has."""
    (tmp_path / "removed").write_bytes(b"1")
    (tmp_path / "replaced").write_bytes(b"2")
    local = scan(tmp_path)
    (tmp_path / "removed").unlink()
    (tmp_path / "other").write_bytes(b"3")
    (tmp_path / "other").rename(tmp_path / "replaced")

    with pytest.raises(FileNotFoundError):
        load(local, "/removed")
    _, _, loaded = load(local, "/replaced")
    assert loaded.chunks == [(0, b"3")]  # type: ignore[attr-defined]
    assert loaded.facts.number == os.stat(tmp_path / "replaced").st_ino  # type: ignore[attr-defined]


@pytest.mark.parametrize("way", ["a link on the way", "a further name", "a directory"])
def test_what_cannot_be_taken_for_a_file(tmp_path: Path, way: str) -> None:
    """What a link on the way leads to, or what has names elsewhere, is not read in a file's place:
    who may rename in a directory could have any file read."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "file").write_bytes(b"1")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "file").write_bytes(b"secret")
    local = scan(tmp_path)
    (tmp_path / "home" / "file").unlink()
    if way == "a link on the way":
        (tmp_path / "home").rmdir()
        (tmp_path / "home").symlink_to("root")
    elif way == "a further name":
        os.link(tmp_path / "root" / "file", tmp_path / "home" / "file")
    else:
        (tmp_path / "home" / "file").mkdir()

    with pytest.raises(FileNotFoundError):
        load(local, "/home/file")


def test_swap_file(tmp_path: Path) -> None:
    """Of a swap file its header is kept; the rest is allocated, unread, and marked as blank."""
    path = tmp_path / "swapfile"
    path.write_bytes(random.Random(1).randbytes(64 * 1024))
    status = os.stat(path)
    local = scan(tmp_path, swap_files=frozenset({(status.st_dev, status.st_ino)}))
    (marker,) = (obj for obj in local.objects if isinstance(obj, MarkerObject))
    node = nodes_of(local)["/swapfile"]
    content, _, _ = load(local, "/swapfile")

    assert (marker.name, marker.target) == ("blank-file", node.number)
    assert node.regions == ((0, 4096, False), (4096, 60 * 1024, True))
    assert content == path.read_bytes()[:4096] + bytes(60 * 1024)


@pytest.mark.root
@pytest.mark.tools
def test_file_found_by_its_sectors(tmp_path: Path) -> None:
    """A boot file is marked with where the kernel says it is, taken over unread or not."""
    image = make_image(tmp_path / "image", 16 * MIB, "-t", "ext2", "-b", "1024")
    with mounted(image) as root:
        (root / "boot").mkdir()
        (root / "boot" / "ldlinux.sys").write_bytes(random.Random(2).randbytes(59392))
        (root / "boot" / "ldlinux.c32").write_bytes(b"module")
        first = scan(root)
        second = scan(root, first)
    volume = open_image(image)
    (node,) = (entry.node for entry in volume.walk() if entry.name == b"ldlinux.sys")
    extents = [[part.position, part.length] for part in volume.extents(node)]

    assert len(extents) > 1
    for local in (first, second):
        (marker,) = (obj for obj in local.objects if isinstance(obj, MarkerObject))
        assert (marker.name, marker.data) == ("placed-file", {"extents": extents})
        assert marker.target == nodes_of(local)["/boot/ldlinux.sys"].number


MOUNTINFO = rb"""21 1 8:2 / / rw,relatime shared:1 - ext4 /dev/sda2 rw
22 21 0:21 / /proc rw - proc proc rw
23 21 8:1 / /boot/e\040fi rw - vfat /dev/sda1 rw
24 21 8:2 /home /srv/homes rw - ext4 /dev/sda2 rw
"""


def make_system(root: Path) -> None:
    """Write what the kernel of a small machine would show."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "mountinfo").write_bytes(MOUNTINFO)
    swaps = b"Filename\tType\tSize\tUsed\tPriority\n/swap\\040file file 1 0 -2\n/dev/sda3 partition"
    (root / "proc" / "swaps").write_bytes(swaps)
    (root / "etc").mkdir()
    (root / "etc" / "os-release").write_text('ID=debian\nPRETTY_NAME="Debian 12"\n')
    block = root / "sys" / "block"
    disks = {"sda": (8, 0, 0, 0), "sdb": (8, 16, 1, 0), "sr0": (11, 0, 1, 0), "vdb": (254, 0, 0, 1)}
    for name, (major, minor, removable, read_only) in {**disks, "loop0": (7, 0, 0, 0)}.items():
        directory = block / name
        directory.mkdir(parents=True)
        facts = {"size": 2048 * 100, "removable": removable, "ro": read_only}
        for file, value in facts.items():
            (directory / file).write_text(f"{value}\n")
        (directory / "dev").write_text(f"{major}:{minor}\n")
    (block / "sda" / "device").mkdir()
    (block / "sda" / "device" / "model").write_text("VirtIO Disk     \n")
    for number in (1, 2, 10):
        directory = block / "sda" / f"sda{number}"
        directory.mkdir()
        facts = {"partition": number, "start": 2048 * number, "size": 2048}
        for file, value in facts.items():
            (directory / file).write_text(f"{value}\n")
        (directory / "dev").write_text(f"8:{number}\n")


def test_machine(tmp_path: Path) -> None:
    """Disks are found with partitions in order; optical, loop, read-only and unused removable
    ones are not."""
    make_system(tmp_path)
    machine = read_machine(str(tmp_path))
    (disk,) = machine.disks

    assert (disk.name, disk.model, disk.size) == ("sda", "VirtIO Disk", 100 * MIB)
    assert [partition.number for partition in disk.partitions] == [1, 2, 10]
    assert disk.partitions[1] == KernelPartition("sda2", 2, (8, 2), 2 * MIB, MIB)
    assert [mount.point for mount in machine.mounts_of((8, 1))] == [b"/boot/e fi"]
    assert machine.mounts_of((8, 2)) == [Mount((8, 2), b"/", b"/", "ext4", b"/dev/sda2")]
    assert machine.swap_files == (b"/swap file",)
    assert machine.system["os"] == "debian"


@pytest.mark.root
@pytest.mark.tools
def test_project_numbers(tmp_path: Path) -> None:
    """A mounted ext volume's project numbers are kept as the attribute that stands for them."""
    image, point, file = tmp_path / "image", tmp_path / "mnt", tmp_path / "file"
    point.mkdir()
    file.write_bytes(b"content")
    with open(image, "wb") as made:
        made.truncate(16 * MIB)
    subprocess.run(["mke2fs", "-qF", "-t", "ext4", "-O", "project", image], check=True)
    requests = f"write {file} file\nwrite {file} other\nsif file projid 4000000000\n"
    subprocess.run(["debugfs", "-w", "-f", "-", image], input=requests, text=True, check=True)
    subprocess.run(["mount", "-o", "loop,ro", image, point], check=True)
    try:
        local = LocalSet(MASTER, None)
        local.add(DiskObject(1, "sda", MIB, 512, "none", {}))
        description: dict[str, Plain] = {"feature_ro_compat": 0x2000}
        volume = VolumeObject(2, 1, 0, "ext4", MIB, 0, "uuid", b"", description, mount_point=b"/")
        local.add(volume)
        LiveScan(local, volume, os.fsencode(point), b"/").run()
    finally:
        subprocess.run(["umount", point], check=True)
    found = nodes_of(local)
    security = local.lookup(found["/file"].security)
    assert isinstance(security, SecurityObject)
    assert security.xattrs == ((b"system.ext4_project", (4000000000).to_bytes(4, "little")),)
    assert not found["/other"].security


@pytest.mark.root
@pytest.mark.tools
def test_mounted_volume(tmp_path: Path) -> None:
    """A mounted volume is backed up through the kernel while it is in use, and what other
    mounts cover is seen."""
    tree, mounted = tmp_path / "tree", tmp_path / "mnt"
    mounted.mkdir()
    (tree / "proc").mkdir(parents=True)
    (tree / "covered").mkdir()
    (tree / "covered" / "file").write_bytes(b"below a mount")
    (tree / "large").write_bytes(random.Random(5).randbytes(9 * MIB))
    disk = make_disk(
        tmp_path / "disk.img", ("83", make_ext4(tmp_path / "volume.img", tree, 64 * MIB))
    )
    time.sleep(1.1)  # mke2fs writes times in whole seconds
    size = disk.stat().st_size
    with (
        make_repository(tmp_path / "store") as repository,
        loop_device(disk) as whole,
        loop_device(disk, MIB) as part,
    ):
        partition = KernelPartition(
            os.path.basename(part), 1, numbers_of(part), MIB, size - 2 * MIB
        )
        subprocess.run(["mount", part, str(mounted)], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "none", str(mounted / "covered")], check=True)
        try:
            (mounted / "covered" / "hidden").write_bytes(b"on a tmpfs")
            (mounted / "written").write_bytes(b"not on the medium yet")
            machine = Machine(
                (KernelDisk("sda", whole, numbers_of(whole), size, False, "", "", (partition,)),),
                tuple(iter_mounts(Path("/proc/self/mountinfo").read_bytes())),
                (),
                {"os": "debian"},
            )
            first = back_up_live(repository, machine)
            (mounted / "written").write_bytes(b"changed")
            second = back_up_live(repository, machine)
        finally:
            subprocess.run(["umount", str(mounted / "covered")], check=True)
            subprocess.run(["umount", str(mounted)], check=True)
        data_set = read_data_set(repository)
    expected = files_below(tree) | {b"/written": b"changed"}

    assert data_set.files == expected
    assert [volume.mount_point for volume in data_set.volumes] == [os.fsencode(mounted)]
    assert data_set.nodes[b"/written"].created_ns
    assert not first[0].warnings
    assert second[0].bytes_read < 2 * MIB


def test_reader_paths() -> None:
    """The path of a node is that of its parents below the base."""
    objects = {
        1: NodeObject(1, ObjectKind.DIRECTORY, 0, 0, b""),
        2: NodeObject(2, ObjectKind.DIRECTORY, 0, 1, b"a"),
        3: NodeObject(3, ObjectKind.FILE, 0, 2, b"\xff"),
    }
    reader = LiveReader(b"/base/.", objects.__getitem__)

    assert reader.path_of(objects[3]) == b"/base/./a/\xff"
    assert reader.path_of(objects[1]) == b"/base/."


@pytest.mark.root
@pytest.mark.tools
def test_mounted_fat_volume(tmp_path: Path) -> None:
    """A mounted FAT volume is flushed and read by our driver: names, and what was just written."""
    volume = tmp_path / "volume.img"
    with volume.open("wb") as stream:
        stream.truncate(40 * MIB)
    subprocess.run(["mkfs.vfat", "-F", "32", str(volume)], check=True, capture_output=True)
    disk = make_disk(tmp_path / "disk.img", ("ef", volume))
    size = disk.stat().st_size
    found = []
    with (
        make_repository(tmp_path / "store") as repository,
        loop_device(disk) as whole,
        loop_device(disk, MIB) as part,
    ):
        partition = KernelPartition(os.path.basename(part), 1, numbers_of(part), MIB, 40 * MIB)
        # Not every kernel has vfat: another process writes what a mount would have flushed.
        mount = Mount(numbers_of(part), b"/", b"/boot/efi", "vfat", os.fsencode(part))
        kernel = KernelDisk("sda", whole, numbers_of(whole), size, False, "", "", (partition,))
        for content in (b"first", b"second"):
            (tmp_path / "Long name.efi").write_bytes(content * 1000)
            target = f"{disk}@@{MIB}"
            source = str(tmp_path / "Long name.efi")
            subprocess.run(["mcopy", "-o", "-i", target, source, "::"], check=True)
            back_up_live(repository, Machine((kernel,), (mount,), ()))
            found.append(read_data_set(repository))

    assert [data_set.files for data_set in found] == [
        {b"/Long name.efi": b"first" * 1000},
        {b"/Long name.efi": b"second" * 1000},
    ]
    assert found[0].nodes[b"/Long name.efi"].short_name == b"LONGNA~1EFI"
    assert found[0].volumes[0].mount_point == b"/boot/efi"
