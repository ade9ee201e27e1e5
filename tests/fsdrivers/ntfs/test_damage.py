# SPDX-License-Identifier: Apache-2.0
"""NTFS volumes that are damaged, or odd in ways that nobody's mkntfs makes."""

from __future__ import annotations

import contextlib
import random
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fsdrivers.device import Device, MemoryDevice
from fsdrivers.errors import CorruptError, DeviceError, FilesystemError, NotRecognisedError
from fsdrivers.losses import Loss
from fsdrivers.ntfs import fixups
from fsdrivers.ntfs.attributes import unpack_attributes
from fsdrivers.ntfs.check import check_volume
from fsdrivers.ntfs.edit import open_editor
from fsdrivers.ntfs.format.attributes import (
    ATTRIBUTES_END,
    AttributeListEntry,
    AttributeType,
    NonResidentHead,
    ResidentHead,
)
from fsdrivers.ntfs.format.index import SECURITY_BLOCK_SIZE, SecurityHead
from fsdrivers.ntfs.format.records import BootSector, NumberedRecordHead, RecordFlag
from fsdrivers.ntfs.runs import Run, pack_runs
from fsdrivers.ntfs.security import StoredDescriptor, iter_descriptors
from fsdrivers.ntfs.system import SECURITY_STREAM
from fsdrivers.ntfs.volume import open_volume
from fsdrivers.volume import Kind
from tests.fsdrivers.faults import FaultyDevice
from tests.fsdrivers.ntfs.volumes import MIB, Seen, make_image, mounted, seen_by_us
from tests.programs import run

pytestmark = pytest.mark.tools
RECORD = 1024


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return a volume of 3 MiB with something of everything."""
    where = tmp_path_factory.mktemp("small")
    image = make_image(where / "image", 3 * MIB, "-c", 512)
    with mounted(image, where / "mount") as root:
        (root / "directory").mkdir()
        for index in range(14):
            (root / "directory" / f"a long name of a file {index}").write_bytes(b"x" * index)
        (root / "file").write_bytes(b"y" * 5000)
        (root / "stream").write_bytes(b"")
        (root / "stream").chmod(0o700)
        run("setfattr", "-n", "user.stream", "-v", "value", root / "stream")
        run("setfattr", "-n", "system.ntfs_attrib", "-v", "0x10080000", root / "directory")
        (root / "directory" / "packed").write_bytes(b"z" * 100_000)
        for index in range(12):
            (root / f"{index}{'l' * 200}").hardlink_to(root / "file")
    return image.read_bytes()


def read_everything(device: Device) -> None:
    """Read what there is on a volume, but no more than the start of each stream."""
    volume = open_volume(device)
    volume.describe()
    volume.used_size()
    volume.warnings()
    for entry in volume.walk():
        node = entry.node
        if node.kind is Kind.FILE:
            volume.extents(node)
            volume.read(node, 0, 70_000)
            volume.read(node, max(0, node.size - 10), 20)
        for stream in node.streams:
            volume.stream_extents(node, stream.name)
            volume.read_stream(node, stream.name, 0, 70_000)


def places(image: bytes) -> Iterator[tuple[str, int, int]]:
    """Yield (what, position, length) of all metadata whose bytes are to be flipped."""
    volume = open_volume(MemoryDevice.of(image))
    yield "boot sector", 0, 90
    for number in range(volume.mft.record_count):
        position = volume.mft.record_position(number)
        head = NumberedRecordHead.unpack(image, position)
        if head.flags & RecordFlag.IN_USE.value:
            yield f"record {number}", position, head.used_size
    at = image.find(b"INDX")
    while at >= 0:
        yield "index", at, 700
        at = image.find(b"INDX", at + 1)


@pytest.mark.root
@pytest.mark.parametrize("mask", [0xFF, 0x01, 0x80])
def test_bytes_flipped(small: bytes, mask: int) -> None:
    """Whatever byte of the metadata is wrong, reading gives a result or our error, at once."""
    draw = random.Random(mask)
    read_everything(MemoryDevice.of(small))
    device = MemoryDevice.of(small)
    refused, slowest = 0, 0.0
    positions = []
    for _, start, length in places(small):
        positions += draw.sample(range(start, start + length), min(length, 4))
    positions += range(0, 90, 2)
    for position in positions:
        old = small[position]
        device.write(position, bytes([old ^ mask]))
        started = time.process_time()
        try:
            read_everything(device)
        except FilesystemError:
            refused += 1
        slowest = max(slowest, time.process_time() - started)
        device.write(position, bytes([old]))

    assert refused > len(positions) // 20
    assert slowest < 3.0


@pytest.mark.root
def test_sealed_damage(small: bytes) -> None:
    """Nonsense under valid fixups is read, checked or refused, and never anything else."""
    draw = random.Random("sealed")
    areas = [item for item in places(small) if item[0] != "boot sector"]
    device = MemoryDevice.of(small)
    for _ in range(250):
        what, start, length = draw.choice(areas)
        size = 4096 if what == "index" else RECORD
        try:
            record = fixups.open_record(small[start : start + size])
        except CorruptError:
            continue  # "INDX" in the content of something
        at = draw.randrange(8, length - 8)
        width = draw.choice((1, 2, 4, 8))
        record[at : at + width] = draw.choice(
            (b"\xff" * width, bytes(width), draw.randbytes(width))
        )
        fixups.seal(record)
        device.write(start, bytes(record))
        for read in (read_everything, check_volume):
            with contextlib.suppress(FilesystemError):
                read(device)
        device.write(start, small[start : start + size])


@pytest.mark.root
def test_every_byte_of_one_record(small: bytes) -> None:
    """The same for each byte of a directory's record and of one with a list of attributes."""
    volume = open_volume(MemoryDevice.of(small))
    wanted = [e.node.number for e in volume.walk() if e.name in (b"directory", b"file", b"stream")]
    device = MemoryDevice.of(small)
    for number in (0, *wanted):
        start = volume.mft.record_position(number)
        for position in range(start, start + RECORD, 13):
            old = small[position]
            device.write(position, bytes([old ^ 0xFF]))
            with contextlib.suppress(FilesystemError):
                read_everything(device)
            device.write(position, bytes([old]))


