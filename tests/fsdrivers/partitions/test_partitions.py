# SPDX-License-Identifier: Apache-2.0
"""Partition tables, read and written; sfdisk and sgdisk are the oracles."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from fsdrivers.device import FileDevice, MemoryDevice
from fsdrivers.errors import (
    CorruptError,
    FilesystemError,
    NoSpaceError,
    NotFoundError,
    UnsupportedError,
)
from fsdrivers.partitions import (
    PartitionTable,
    open_partition,
    outside_regions,
    plan_table,
    read_table,
    usable_end,
)
from fsdrivers.partitions.chs import Geometry, decode, guess_geometry
from fsdrivers.partitions.format import (
    BootRecord,
    GptEntry,
    GptHeader,
    MbrEntry,
    guid_text,
)
from tests.fsdrivers.faults import FaultyDevice
from tests.fsdrivers.partitions.tables import (
    MBR_SCRIPT,
    MIB,
    SIZE,
    ebr,
    image,
    mbr_device,
    mbr_entry,
    sfdisk_image,
)
from tests.programs import run

GPT_SCRIPT = """label: gpt
label-id: 11111111-2222-3333-4444-55556666ABCD
unit: sectors
1 : start=2048, size=20480, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name="EFI"
3 : start=40960, size=20480, name="ro\u00f6t \u2603", attrs="LegacyBIOSBootable,GUID:60"
128 : start=24576, size=4096, type=0657FD6D-A4AB-43C4-84E5-0933C84B4F4F
"""


def table_of(path: Path, sector_size: int | None = None) -> PartitionTable:
    with FileDevice.open(path, sector_size=sector_size) as device:
        return read_table(device)


def write(path: Path, writes: list[tuple[int, bytes]]) -> None:
    with FileDevice.open(path, writable=True) as device:
        for position, data in writes:
            device.write(position, data)


def dump(path: Path) -> list[str]:
    """What sfdisk says of the table, but the path and the sizes that follow the disk."""
    text = run("sfdisk", "--dump", path).replace(str(path), "DISK")
    return [line for line in text.splitlines() if not line.startswith(("last-lba", "device"))]


def ids(lines: list[str]) -> list[str]:
    """A dump without starts and sizes."""
    return [re.sub(r"(start|size)= *\d+, ", "", line) for line in lines]


@pytest.mark.tools
def test_reads_mbr_with_logical_partitions(tmp_path: Path) -> None:
    """Numbers, places, types and ids of an MBR equal what sfdisk was asked for."""
    table = table_of(sfdisk_image(tmp_path, MBR_SCRIPT))

    assert (table.scheme, table.disk_id, table.problems) == ("mbr", "deadbeef", ())
    assert [(e.number, e.start // 512, e.size // 512, e.type) for e in table.entries] == [
        (1, 2048, 20480, "83"),
        (2, 22528, 90000, "05"),
        (4, 114688, 2048, "82"),
        (5, 24576, 10240, "83"),
        (6, 40960, 4096, "07"),
        (7, 49152, 8192, "0c"),
    ]
    assert [e.number for e in table.entries if e.is_active] == [1]
    assert [e.number for e in table.entries if e.is_extended] == [2]
    assert [e.container for e in table.entries] == [0, 0, 0, 2, 2, 2]
    assert table.entries[3].partuuid == "deadbeef-05"
    assert f'PTUUID="{table.disk_id}"' in run("blkid", "--probe", tmp_path / "disk.img")


@pytest.mark.tools
@pytest.mark.parametrize("sector_size", [512, 4096])
def test_reads_gpt(tmp_path: Path, sector_size: int) -> None:
    """Numbers, places, GUIDs, names and attributes of a GPT equal what sfdisk says."""
    path = image(tmp_path, SIZE * 8)
    script = tmp_path / "script"
    script.write_text(GPT_SCRIPT)
    run("fdisk", "--sector-size", sector_size, path, text=f"I\n{script}\nw\n")
    table = table_of(path)

    assert (table.scheme, table.sector_size, table.problems) == ("gpt", sector_size, ())
    assert table.disk_id == "11111111-2222-3333-4444-55556666abcd"
    assert [(e.number, e.start // sector_size, e.size // sector_size) for e in table.entries] == [
        (1, 2048, 20480),
        (3, 40960, 20480),
        (128, 24576, 4096),
    ]
    assert table.entries[0].type == "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
    assert [e.name for e in table.entries] == ["EFI", "ro\u00f6t \u2603", ""]
    assert table.entries[1].flags == 1 << 60 | 1 << 2
    assert table.entries[1].is_active
    listed = run("fdisk", "--sector-size", sector_size, "--list", "-o", "UUID", path)
    assert re.findall(r"^[0-9A-F-]{36}$", listed, re.M) == [e.guid for e in table.entries]


@pytest.mark.tools
@pytest.mark.parametrize("script", [MBR_SCRIPT, GPT_SCRIPT], ids=["mbr", "gpt"])
def test_unchanged_plan_rewrites_the_same_bytes(tmp_path: Path, script: str) -> None:
    """Planned for the same disk with nothing moved, every sector equals what sfdisk wrote."""
    path = sfdisk_image(tmp_path, script)
    with FileDevice.open(path, writable=True) as device:
        device.write(0, b"boot code")
    before = path.read_bytes()
    table = table_of(path)
    writes = plan_table(table.description, disk_size=SIZE, sector_size=512, boot_code=before[:440])
    blank = image(tmp_path, name="blank.img")
    write(blank, writes)

    for position, data in writes:
        assert before[position : position + len(data)] == data
    assert dump(blank) == dump(path)


@pytest.mark.tools
@pytest.mark.parametrize(
    ("size", "places"),
    [
        (SIZE * 3, {7: (24 * MIB, 160 * MIB), 2: (11 * MIB, 174 * MIB), 4: (190 * MIB, MIB)}),
        (SIZE // 2, {4: (31 * MIB, MIB), 2: (11 * MIB, 18 * MIB), 6: (18 * MIB, MIB),
                     7: (20 * MIB, MIB)}),
        (SIZE, {5: (26 * MIB, MIB), 7: (12 * MIB, MIB)}),
        (SIZE, {5: (11 * MIB + 512, MIB), 6: (12 * MIB + 1024, 512)}),
    ],
    ids=["larger", "smaller", "reordered", "tight"],
)  # fmt: skip
def test_mbr_on_another_disk(tmp_path: Path, size: int, places: dict[int, tuple[int, int]]) -> None:
    """sfdisk finds the moved partitions under the same numbers, ids, types and flags, no errors."""
    source = sfdisk_image(tmp_path, MBR_SCRIPT)
    table = table_of(source)
    target = image(tmp_path, size, "target.img")
    write(
        target,
        plan_table(table.description, disk_size=size, sector_size=512, placements=places),
    )
    verify = run("sfdisk", "--verify", target)
    made = table_of(target)

    assert "No errors detected" in verify
    assert ids(dump(target)) == ids(dump(source))
    for entry in made.entries:
        old = table.entry(entry.number)
        assert old is not None
        assert (entry.start, entry.size) == places.get(entry.number, (old.start, old.size))
        line = next(line for line in dump(target) if line.startswith(f"DISK{entry.number} "))
        assert f"start={entry.start // 512:>12}, size={entry.size // 512:>12}" in line


@pytest.mark.tools
@pytest.mark.parametrize("size", [SIZE * 3 + 512 * 7, SIZE // 2], ids=["larger", "smaller"])
def test_gpt_on_another_disk(tmp_path: Path, size: int) -> None:
    """sgdisk verifies both copies at the disk's new end; GUIDs, names, flags are the old ones."""
    source = sfdisk_image(tmp_path, GPT_SCRIPT)
    table = table_of(source)
    end = usable_end("gpt", size, 512)
    target = image(tmp_path, size, "target.img")
    places = {3: (20 * MIB, end - 20 * MIB)}
    write(
        target,
        plan_table(table.description, disk_size=size, sector_size=512, placements=places),
    )

    assert "No problems found" in run("sgdisk", "--verify", target)
    assert "No errors detected" in run("sfdisk", "--verify", target)
    assert ids(dump(target)) == ids(dump(source))
    assert table_of(target).entries[1].end == end


