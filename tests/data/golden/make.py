# SPDX-License-Identifier: Apache-2.0
"""Make a golden set: a store and a disc as a commit writes them, and what it restores from them.

    cd TREE && PYTHONPATH=TREE python .../tests/data/golden/make.py OUTPUT

TREE is a checkout of the commit that writes; run as root, with the Debian packages of the tests.
Into OUTPUT go `store.tar.xz` (the directory of a server with three data sets of one machine of
two disks), `disc.iso.xz` (the last data set, with fillings in place of kernel and boot loaders)
and `expected.json.xz`: the password, the recovery key, what `snapshots` and `ls` print, and, of
each data set, the SHA-256 of every restored disk and what `fs manifest` says of its volumes.
A set is made once, kept, and never made again: that is what it is good for.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import lzma
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

MIB = 1 << 20
USER, PASSWORD, MACHINE = "anna", "golden set", "desk"
SECTOR = 512
MBR = """label: dos
label-id: 0x60d1de42
1 : start=2048, size=8192, type=6, bootable
2 : start=10240, size=18432, type=5
5 : start=12288, size=16384, type=7
"""
GPT = """label: gpt
label-id: 9F2B7C64-53A1-4D0E-8B7A-2F1C6D5E4A30
1 : start=2048, size=2048, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name=esp
2 : start=4096, size=16384, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, name=root
3 : start=20480, size=2048, type=0657FD6D-A4AB-43C4-84E5-0933C84B4F4F, name=swap
4 : start=22528, size=128, type=21686148-6449-6E6F-744E-656564454649, name=bios
"""
RESTORED_NS = 1_700_000_000 * 10**9  # a new ext volume's own times and numbers come from the clock
FROZEN = f"""
import runpy, sys, time
time.time_ns = lambda: {RESTORED_NS}
sys.argv[0] = "rebuildkit"
runpy.run_module("imagebuilder.cli", run_name="__main__", alter_sys=True)
"""
SIZES = (16 * MIB, 13 * MIB)
FAT, NTFS = (2048, 8192), (12288, 16384)  # start and length in sectors, on the first disk
ESP, ROOT, SWAP, RAW = (2048, 2048), (4096, 16384), (20480, 2048), (22528, 128)
VOLUMES = ((0, 1), (0, 5), (1, 1), (1, 2))  # disk and partition of what has files
BOOT_FILES = {
    "vmlinuz": 30_000,
    "initrd.img": 70_001,
    "shimx64.efi": 5000,
    "gcdx64.efi": 9000,
    "isolinux.bin": 38_912,
    "ldlinux.c32": 4001,
}


def main() -> int:
    """Make the set."""
    output = Path(sys.argv[1]).resolve()
    output.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="golden-") as name:
        work = Path(name)
        os.environ["REBUILDKIT_STATE"] = str(work / "state")
        (work / "password").write_text(PASSWORD)
        expected = make_set(work)
        os.sync()
        with tarfile.open(output / "store.tar.xz", "w:xz", preset=9) as archive:
            # The server's certificate is not part of it: a private key has no place here.
            for path in sorted((work / "store").rglob("*")):
                if path.name not in ("server.key", "server.crt"):
                    archive.add(path, str(path.relative_to(work / "store")), recursive=False)
        (output / "disc.iso.xz").write_bytes(lzma.compress((work / "disc.iso").read_bytes()))
        text = json.dumps(expected, indent=1, sort_keys=True)
        (output / "expected.json.xz").write_bytes(lzma.compress(text.encode()))
    for path in sorted(output.iterdir()):
        print(f"{path.stat().st_size:>8} {path.name}")
    return 0


def make_set(work: Path) -> dict[str, Any]:
    """Make store and disc below `work`; return what is expected of them."""
    images = [work / "disk0.img", work / "disk1.img"]
    make_disks(images, work)
    store, data_sets = work / "store", []
    store.mkdir()
    credentials = ("--user", USER, "--password-file", work / "password")
    with server(store) as place:
        rebuildkit("register", *place, *credentials)
        for number in range(3):
            if number:
                change(images, work, number)
            disks = [word for image in images for word in ("--disk", image)]
            said = rebuildkit(
                "backup", *place, *credentials, "--machine", MACHINE, *disks, "--json"
            )
            data_sets.append(json.loads(said)["data_set"]["id"])
        said = rebuildkit("key", "export", *place, *credentials)
    key = re.search(r"\b(?:[0-9A-Z]{5}-){7}[0-9A-Z]{5}\b", said)
    assert key is not None
    local = ("--store", store, *credentials, "--machine", MACHINE)
    restored = []
    for data_set in data_sets:
        targets = restore(work, ("--from", store, *local[2:], "--data-set", data_set))
        rows = rebuildkit("ls", *local, "--data-set", data_set, "--json").splitlines()
        restored.append(
            {
                "id": data_set,
                "listing": [json.loads(row) for row in rows],
                "images": [hashlib.sha256(path.read_bytes()).hexdigest() for path in targets],
                "manifests": [manifest(targets[disk], number) for disk, number in VOLUMES],
            }
        )
    snapshots = json.loads(rebuildkit("snapshots", *local, "--json"))
    build_disc(store, data_sets[-1], work)
    targets = restore(work, ("--from", work / "disc.iso", *credentials))
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in targets]
    assert digests == restored[-1]["images"]
    return {
        "user": USER,
        "password": PASSWORD,
        "recovery_key": key[0],
        "machine": MACHINE,
        "restored_ns": RESTORED_NS,
        "volumes": VOLUMES,
        "snapshots": snapshots,
        "data_sets": restored,
    }


def make_disks(images: list[Path], work: Path) -> None:
    """Make the two disks: one as DOS and Windows have it, one as Linux does."""
    noise = random.Random("disks")
    for image, size, layout in zip(images, SIZES, (MBR, GPT), strict=True):
        image.write_bytes(b"")
        os.truncate(image, size)
        run("sfdisk", "-q", image, text=layout)
    with images[0].open("r+b") as disk:
        disk.write(b"\xfa\x33\xc0" + noise.randbytes(400))  # stands for boot code
        disk.seek(SECTOR)
        disk.write(noise.randbytes(3000))  # stands for what a boot loader keeps behind it
    put(images[0], FAT, make_fat(work, "16", "GOLDEN", FAT[1]))
    put(images[0], NTFS, make_ntfs(work))
    put(images[1], ESP, make_fat(work, "12", "ESP", ESP[1]))
    put(images[1], ROOT, make_ext(work))
    swap = work / "swap"
    swap.write_bytes(bytes(SWAP[1] * SECTOR))
    run("mkswap", "-q", "-L", "swap", "-U", "60d1de42-0000-4000-8000-000000000003", swap)
    put(images[1], SWAP, swap)
    (work / "raw").write_bytes(noise.randbytes(20_000))
    put(images[1], RAW, work / "raw")


def put(image: Path, place: tuple[int, int], volume: Path) -> None:
    """Put a volume into its partition."""
    data = volume.read_bytes()
    assert len(data) <= place[1] * SECTOR
    with image.open("r+b") as disk:
        disk.seek(place[0] * SECTOR)
        disk.write(data)


def make_fat(work: Path, bits: str, label: str, sectors: int) -> Path:
    """Make a FAT volume with long names, attributes and an empty directory."""
    noise, image = random.Random(label), work / f"fat{bits}"
    image.unlink(missing_ok=True)
    run("mkfs.fat", "-F", bits, "-s", "1", "-n", label, "-i", "60D1DE42", "-C", image, sectors // 2)
    tree = work / f"tree{bits}"
    (tree / "EFI/BOOT").mkdir(parents=True)
    (tree / "empty directory").mkdir()
    (tree / "EFI/BOOT/BOOTX64.EFI").write_bytes(noise.randbytes(3000))
    (tree / "A long name with spaces.text").write_bytes(b"long\r\n" * 500)
    for number in range(20):
        (tree / f"FILE{number}.DAT").write_bytes(noise.randbytes(number * 37))
    for path in (tree, *tree.rglob("*")):
        os.utime(path, (1_500_000_000, 1_500_000_002))
    run("mcopy", "-s", "-m", "-i", image, *sorted(tree.iterdir()), "::")
    run("mattrib", "-i", image, "+r", "+h", "+s", "::FILE3.DAT")
    return image


def make_ext(work: Path) -> Path:
    """Make an ext4 volume with most of what a Linux machine has."""
    image = work / "ext4"
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
        "-O",
        "metadata_csum",
        "-U",
        "60d1de42-0000-4000-8000-000000000002",
        image,
        ROOT[1] // 2,
    )
    noise = random.Random("ext")
    with mounted(image, work, "ext4") as root:
        (root / "etc").mkdir()
        (root / "etc/hostname").write_text("desk\n")
        (root / "etc/os-release").write_text('PRETTY_NAME="Golden Linux 1"\nID=golden\n')
        (root / "etc/fstab").write_text("UUID=60d1de42-0000-4000-8000-000000000002 / ext4\n")
        for number in range(40):
            (root / f"etc/file{number}").write_bytes(noise.randbytes(number * 29))
        (root / "big").write_bytes(noise.randbytes(60_000) + b"text " * 20_000)
        os.link(root / "big", root / "same as big")
        (root / "link").symlink_to("etc/hostname")
        (root / "long link").symlink_to("x" * 200)
        (root / os.fsdecode(b"odd\xff\nname")).write_text("x")
        with (root / "sparse").open("wb") as file:
            file.write(b"start")
            file.seek(500_000)
            file.write(b"end")
        run("fallocate", "-l", 300_000, root / "unwritten")
        os.mkfifo(root / "fifo")
        os.mknod(root / "null", 0o20666, os.makedev(1, 3))
        (root / "tool").write_bytes(b"#!/bin/sh\n")
        (root / "tool").chmod(0o4755)
        run("setcap", "cap_net_raw+ep", root / "big")
        run("setfacl", "-m", "u:1234:rw,g:77:r", root / "etc/hostname")
        run("setfacl", "-d", "-m", "u:1234:rwx", root / "etc")
        os.setxattr(root / "etc", "user.note", b"\0golden")
        os.chown(root / "etc/file7", 4_000_000_000, 70_000)
        for path in (*root.rglob("*"), root):
            os.utime(path, ns=(10**18 + 7, -(10**17) + 123_456_789), follow_symlinks=False)
        run("chattr", "+i", root / "etc/file3")
    return image


def make_ntfs(work: Path) -> Path:
    """Make an NTFS volume with streams, compression, descriptors and reparse points."""
    image, noise = work / "ntfs", random.Random("ntfs")
    image.write_bytes(bytes(NTFS[1] * SECTOR))
    run(
        "mkntfs",
        "-q",
        "-F",
        "-T",
        "-L",
        "golden",
        "-p",
        NTFS[0],
        "-H",
        16,
        "-S",
        63,
        "-s",
        512,
        "-c",
        4096,
        image,
    )
    with mounted(image, work, "ntfs") as root:
        home = root / "Users" / "anna"
        home.mkdir(parents=True)
        (home / "report.txt").write_bytes(b"".join(b"%d\n" % number for number in range(9000)))
        os.setxattr(home / "report.txt", "user.Zone.Identifier", b"[ZoneTransfer]\r\nZoneId=3\r\n")
        os.setxattr(home / "report.txt", "user.large", noise.randbytes(9000))
        os.setxattr(home / "report.txt", "system.ntfs_object_id", noise.randbytes(16))
        os.link(home / "report.txt", root / "another name of it.txt")
        for number in range(30):
            (home / f"file number {number}").write_bytes(noise.randbytes(number * 31))
        os.setxattr(home / "file number 1", "system.ntfs_attrib", struct.pack("<I", 0x27))
        os.setxattr(home, "system.ntfs_dos_name", b"ANNA~1")
        with (root / "sparse").open("wb") as file:
            file.seek(700_000)
            file.write(b"end")
        (root / "packed").mkdir()
        os.setxattr(root / "packed", "system.ntfs_attrib", struct.pack("<I", 0x810))
        (root / "packed/log").write_bytes(b"the same line again and again\n" * 5000)
        (root / "pagefile.sys").write_bytes(noise.randbytes(100_000))
        for path in (*root.rglob("*"), root):
            os.utime(path, ns=(10**18 + 700, 10**18 + 123_456_700), follow_symlinks=False)
        # Last, as ntfs-3g finds no place that this leads to.
        data = "\\??\\C:\\Users".encode("utf-16-le")
        shown = "C:\\Users".encode("utf-16-le")
        head = struct.pack("<HHHH", 0, len(data), len(data) + 2, len(shown))
        body = head + data + b"\0\0" + shown + b"\0\0"
        (root / "junction").mkdir()
        os.setxattr(
            root / "junction",
            "system.ntfs_reparse_data",
            struct.pack("<IHH", 0xA0000003, len(body), 0) + body,
        )
    return image


def change(images: list[Path], work: Path, number: int) -> None:
    """Do what an owner does between two backups."""
    noise = random.Random(number)
    with mounted(images[1], work, "ext4", *ROOT) as root:
        (root / f"new{number}").write_bytes(noise.randbytes(7000))
        (root / f"etc/file{number + 10}").unlink()
        (root / "etc/hostname").write_text(f"desk{number}\n")
        os.rename(root / f"etc/file{number + 20}", root / f"moved{number}")
        for path in (root, root / "etc", root / f"new{number}", root / "etc/hostname"):
            os.utime(path, ns=(10**18, 10**18 + number))
    at = f"{images[0]}@@{FAT[0] * SECTOR}"
    (work / "added").write_bytes(noise.randbytes(5000))
    run("mcopy", "-i", at, work / "added", f"::added in round {number}.bin")
    run("mdel", "-i", at, f"::FILE{number}.DAT")
    volume = work / "ntfs"
    if number == 2:
        with images[0].open("rb") as disk:
            disk.seek(NTFS[0] * SECTOR)
            volume.write_bytes(disk.read(NTFS[1] * SECTOR))
        with mounted(volume, work, "ntfs") as root:
            (root / "Users/anna/file number 5").write_bytes(noise.randbytes(3000))
            (root / "packed/log").unlink()
        put(images[0], NTFS, volume)


@contextmanager
def mounted(image: Path, work: Path, kind: str, start: int = 0, length: int = 0) -> Iterator[Path]:
    """Mount a volume; of a disk, the one at these sectors."""
    place = work / "mounted"
    place.mkdir(exist_ok=True)
    if kind == "ntfs":
        options = "permissions,acl,streams_interface=xattr,compression"
        run("ntfs-3g", "-o", options, image, place)
    else:
        options = f"loop,offset={start * SECTOR}"
        options += f",sizelimit={length * SECTOR}" if length else ""
        run("mount", "-t", kind, "-o", options, image, place)
    try:
        yield place
    finally:
        run("umount", place)


@contextmanager
def server(store: Path) -> Iterator[tuple[object, ...]]:
    """Serve the store; give the options that name the server."""
    command = [sys.executable, "-m", "imagebuilder.cli", "server", "--data", str(store)]
    with subprocess.Popen(
        [*command, "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE, encoding="utf-8"
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        fingerprint = process.stdout.readline().split()[-1]
        try:
            yield ("--server", url, "--fingerprint", fingerprint)
        finally:
            process.terminate()


def restore(work: Path, source: tuple[object, ...]) -> list[Path]:
    """Restore both disks to new images."""
    targets = [work / "restored0.img", work / "restored1.img"]
    for path in targets:
        path.unlink(missing_ok=True)
    disks = [word for path in targets for word in ("--disk", path)]
    run(sys.executable, "-c", FROZEN, "restore", *source, *disks, "--yes", "--verify")
    return targets


def manifest(image: Path, partition: int) -> list[Any]:
    """Return what a volume holds, as `fs manifest` says."""
    said = rebuildkit("fs", "manifest", image, "-p", partition, "--json")
    return [json.loads(line) for line in said.splitlines()]


def build_disc(store: Path, data_set: str, work: Path) -> None:
    """Build the disc with fillings for what boots: nothing starts it, everything reads it."""
    build = importlib.import_module("imagebuilder.build")
    directory = work / "environment"
    directory.mkdir()
    for name, size in BOOT_FILES.items():
        (directory / name).write_bytes((name.encode() * size)[:size])
    code = b"\x33\xed" + b"\x90" * 30
    (directory / "isohdpfx.bin").write_bytes(code + bytes(range(200)) * 2)
    environment = build.BootEnvironment(directory, "6.1.0-0-amd64", {})
    try:
        stores = importlib.import_module("backup.store.local")
    except ModuleNotFoundError:  # in trees whose packages have no sub-packages
        stores = importlib.import_module("backup.store")
    keys = importlib.import_module("backup.objects.keys")
    with ExitStack() as stack:
        if hasattr(stores, "open_store"):
            repository = stack.enter_context(stores.open_store(store)).find_repository(USER)
        else:  # in trees before the seam below the store
            repository = stack.enter_context(stores.LocalRepository.open(store, USER))
        master = keys.unlock(repository.key_file(), USER, PASSWORD)
        build.build_disc(repository, master, data_set, work / "disc.iso", environment=environment)


def rebuildkit(*arguments: object) -> str:
    """Run the command of the tree that PYTHONPATH names; return what it printed."""
    return run(sys.executable, "-m", "imagebuilder.cli", *arguments)


def run(*arguments: object, text: str | None = None) -> str:
    """Run a program; return what it printed."""
    words = [str(word) for word in arguments]
    done = subprocess.run(words, input=text, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        sys.exit(f"{shutil.which(words[0])} {words[1:]}: {done.returncode}\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