@pytest.mark.root
def test_cut_off(small: bytes) -> None:
    """A volume that is cut off is refused, or read as far as it goes."""
    for size in (0, 100, 512, 4096, 100_000, MIB, len(small) - 513):
        with pytest.raises((FilesystemError, OSError)):
            read_everything(MemoryDevice.of(small[:size]))
    read_everything(MemoryDevice.of(small[:-512]))  # nothing but the copy of the boot sector


def test_not_ntfs() -> None:
    """What has no boot sector of NTFS is not recognised."""
    for size in (0, 511, 4096):
        with pytest.raises(NotRecognisedError):
            open_volume(MemoryDevice(size))


@pytest.mark.root
def test_bad_sector_in_the_mft(small: bytes) -> None:
    """A sector of the MFT that the medium does not give costs its record, not its neighbours."""
    volume = open_volume(MemoryDevice.of(small))
    names = [entry.name for entry in volume.walk()]
    free = volume.mft.record_position(16)
    first = volume.mft.record_position(0)
    inside = next(e.node.number for e in volume.walk() if e.name == b"stream")
    for position, is_lost in ((free, False), (volume.mft.record_position(inside), True)):
        device = FaultyDevice(MemoryDevice.of(small), bad_ranges=[(position, 512)])
        opened = open_volume(device)
        if is_lost:
            with pytest.raises(DeviceError):
                list(opened.walk())
        else:
            assert [entry.name for entry in opened.walk()] == names
    opened = open_volume(FaultyDevice(MemoryDevice.of(small), bad_ranges=[(first, 512)]))
    assert opened.mft.file(0).attributes  # of the copy
    assert opened.mft.mirrored == {0}