@pytest.mark.tools
def test_gpt_on_other_sectors(tmp_path: Path) -> None:
    """A GPT made for 512-byte sectors moves to a disk with 4096-byte ones."""
    table = table_of(sfdisk_image(tmp_path, GPT_SCRIPT))
    size = SIZE * 2
    target = image(tmp_path, size, "target.img")
    write(target, plan_table(table.description, disk_size=size, sector_size=4096))
    made = table_of(target, 4096)

    assert "No errors detected" in run("fdisk", "-b", 4096, target, text="v\nq\n")
    assert made.entries == table.entries
    assert made.sector_size == 4096


@pytest.mark.tools
def test_mbr_on_other_sectors(tmp_path: Path) -> None:
    """An MBR with logical partitions moves to 4096-byte sectors where alignment allows it."""
    script = MBR_SCRIPT.replace("90000", "81920")
    table = table_of(sfdisk_image(tmp_path, script))
    target = image(tmp_path, SIZE, "target.img")
    write(target, plan_table(table.description, disk_size=SIZE, sector_size=4096))
    made = table_of(target, 4096)

    assert [(e.number, e.start, e.size, e.type) for e in made.entries] == [
        (e.number, e.start, e.size, e.type) for e in table.entries
    ]
    odd = table_of(sfdisk_image(tmp_path, MBR_SCRIPT))
    with pytest.raises(UnsupportedError, match="4096-byte sectors"):
        plan_table(
            odd.description, disk_size=SIZE, sector_size=4096, placements={4: (33 * MIB, 512)}
        )


