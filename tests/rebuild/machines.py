# SPDX-License-Identifier: Apache-2.0
"""Small machines with a recovery medium, for tests of the engine and of the dialogue.

Made with Debian's mke2fs, mkfs.fat, mkswap and sfdisk, backed up by the agent into a store,
and laid out in a directory as a disc has it.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from backup.agent.backup import run_backup
from backup.agent.result import BackupOptions
from backup.agent.sources import DiskSource
from backup.objects.disc_files import COPIES, KEY_FILE, TABLE, pack_file
from backup.objects.keys import MasterKey, add_recovery_key, bind, create_key_file
from backup.objects.table import read_summary
from backup.store.local import open_store
from rebuild.machine import printable_path
from rebuild.medium import DirectoryMedium
from rebuild.restore import Unlocked, unlock

USER, PASSWORD = "anna", "correct horse"  # of test data only
MACHINE = "desk"
MIB = 1 << 20
ESP = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
BIOS_BOOT = "21686148-6449-6E6F-744E-656564454649"
LINUX = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
SHARED_CONTENT = b"the same in two files\n" * 20


@dataclass(frozen=True)
class Partition:
    """A partition of a disk to make: its type for sfdisk, what is in it, its size."""

    type: str
    content: str  # "ext4", "fat", "swap", "raw" or "nothing"
    size_mib: int


@dataclass(frozen=True)
class SmallMachine:
    """A machine's disks, its store, and its recovery medium as a directory."""

    disks: tuple[Path, ...]
    store: Path
    medium_path: Path
    master: MasterKey
    recovery_key: str
    password: str = PASSWORD

    def medium(self, name: str = "this disc") -> DirectoryMedium:
        """Open the medium."""
        return DirectoryMedium(str(self.medium_path), name)

    def unlocked(self) -> Unlocked:
        """Load the table, without the cost of a password."""
        return unlock(self.medium(), "", "", master=self.master)


def make_tree(path: Path, file_count: int = 60) -> Path:
    """Make files of many kinds below `path`, the same each time."""
    noise = random.Random(11)
    many = path / "many"
    many.mkdir(parents=True)
    for number in range(file_count):
        content = b"" if number % 20 == 0 else noise.randbytes(noise.randrange(1, 6000))
        (many / f"file-{number:04}").write_bytes(content)
    (path / "large").write_bytes(noise.randbytes(9 * MIB + 77))  # more than one pack
    for name in ("one", "two"):
        (path / name).write_bytes(SHARED_CONTENT)
    os.link(path / "one", path / "link to one")
    (path / "symbolic").symlink_to("large")
    names: tuple[bytes, ...] = ("größe-日本語".encode(), b"bad-\xff\xfe", b"line\nfeed", b"n" * 200)
    for name_ in names:
        Path(os.fsdecode(bytes(path) + b"/" + name_)).write_bytes(b"content of " + name_)
    return path


def make_disk(path: Path, scheme: str, tree: Path, *partitions: Partition) -> Path:
    """Make a disk image; `scheme` is "dos" or "gpt" as sfdisk calls it."""
    position, script, places = MIB, f"label: {scheme}\n", []
    for part in partitions:
        size = part.size_mib * MIB
        script += f"start={position // 512}, size={size // 512}, type={part.type}\n"
        places.append((position, part))
        position += size
    with path.open("wb") as stream:
        stream.truncate(position + MIB)
    subprocess.run(["sfdisk", "-q", str(path)], input=script, text=True, check=True)
    for position, part in places:
        volume = path.with_suffix(".volume")
        _make_volume(volume, part, tree)
        with path.open("r+b") as stream:
            stream.seek(position)
            stream.write(volume.read_bytes())
        volume.unlink()
    return path