@pytest.mark.root
def test_loop_of_directories(small: bytes) -> None:
    """A name inside a directory that leads to itself is a finding, and is not followed."""
    device = MemoryDevice.of(small)
    volume = open_volume(device)
    entries = {entry.name: entry.node.number for entry in volume.walk()}
    inside = next(e for e in volume.walk() if e.name == b"a long name of a file 5")
    wanted = struct.pack("<Q", entries[b"directory"] | 1 << 48)
    reference = struct.pack("<Q", inside.node.number | 1 << 48)
    assert reference in small
    damaged = MemoryDevice.of(small.replace(reference, wanted))
    names = [entry.name for entry in open_volume(damaged).walk()]

    assert sorted([*names, inside.name]) == sorted(entries)
    assert check_volume(damaged)


def scatter_mft(image: bytes) -> bytes:
    """Move the MFT of a volume to every other of its free clusters, and list its pieces.

    The runs of $MFT then fill several records, which its attribute list names.
    """
    volume = open_volume(MemoryDevice.of(image))
    geometry, mft = volume.geometry, volume.mft
    size = geometry.cluster_size
    device = MemoryDevice.of(image)
    count = mft.content.size // size
    assert size * count == mft.content.size
    start = geometry.cluster_count - 2 * count - 64
    runs = [Run(start + 2 * index, 1) for index in range(count)]
    spare = list(range(16, 24))  # kept free on every volume
    for index, target in enumerate(runs):
        data = device.read(geometry.position(geometry.mft_lcn) + index * size, size)
        device.write(geometry.position(target.start), data)
    first = 28  # runs that stay in the first record: all of what holds the others
    pieces = [runs[:first]]
    pieces += [runs[at : at + 60] for at in range(first, len(runs), 60)]
    assert len(pieces) - 1 <= len(spare)
    record = mft.raw_record(0)
    attributes = {part.type: part for part in unpack_attributes(record, None)}
    kept = {
        kind: bytes(part.record[part.start : part.start + part.length])
        for kind, part in attributes.items()
    }
    items, vcn, listed = [], 0, b""
    for index, piece in enumerate(pieces):
        number = spare[index - 1] if index else 0
        items.append((number, _extent(kept[AttributeType.DATA], piece, vcn, first=not index)))
        entry = AttributeListEntry(
            AttributeType.DATA, 32, 0, 26, vcn, number | (number or 1) << 48,
            1 if not index else 0,
        )  # fmt: skip
        listed += entry.pack().ljust(32, b"\0")
        vcn += len(piece)
    others = b""
    for kind in (AttributeType.STANDARD_INFORMATION, AttributeType.FILE_NAME, AttributeType.BITMAP):
        part = attributes[kind]
        entry = AttributeListEntry(kind, 32, 0, 26, 0, 1 << 48, part.id)
        if kind < AttributeType.DATA:
            others += entry.pack().ljust(32, b"\0")
        else:
            listed += entry.pack().ljust(32, b"\0")
    value = others + listed
    head = ResidentHead(AttributeType.ATTRIBUTE_LIST, 24 + len(value), 0, 0, 24, 0, 99,
                        len(value), 24, 0, 0)  # fmt: skip
    body = [
        kept[AttributeType.STANDARD_INFORMATION],
        head.pack() + value,
        kept[AttributeType.FILE_NAME],
        items[0][1],
        kept[AttributeType.BITMAP],
    ]
    _write_record(device, runs, size, 0, record, body, 0)
    for number, item in items[1:]:
        blank = mft.raw_record(number)
        _write_record(device, runs, size, number, blank, [item], 1 << 48)
    boot = BootSector.unpack(device.read(0, BootSector.SIZE))
    device.write(0, replace(boot, mft_lcn=runs[0].start).pack())
    return device.read(0, device.size)