@pytest.mark.tools
@pytest.mark.parametrize(
    ("position", "problem"),
    [
        (512, "GPT, primary copy: no signature"),
        (512 + 24, "GPT, primary copy: header CRC"),
        (1024 + 5, "GPT, primary copy: entries CRC"),
        (SIZE - 512 + 40, "GPT, backup copy: header CRC"),
        (SIZE - 33 * 512 + 5, "GPT, backup copy: entries CRC"),
    ],
    ids=["signature", "header", "entries", "backup-header", "backup-entries"],
)
def test_one_good_gpt_copy_is_enough(tmp_path: Path, position: int, problem: str) -> None:
    """A damaged copy is reported, the other one read, and a rewritten table is sound again."""
    path = sfdisk_image(tmp_path, GPT_SCRIPT)
    good = table_of(path)
    with FileDevice.open(path, writable=True) as device:
        device.write(position, bytes([device.read(position, 1)[0] ^ 0x41]))
    table = table_of(path)

    assert table.entries == good.entries
    assert len(table.problems) == 1
    assert table.problems[0].startswith(problem)
    write(path, plan_table(table.description, disk_size=SIZE, sector_size=512))
    assert "No problems found" in run("sgdisk", "--verify", path)


@pytest.mark.tools
def test_unreadable_gpt_copy_is_reported(tmp_path: Path) -> None:
    """A disk that cannot read its primary header is read by the backup."""
    path = sfdisk_image(tmp_path, GPT_SCRIPT)
    with FileDevice.open(path) as device:
        table = read_table(FaultyDevice(device, bad_ranges=[(512, 512)]))

    assert len(table.entries) == 3
    assert "cannot read 512 bytes" in table.problems[0]


@pytest.mark.tools
def test_both_gpt_copies_damaged(tmp_path: Path) -> None:
    """With neither copy sound the error names what is wrong with each."""
    path = sfdisk_image(tmp_path, GPT_SCRIPT)
    with FileDevice.open(path, writable=True) as device:
        device.write(512 + 60, b"??")
        device.write(SIZE - 512, bytes(512))
    with pytest.raises(CorruptError, match=r"primary copy: header CRC.*backup copy: no signature"):
        table_of(path)


@pytest.mark.tools
def test_lost_protective_mbr(tmp_path: Path) -> None:
    """A GPT without its protective MBR is read with a problem, and gets a new one."""
    path = sfdisk_image(tmp_path, GPT_SCRIPT)
    with FileDevice.open(path, writable=True) as device:
        device.zero(0, 512)
    table = table_of(path)
    write(path, plan_table(table.description, disk_size=SIZE, sector_size=512))

    assert table.problems == ("the protective MBR is missing",)
    assert "No problems found" in run("sgdisk", "--verify", path)
    assert table_of(path).problems == ()


@pytest.mark.tools
def test_enlarged_image_gets_its_backup_at_the_end(tmp_path: Path) -> None:
    """An image enlarged behind its GPT is reported, and fixed when written again."""
    path = sfdisk_image(tmp_path, GPT_SCRIPT)
    with path.open("r+b") as file:
        file.truncate(SIZE * 2)
    table = table_of(path)
    write(path, plan_table(table.description, disk_size=SIZE * 2, sector_size=512))

    assert table.problems == ("GPT: the backup copy is not at the end of the disk",)
    assert "No problems found" in run("sgdisk", "--verify", path)
    assert f"last-lba: {SIZE * 2 // 512 - 34}" in run("sfdisk", "--dump", path)