def _make_volume(path: Path, part: Partition, tree: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(part.size_mib * MIB)
        if part.content == "raw":
            stream.write(random.Random(5).randbytes(100_000))
    commands = {
        "ext4": ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-L", "root", "-d", str(tree)],
        "fat": ["mkfs.fat", "-n", "ESP"],
        "swap": ["mkswap", "-q", "-L", "swap"],
    }
    if part.content in commands:
        command = [*commands[part.content], str(path)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    if part.content == "fat":
        for directory in ("EFI", "EFI/debian"):
            subprocess.run(["mmd", "-i", str(path), f"::{directory}"], check=True)
        for name in ("shimx64.efi", "grubx64.efi"):
            source = path.with_suffix(".efi")
            source.write_bytes(name.encode() * 1000)
            subprocess.run(
                ["mcopy", "-i", str(path), str(source), f"::EFI/debian/{name}"], check=True
            )
            source.unlink()


def back_up(
    directory: Path, disks: Sequence[Path], password: str = PASSWORD, *, allow_raw: bool = False
) -> SmallMachine:
    """Back the disks up into a store below `directory`, and lay its medium out."""
    made = create_key_file(USER, password)
    key_file, recovery_key = add_recovery_key(made.data, made.master)
    store = directory / "store"
    with open_store(store, create=True) as host:
        host.register(USER, key_file, made.login_secret)
        repository = host.login(USER, made.login_secret)
        sources = [DiskSource(str(disk)) for disk in disks]
        run_backup(
            repository, made.master, MACHINE, sources, BackupOptions(workers=1, allow_raw=allow_raw)
        )
        info = repository.data_sets()[-1]
        medium = directory / "medium"
        for name in (COPIES, "objects"):
            (medium / name).mkdir(parents=True)
        with repository.open_table(info.id) as stream:
            table = stream.read()
            stream.seek(0)
            packs = read_summary(made.master, stream).packs
        bound = bind(key_file, made.master, bytes.fromhex(info.id))
        for prefix in ("", f"{COPIES}/"):
            (medium / f"{prefix}{KEY_FILE}").write_bytes(bound)
            (medium / f"{prefix}{TABLE}").write_bytes(table)
        for index, pack in enumerate(packs):
            data = repository.read_pack(pack.digest, 0, pack.size)
            (medium / pack_file(index)).write_bytes(data)
        repository.close()
    return SmallMachine(tuple(disks), store, medium, made.master, recovery_key, password)


def names_in(unlocked: Unlocked, pack: int, begin: int, end: int) -> set[str]:
    """Return the names of the objects with content in a part of a pack, as reports have them."""
    found = set()
    machine = unlocked.machine
    owners: dict[int, str] = {disk.number: f"{disk.name}: boot area" for disk in machine.disks}
    for tree in machine.trees.values():
        by_number = {item.number: item for item in tree.nodes}
        place = tree.volume.partition
        owners[tree.volume.number] = f"partition {place}"
        for item in tree.nodes:
            owners[item.number] = f"{place}:{printable_path(item, by_number)}"
    for number, pieces in machine.iter_content():
        for piece in pieces:
            last = piece.pack_offset + piece.sealed_length
            if piece.pack == pack and piece.pack_offset < end and begin < last:
                found.add(owners[number])
    return found


def make_mbr_machine(directory: Path, password: str = PASSWORD) -> SmallMachine:
    """A machine with one MBR disk: a small FAT volume, ext4, swap."""
    tree = make_tree(directory / "tree")
    disk = make_disk(
        directory / "sda.img",
        "dos",
        tree,
        Partition("c", "fat", 4),
        Partition("83", "ext4", 48),
        Partition("82", "swap", 8),
    )
    return back_up(directory, [disk], password)


def make_gpt_machine(directory: Path) -> SmallMachine:
    """A machine with one GPT disk: an ESP, ext4, and behind it swap and a BIOS boot partition."""
    tree = make_tree(directory / "tree")
    disk = make_disk(
        directory / "sda.img",
        "gpt",
        tree,
        Partition(ESP, "fat", 4),
        Partition(LINUX, "ext4", 48),
        Partition(BIOS_BOOT, "raw", 1),
    )
    return back_up(directory, [disk])


def make_two_disk_machine(directory: Path) -> SmallMachine:
    """A machine with two disks, the second of them one volume without a partition table."""
    tree = make_tree(directory / "tree", 5)
    first = make_disk(directory / "sda.img", "dos", tree, Partition("83", "ext4", 32))
    second = directory / "sdb.img"
    _make_volume(second, Partition("83", "ext4", 24), tree)
    return back_up(directory, [first, second])