def _extent(data: bytes, piece: list[Run], vcn: int, *, first: bool) -> bytes:
    """Return an extent of the data attribute `data` that maps `piece`."""
    pairs = pack_runs(piece)
    length = -(-(NonResidentHead.SIZE + len(pairs)) // 8) * 8
    head = NonResidentHead.unpack(data)
    head = replace(
        head,
        length=length,
        lowest_vcn=vcn,
        highest_vcn=vcn + len(piece) - 1,
        runs_offset=NonResidentHead.SIZE,
        allocated_size=head.data_size if first else 0,
        id=1 if first else 0,
    )
    return (head.pack() + pairs).ljust(length, b"\0")


def _write_record(
    device: MemoryDevice,
    runs: list[Run],
    cluster_size: int,
    number: int,
    old: bytearray,
    body: list[bytes],
    base: int,
) -> None:
    """Write a record with these attributes to its place in the scattered MFT."""
    content = b"".join(body) + struct.pack("<II", ATTRIBUTES_END, 0)
    head = NumberedRecordHead.unpack(old)
    start = head.attributes_offset
    head = replace(
        head,
        flags=RecordFlag.IN_USE.value,
        base_reference=base,
        used_size=start + len(content),
        sequence=number or 1,
        links=0 if base else 1,
    )
    assert head.used_size <= RECORD
    made = bytearray(RECORD)
    made[: NumberedRecordHead.SIZE] = head.pack()
    made[start : start + len(content)] = content
    fixups.seal(made)
    assert cluster_size == RECORD
    device.write(runs[number].start * cluster_size, bytes(made))
    if not number:
        boot = BootSector.unpack(device.read(0, BootSector.SIZE))
        device.write(boot.mft_mirror_lcn * cluster_size, bytes(made))


@pytest.mark.root
def test_fragmented_mft(tmp_path: Path) -> None:
    """An MFT whose runs fill several records is read as ntfs-3g reads it."""
    image = make_image(tmp_path / "image", 24 * MIB, "-c", 1024)
    with mounted(image, tmp_path / "mount") as root:
        for index in range(120):
            (root / f"file {index}").write_bytes(b"%d" % index)
    expected = seen_by_us(open_volume(MemoryDevice.of(image.read_bytes())))
    image.write_bytes(scatter_mft(image.read_bytes()))
    volume = open_volume(MemoryDevice.of(image.read_bytes()))

    assert len(volume.mft.content.mapped) > 150
    assert seen_by_us(volume) == expected
    shown = run("ntfsls", "-F", image).split("\n")
    assert {line for line in shown if line.startswith("file")} == {f"file {i}" for i in range(120)}


def shown(device: Device) -> dict[bytes, Seen]:
    """Return what there is on a volume, and what warnings name."""
    return seen_by_us(open_volume(device))


@pytest.mark.root
@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("how", ["wiped", "torn", "nonsense"])
def test_first_records_come_from_the_mirror(small: bytes, number: int, how: str) -> None:
    """A damaged record that $MFTMirr has a copy of costs nothing but a warning and a finding."""
    sound = open_volume(MemoryDevice.of(small))
    device = MemoryDevice.of(small)
    position = sound.mft.record_position(number)
    if how == "wiped":
        device.write(position, b"\xff" * RECORD)
    elif how == "torn":
        device.write(position + 510, b"\xaa\x55")
    else:  # under valid fixups, as if it had been written like that
        record = fixups.open_record(small[position : position + RECORD])
        record[56:64] = b"\xff" * 8
        fixups.seal(record)
        device.write(position, bytes(record))
    volume = open_volume(device)

    assert seen_by_us(volume) == shown(MemoryDevice.of(small))
    assert volume.label == sound.label
    (warning,) = volume.warnings()
    assert "$MFTMirr was read" in warning
    findings = check_volume(device)
    assert {"record", "mirror"} <= {finding.rule for finding in findings}
    with pytest.raises(CorruptError, match="damaged"):
        open_editor(device)


@pytest.mark.root
def test_without_any_copy_of_the_volume_record(small: bytes) -> None:
    """Where both copies of $Volume's record are damaged its facts are lost, and nothing else."""
    sound = open_volume(MemoryDevice.of(small))
    device = MemoryDevice.of(small)
    geometry = sound.geometry
    for start in (sound.mft.record_position(0), geometry.position(geometry.mft_mirror_lcn)):
        device.write(start + 3 * RECORD, bytes(RECORD))
    volume = open_volume(device)

    assert volume.label == b""
    assert f"at byte {sound.mft.record_position(3):#x}" in volume.warnings()[0]
    assert [e.name for e in volume.walk()] == [e.name for e in sound.walk()]
    with pytest.raises(FilesystemError):
        open_editor(device)


@pytest.mark.root
@pytest.mark.parametrize("what", ["record", "descriptors"])
def test_without_descriptors_the_rest_is_read(small: bytes, what: str) -> None:
    """Names and content are read where $Secure is lost; that descriptors are missing is said."""
    sound = open_volume(MemoryDevice.of(small))
    device = MemoryDevice.of(small)
    if what == "record":
        device.write(sound.mft.record_position(9), bytes(RECORD))
    else:
        content = sound.mft.content_of(sound.mft.file(9), 0x80, "$SDS".encode("utf-16-le"))
        assert content is not None
        for _, length, position in content.mapped:
            device.write(position, bytes(length))
    volume = open_volume(device)
    found = seen_by_us(volume)

    wanted = shown(MemoryDevice.of(small))
    assert found.keys() == wanted.keys()
    lost = 0
    for path, seen in wanted.items():
        kept = tuple(item for item in seen.xattrs if item in found[path].xattrs)
        lost += kept != seen.xattrs
        assert found[path] == seen._replace(xattrs=kept), path
    assert lost > 10
    volume.describe()
    (warning,) = volume.warnings()
    assert "descriptors" in warning
    assert check_volume(device) != []
    with pytest.raises(CorruptError, match="Secure"):
        open_editor(device)


def security_places(image: bytes) -> list[tuple[int, int, StoredDescriptor]]:
    """Return (position of the entry, of its copy, entry) of all descriptors on a volume."""
    volume = open_volume(MemoryDevice.of(image))
    content = volume.mft.content_of(volume.mft.file(9), 0x80, SECURITY_STREAM)
    assert content is not None

    def position(offset: int) -> int:
        for start, length, at in content.mapped:
            if start <= offset < start + length:
                return at + offset - start
        raise AssertionError(offset)

    stream = volume.mft.read_all(volume.mft.file(9), AttributeType.DATA, SECURITY_STREAM, limit=MIB)
    assert stream is not None
    return [
        (position(item.offset), position(item.offset + SECURITY_BLOCK_SIZE), item)
        for item in iter_descriptors(stream)
    ]


FREED = SecurityHead.OFFSETS["length"]  # hash, id and offset lie before it


@pytest.mark.root
@pytest.mark.parametrize("cleared", [FREED, SecurityHead.SIZE, SecurityHead.SIZE + 8])
def test_freed_descriptor_hides_no_other(small: bytes, cleared: int) -> None:
    """Behind an entry cleared in both copies all others are found, its length kept or not."""
    wanted = security_places(small)
    first, copy, gone = wanted[1]
    device = MemoryDevice.of(small)
    for position in (first, copy):
        device.write(position, bytes(cleared))
    found = security_places(bytes(device.read(0, device.size)))

    assert [item.id for _, _, item in found] == [
        item.id for _, _, item in wanted if item.id != gone.id
    ]


@pytest.mark.root
def test_unknown_descriptor_costs_no_object(small: bytes) -> None:
    """Objects whose descriptor is lost are read without it, and each is named."""
    used: dict[bytes, set[bytes]] = {}
    for entry in open_volume(MemoryDevice.of(small)).walk():
        for name, value in entry.node.xattrs:
            if name == b"system.ntfs_acl":
                used.setdefault(value, set()).add(entry.name)
    device = MemoryDevice.of(small)
    places = security_places(small)
    first, copy, gone = next(
        place for place in places if b"file" in used.get(place[2].descriptor, ())
    )
    for position in (first, copy):
        device.write(position, bytes(FREED))
    losses: list[Loss] = []
    names = {entry.name for entry in open_volume(device).walk(losses.append)}

    assert names == set().union(*used.values())
    lost = used[gone.descriptor] - {b""}
    assert lost
    assert {loss.name for loss in losses if loss.is_kept} == lost
    assert {entry.name for entry in open_volume(device).walk()} == names
    assert any(finding.rule == "secure-missing" for finding in check_volume(device))