@pytest.mark.tools
def test_hybrid_mbr_follows_its_partitions(tmp_path: Path) -> None:
    """Entries of a hybrid MBR go on mirroring their GPT partitions when these move."""
    path = sfdisk_image(tmp_path, GPT_SCRIPT)
    run("sgdisk", "--hybrid", "1:3", path)
    table = table_of(path)
    places = {3: (SIZE, SIZE)}
    target = image(tmp_path, SIZE * 3, "target.img")
    write(
        target,
        plan_table(table.description, disk_size=SIZE * 3, sector_size=512, placements=places),
    )
    slots = BootRecord.unpack(target.read_bytes()[:512]).slots

    assert table.scheme == "gpt"
    assert "No problems found" in run("sgdisk", "--verify", target)
    assert (SIZE // 512, SIZE // 512) in [(slot.start_lba, slot.sectors) for slot in slots]
    assert (2048, 20480) in [(slot.start_lba, slot.sectors) for slot in slots]


@pytest.mark.tools
def test_entries_behind_boot_code_stay_there(tmp_path: Path) -> None:
    """A table whose entries were moved away from sector 2 keeps them where they are."""
    path = sfdisk_image(tmp_path, GPT_SCRIPT)
    run("sgdisk", "--move-main-table=1000", path)
    table = table_of(path)
    target = image(tmp_path, SIZE * 2, "target.img")
    write(target, plan_table(table.description, disk_size=SIZE * 2, sector_size=512))

    assert GptHeader.unpack(target.read_bytes()[512:1024]).entries_lba == 1000
    assert "No problems found" in run("sgdisk", "--verify", target)
    assert (1024, 998 * 512) in outside_regions(table)
    with pytest.raises(NoSpaceError):
        plan_table(
            table.description,
            disk_size=SIZE,
            sector_size=512,
            placements={1: (900 * 512, 10 * MIB)},
        )


@pytest.mark.tools
def test_more_entries_than_usual(tmp_path: Path) -> None:
    """A table of 256 entries keeps them all, and leaves the room its backup copy needs."""
    path = sfdisk_image(tmp_path, GPT_SCRIPT)
    run("sgdisk", "--resize-table=256", path)
    table = table_of(path)
    end = table.usable_end(SIZE * 2, 512)
    target = image(tmp_path, SIZE * 2, "target.img")
    places = {3: (20 * MIB, end - 20 * MIB)}
    write(
        target,
        plan_table(table.description, disk_size=SIZE * 2, sector_size=512, placements=places),
    )

    assert end == usable_end("gpt", SIZE * 2, 512) - 32 * 512
    assert "No problems found" in run("sgdisk", "--verify", target)
    assert "table-length: 256" in run("sfdisk", "--dump", target)


@pytest.mark.tools
def test_outside_regions(tmp_path: Path) -> None:
    """Boot code and the gap are kept; table sectors and partitions are not among them."""
    mbr = table_of(sfdisk_image(tmp_path, MBR_SCRIPT))
    gpt = table_of(sfdisk_image(tmp_path, GPT_SCRIPT))
    late = table_of(sfdisk_image(tmp_path, "label: dos\n1 : start=40960, size=2048\n"))

    assert outside_regions(mbr) == [(0, 440), (512, MIB - 512)]
    assert outside_regions(gpt) == [(0, 440), (34 * 512, MIB - 34 * 512)]
    assert outside_regions(late) == [(0, 440), (512, 4 * MIB - 512)]


@pytest.mark.tools
@pytest.mark.parametrize(
    ("places", "error"),
    [
        ({1: (MIB, SIZE)}, NoSpaceError),
        ({1: (MIB, 70 * MIB)}, NoSpaceError),
        ({1: (MIB, 57 * MIB)}, NoSpaceError),
        ({5: (60 * MIB, MIB)}, NoSpaceError),
        ({5: (11 * MIB, MIB)}, NoSpaceError),
        ({3: (MIB, MIB)}, NotFoundError),
        ({1: (MIB + 1, MIB)}, UnsupportedError),
    ],
    ids=["past-end", "far-past-end", "overlap", "outside", "on-boot-record", "unknown", "odd"],
)
def test_impossible_places_are_refused(
    tmp_path: Path, places: dict[int, tuple[int, int]], error: type[FilesystemError]
) -> None:
    """Places off the disk, on each other, or off the sectors never yield a table."""
    table = table_of(sfdisk_image(tmp_path, MBR_SCRIPT))
    with pytest.raises(error):
        plan_table(table.description, disk_size=SIZE, sector_size=512, placements=places)


@pytest.mark.parametrize("kind", [0x05, 0x0F, 0x85])
def test_endless_chain_is_bounded(kind: int) -> None:
    """A chain of logical partitions that bites its tail is read once and reported."""
    device = mbr_device(mbr_entry(kind, 2048, 60000))
    ebr(device, 2048, mbr_entry(0x83, 64, 1000), mbr_entry(kind, 4096, 2000))
    ebr(device, 2048 + 4096, mbr_entry(0x83, 64, 1000), mbr_entry(kind, 0, 2000))
    table = read_table(device)

    assert [e.number for e in table.entries] == [1, 5, 6]
    assert table.problems == (
        "logical partitions: the boot record at sector 2048 is part of an endless chain",
    )
    made = plan_table(table.description, disk_size=SIZE, sector_size=512)
    target = MemoryDevice(SIZE)
    for position, data in made:
        target.write(position, data)
    assert read_table(target).problems == ()


def test_empty_links_do_not_count() -> None:
    """An EBR without data, as DOS leaves behind, keeps its place and gets no number."""
    device = mbr_device(mbr_entry(0x05, 2048, 60000))
    ebr(device, 2048, mbr_entry(0, 0, 0), mbr_entry(5, 4096, 2000))
    ebr(device, 2048 + 4096, mbr_entry(5, 8192, 3000))
    ebr(device, 2048 + 8192, mbr_entry(6, 63, 2900))
    table = read_table(device)
    writes = dict(plan_table(table.description, disk_size=SIZE, sector_size=512))

    assert [(e.number, e.start) for e in table.entries[1:]] == [(5, (2048 + 8192 + 63) * 512)]
    for position, data in writes.items():
        assert device.read(position, 512) == data
    assert len(writes) == 4


def test_chain_past_the_end_is_reported() -> None:
    """A link that leads off the disk ends the chain with a problem."""
    device = mbr_device(mbr_entry(0x05, 2048, 60000))
    ebr(device, 2048, mbr_entry(0x83, 64, 1000), mbr_entry(5, 10_000_000, 2000))
    assert "past the end of the disk" in read_table(device).problems[0]


def test_new_extended_partition_without_boot_record() -> None:
    """An extended partition that holds nothing yet is not damaged."""
    table = read_table(mbr_device(mbr_entry(0x05, 2048, 60000)))
    assert [(e.number, e.is_extended) for e in table.entries] == [(1, True)]
    assert table.problems == ()


@pytest.mark.tools
def test_whole_disk_filesystems_are_no_tables(tmp_path: Path) -> None:
    """A filesystem that starts at the first sector is scheme none, also FAT with its signature."""
    for number, command in enumerate([["mkfs.vfat"], ["mkfs.ext4", "-q", "-F"], ["mkswap"]]):
        path = image(tmp_path, name=f"{number}.img")
        run(*command, path)
        table = table_of(path)
        assert (table.scheme, table.entries) == ("none", ())
        assert plan_table(table.description, disk_size=SIZE, sector_size=512) == []
    assert read_table(MemoryDevice(SIZE)).scheme == "none"
    assert read_table(MemoryDevice(100)).scheme == "none"


def test_empty_mbr_is_a_table() -> None:
    """A signed disk without partitions is an MBR with no entries, and stays one."""
    table = read_table(mbr_device())
    assert (table.scheme, table.disk_id, table.entries) == ("mbr", "00001234", ())
    assert len(plan_table(table.description, disk_size=SIZE, sector_size=512)) == 1


def test_open_partition() -> None:
    """A window shows one partition; 0 is the disk; others are not found."""
    device = mbr_device(mbr_entry(0x83, 8, 16))
    device.write(8 * 512, b"inside")
    table = read_table(device)

    assert open_partition(device, table, 1).read(0, 6) == b"inside"
    assert open_partition(device, table, 1).size == 16 * 512
    assert open_partition(device, table, 0).size == device.size
    with pytest.raises(NotFoundError):
        open_partition(device, table, 2)


def test_description_is_plain_and_complete() -> None:
    """A table is the same when made of its description, and bad descriptions are CorruptError."""
    device = mbr_device(mbr_entry(0x05, 2048, 60000))
    ebr(device, 2048, mbr_entry(0x83, 64, 1000))
    table = read_table(device)

    assert PartitionTable.from_description(table.description) == table
    for key in ("version", "mbr", "logical", "sector_size", "problems", "scheme"):
        broken = {name: value for name, value in table.description.items() if name != key}
        with pytest.raises(CorruptError):
            PartitionTable.from_description(broken)
    with pytest.raises(UnsupportedError, match="version 2"):
        PartitionTable.from_description({**table.description, "version": 2})


def test_mbr_limits() -> None:
    """An MBR reaches 2^32 sectors and not one further."""
    table = read_table(mbr_device(mbr_entry(0x83, 2048, 1000)))
    size, limit = 4 << 40, 1 << 41
    made = plan_table(
        table.description,
        disk_size=size,
        sector_size=512,
        placements={1: (MIB, limit - MIB)},
    )

    assert usable_end("mbr", size, 512) == limit
    assert usable_end("mbr", size, 4096) == size
    assert usable_end("none", size, 512) == size
    assert MbrEntry.unpack(made[-1][1], 446).sectors == (limit - MIB) // 512
    with pytest.raises(NoSpaceError):
        plan_table(table.description, disk_size=size, sector_size=512, placements={1: (MIB, limit)})


@pytest.mark.parametrize("geometry", [Geometry(), Geometry(16, 63), Geometry(64, 32)])
def test_geometry_is_found_again(geometry: Geometry) -> None:
    """The geometry of recorded CHS fields is found, and cylinders past 1023 overflow."""
    lbas = [geometry.sectors, geometry.heads * geometry.sectors * 7, 99_999]
    samples = [(lba, geometry.encode(lba)) for lba in lbas]
    last = 1024 * geometry.heads * geometry.sectors

    assert guess_geometry(samples) == geometry
    assert decode(geometry.encode(last - 1)) == (1023, geometry.heads - 1, geometry.sectors)
    assert geometry.encode(last) == b"\xfe\xff\xff"
    assert guess_geometry([(5, b"\1\1\7"), (9000, b"\2\2\2")]) == Geometry()


@pytest.mark.parametrize("kind", [MbrEntry, BootRecord, GptHeader, GptEntry])
def test_records_round_trip(kind: type[MbrEntry]) -> None:
    """Both codecs of each record agree on random bytes and give them back."""
    data = random.Random(kind.__name__).randbytes(kind.SIZE)
    value = kind.unpack(data)

    assert value.pack() == data
    assert kind.LAYOUT.build(value.to_plain()) == data
    assert kind.from_plain(value.to_plain()) == value


def test_guid_text() -> None:
    """The first three parts of a GUID are stored little-endian."""
    data = bytes.fromhex("28732ac11ff8d211ba4b00a0c93ec93b")
    assert guid_text(data) == "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"


@pytest.mark.tools
@pytest.mark.parametrize("script", [MBR_SCRIPT, GPT_SCRIPT], ids=["mbr", "gpt"])
def test_flipped_bytes_never_surprise(tmp_path: Path, script: str) -> None:
    """With any byte of the table changed, there is a table or a FilesystemError."""
    content = sfdisk_image(tmp_path, script).read_bytes()
    table = read_table(MemoryDevice.of(content))
    spots = [*range(440, 512)]
    if table.scheme == "gpt":
        spots += [*range(512, 604), *range(1024, 1152)]
    else:
        ebrs = [
            place for place, _ in plan_table(table.description, disk_size=SIZE, sector_size=512)
        ]
        spots += [at for start in ebrs if start for at in range(start + 446, start + 512)]
    device = MemoryDevice.of(content)
    for at in spots:
        for flip in (0x01, 0x80, 0xFF):
            old = device.read(at, 1)
            device.write(at, bytes([old[0] ^ flip]))
            try:
                made = read_table(device)
                plan_table(made.description, disk_size=SIZE, sector_size=512)
            except FilesystemError:
                pass
            device.write(at, old)
