# SPDX-License-Identifier: Apache-2.0
"""What no mastering program of today writes: images put together byte by byte."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdrivers import open_volume as open_any
from fsdrivers.device import Device, MemoryDevice
from fsdrivers.errors import CorruptError, NotRecognisedError, UnsupportedError
from fsdrivers.iso9660.check import check_volume
from fsdrivers.iso9660.format import (
    BLOCK_SIZES,
    SECTOR_SIZE,
    DirectoryRecord,
    FileFlag,
    VolumeDescriptor,
)
from fsdrivers.iso9660.names import joliet_name
from fsdrivers.iso9660.susp_format import PxPayload112, TimeFlag
from fsdrivers.iso9660.volume import IsoVolume, open_volume
from fsdrivers.losses import Loss
from fsdrivers.volume import Kind
from tests.fsdrivers.iso9660.images import HandMade, Made, both, paths_of

GIB = 1 << 30
FREE = 49152  # byte of the first block that nothing uses
SP = b"SP\x07\x01\xbe\xef\0"
ER = b"ER\x12\x01\x0a\0\0\x01IEEE_P1282"


def device_of(image: HandMade, extra: int = 0) -> MemoryDevice:
    data = image.build()
    device = MemoryDevice(len(data) + extra)
    device.write(0, data)
    return device


def px(mode: int, links: int = 1, serial: int = 0) -> bytes:
    fields = PxPayload112(*(both(value, 8) for value in (mode, links, 1, 2, serial)))
    return b"PX\x2c\x01" + fields.pack()


def entry(signature: bytes, payload: bytes) -> bytes:
    return signature + bytes([len(payload) + 4, 1]) + payload


def rock_ridge(*records: Made) -> IsoVolume:
    """Return a volume whose records carry what is given, below a root with Rock Ridge."""
    image = HandMade(list(records), root_use=SP + px(0o40755) + ER, parent_use=px(0o40755))
    return open_volume(device_of(image))


def content(volume: IsoVolume, name: bytes) -> bytes:
    node = paths_of(volume)[name].node
    data = volume.read(node, 0, node.size)
    for offset in (0, 1, node.size // 2, node.size):
        assert volume.read(node, offset, 1000) == data[offset : offset + 1000]
    return data


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_block_sizes(block_size: int) -> None:
    """Blocks of a quarter and half a sector count as they should, in content and directories."""
    block = FREE // block_size
    image = HandMade(
        [Made(b"A.TXT;1", block + 1, 700)],
        {block + 1: b"odd block".ljust(700, b"!")},
        block_size=block_size,
    )
    device = device_of(image)
    volume = open_volume(device)

    assert volume.block_size == block_size
    assert content(volume, b"A.TXT") == b"odd block".ljust(700, b"!")
    assert check_volume(device) == []


def test_interleaved_files() -> None:
    """Content in units with gaps is read without the gaps, behind its attribute record."""
    block = FREE // SECTOR_SIZE
    units = {block + 3 * number: bytes([65 + number]) * (2 * SECTOR_SIZE) for number in range(4)}
    records = [
        Made(b"ATTR.;1", block, 9000, unit_blocks=2, gap_blocks=1, attribute_blocks=1),
        Made(b"FILE.;1", block, 9000, unit_blocks=2, gap_blocks=1),
    ]
    device = device_of(HandMade(records, units))
    volume = open_volume(device)

    assert content(volume, b"FILE") == b"A" * 4096 + b"B" * 4096 + b"C" * 808
    assert content(volume, b"ATTR") == b"B" * 4096 + b"C" * 4096 + b"D" * 808
    assert [extent.position for extent in volume.extents(paths_of(volume)[b"FILE"].node)] == [
        FREE + 3 * SECTOR_SIZE * number for number in range(3)
    ]


def test_extended_attribute_records_are_skipped() -> None:
    """Content starts behind the blocks of the extended attribute record."""
    block = FREE // SECTOR_SIZE
    image = HandMade(
        [Made(b"FILE.;1", block, 4, attribute_blocks=2)], {block: b"EAR", block + 2: b"text"}
    )

    assert content(open_volume(device_of(image)), b"FILE") == b"text"


def test_associated_files_and_versions() -> None:
    """Resource forks are hidden unless asked for; versions but the first keep their number."""
    block = FREE // SECTOR_SIZE
    image = HandMade(
        [
            Made(b"FILE.;2", block, 3),
            Made(b"FILE.;1", block + 1, 4, flags=FileFlag.ASSOCIATED),
            Made(b"FILE.;1", block + 2, 4),
        ],
        {block: b"two", block + 1: b"fork", block + 2: b"data"},
    )
    device = device_of(image)

    assert set(paths_of(open_volume(device))) == {b"", b"FILE", b"FILE.;2"}
    volume = open_volume(device, show_associated=True)
    assert content(volume, b"FILE;associated") == b"fork"
    assert content(volume, b"FILE") == b"data"
    assert content(volume, b"FILE.;2") == b"two"


def test_files_of_several_sections() -> None:
    """A file of 8 GiB goes over the borders of its sections, and over that of a sector."""
    block = FREE // SECTOR_SIZE
    sizes = [4 * GIB - SECTOR_SIZE, 4 * GIB - SECTOR_SIZE, 5000]
    starts, records = [block], []
    for number, size in enumerate(sizes):
        flags = FileFlag.MULTI_EXTENT if number < 2 else 0
        # Long enough that the last record is in another sector of the directory.
        records.append(Made(b"L" * 180 + b".;1", starts[-1], size, flags=flags))
        starts.append(starts[-1] + size // SECTOR_SIZE)
    image = HandMade([Made(b"A.;1", 0, 0)], {}, size=(starts[-1] + 10) * SECTOR_SIZE)
    data = HandMade(image.records, {}).build()
    device = MemoryDevice(image.size)
    device.write(0, data)
    device.write(
        16 * SECTOR_SIZE,
        image.descriptor(
            root=Made(b"\0", HandMade.ROOT // SECTOR_SIZE, 2 * SECTOR_SIZE, 2).pack()
        ).pack(),
    )
    at = HandMade.ROOT + SECTOR_SIZE - 2 * len(records[0].pack())
    filler = Made(b"B" * 30 + b".;1").pack()
    place = HandMade.ROOT + 34 + 34 + len(image.records[0].pack())
    while place + len(filler) <= at - 255:
        device.write(place, filler)
        place += len(filler)
        filler = Made(b"B" * 30 + b"%04d.;1" % (place % 9999)).pack()
    for record in records[:2]:
        device.write(place, record.pack())
        place += len(record.pack())
    device.write(HandMade.ROOT + SECTOR_SIZE, records[2].pack())
    device.write(starts[1] * SECTOR_SIZE - 5, b"12345")
    device.write(starts[1] * SECTOR_SIZE, b"67890")
    device.write(starts[2] * SECTOR_SIZE, b"END")
    volume = open_volume(device)
    node = paths_of(volume)[b"L" * 180].node

    assert node.size == sum(sizes)
    assert volume.read(node, sizes[0] - 5, 10) == b"1234567890"
    assert volume.read(node, sizes[0] + sizes[1] - 1, 4) == b"\0END"
    assert len(volume.read(node, node.size - 7, 100)) == 7
    assert len(volume.extents(node)) == 3


def test_rock_ridge_entries() -> None:
    """Names, targets and times that go on in further entries; times of 17 bytes; zones."""
    long_time = b"2020010203040506" + bytes([4])
    zone = bytes([120, 6, 15, 12, 0, 0, 256 - 20])
    name = entry(b"NM", b"\x01first ") + entry(b"NM", b"\0second")
    target = entry(b"SL", b"\x01\x08\0\x01\x03abc") + entry(b"SL", b"\0\0\x03def\x04\0\x02\0\0\1x")
    flags = TimeFlag.CREATION | TimeFlag.ACCESS | TimeFlag.LONG_FORM
    times = entry(b"TF", bytes([flags]) + long_time + long_time)
    short = entry(b"TF", bytes([TimeFlag.MODIFY | TimeFlag.ATTRIBUTES]) + zone + zone)
    volume = rock_ridge(
        Made(b"A.;1", use=name + px(0o120777) + times),
        Made(b"B.;1", use=entry(b"NM", b"\0link") + px(0o120777) + target),
        Made(b"C.;1", use=entry(b"NM", b"\0zone") + px(0o100644) + short),
        Made(b"D.;1", use=entry(b"NM", b"\0pipe") + px(0o140600)),
    )
    found = paths_of(volume)

    assert volume.view.version == "1.12"
    first = found[b"first second"].node
    assert first.created_ns == first.accessed_ns == 1577930645060000000
    assert first.modified_ns == 0
    assert found[b"link"].node.target == b"/abcdef/.././x"
    assert found[b"zone"].node.modified_ns == (1592222400 + 5 * 3600) * 10**9
    assert found[b"zone"].node.changed_ns == found[b"zone"].node.modified_ns
    assert found[b"pipe"].node.kind == Kind.SOCKET
    assert (found[b"zone"].node.uid, found[b"zone"].node.gid) == (1, 2)


@pytest.mark.parametrize(
    ("high", "low", "expected"),
    [(8, 1, (8, 1)), (0, 0x0801, (8, 1)), (0, 5, (0, 5)), (259, 300, (259, 300))],
)
def test_device_numbers(high: int, low: int, expected: tuple[int, int]) -> None:
    """Major and minor come in two halves, or both in the low one."""
    number = entry(b"PN", both(high, 8) + both(low, 8))
    name = entry(b"NM", b"\0dev")
    volume = rock_ridge(Made(b"A.;1", use=name + px(0o60600) + number))

    assert paths_of(volume)[b"dev"].node.device == expected


def test_sparse_files_are_refused() -> None:
    """A sparse file is listed, and not misread."""
    sparse = entry(b"SF", both(0, 8) + both(100, 8) + b"\x01")
    volume = rock_ridge(Made(b"A.;1", 24, 10, use=entry(b"NM", b"\0s") + px(0o100644) + sparse))
    node = paths_of(volume)[b"s"].node

    with pytest.raises(UnsupportedError, match="sparse"):
        volume.read(node, 0, 10)


def test_other_discs_of_a_set_are_refused() -> None:
    """A file on another disc of the set is not read from this one."""
    image = HandMade([Made(b"HERE.;1", 24, 4), Made(b"THERE.;1", 24, 4, sequence=2)], {24: b"here"})
    device = device_of(image)
    device.write(16 * SECTOR_SIZE, image.descriptor(set_size_both=both(2, 4)).pack())
    volume = open_volume(device)

    assert content(volume, b"HERE") == b"here"
    with pytest.raises(UnsupportedError, match="other discs"):
        volume.read(paths_of(volume)[b"THERE"].node, 0, 4)


def test_serial_numbers_make_hard_links() -> None:
    """Names with one serial number share a node; equal content alone does not."""

    def named(name: bytes) -> bytes:
        return entry(b"NM", b"\0" + name)

    volume = rock_ridge(
        Made(b"A.;1", 24, 10, use=named(b"a") + px(0o100644, 2, 7)),
        Made(b"B.;1", 24, 10, use=named(b"b") + px(0o100644, 2, 7)),
        Made(b"C.;1", 24, 10, use=named(b"c") + px(0o100644, 1, 8)),
        Made(b"D.;1", 24, 10, use=named(b"d") + px(0o100644, 2, 9)),
    )
    found = paths_of(volume)

    assert found[b"a"].node is found[b"b"].node
    numbers = {found[name].node.number for name in (b"a", b"c", b"d")}
    assert len(numbers) == 3


@pytest.mark.parametrize(
    ("use", "what"),
    [
        (entry(b"NM", b"\0a/b") + px(0o100644), "name"),
        (entry(b"NM", b"\0..") + px(0o100644), "name"),
        (entry(b"NM", b"\0"), "name"),
        (b"NM\x02\x01", "length"),
        (b"NM\x7f\x01", "length"),
        (entry(b"CE", both(20, 8) + both(9999, 8) + both(1 << 20, 8)), "size"),
        (entry(b"CE", both(1 << 30, 8) + both(0, 8) + both(100, 8)), "beyond"),
        (entry(b"PX", b"\0\0"), "PxPayload"),
        (entry(b"TF", b"\x0e123"), "cut short"),
        (entry(b"SL", b"\0\0\x60x"), "cut short"),
    ],
)
def test_damaged_entries(use: bytes, what: str) -> None:
    """What an entry must not say is refused, and found by the checker."""
    volume = rock_ridge(Made(b"A.;1", use=use))

    with pytest.raises(CorruptError, match=what):
        list(volume.walk())
    assert check_volume(volume.device)


def test_continuations_end() -> None:
    """A continuation that leads to itself is refused."""
    loop = entry(b"CE", both(24, 8) + both(0, 8) + both(28, 8))
    image = HandMade([Made(b"A.;1", use=loop)], {24: loop}, root_use=SP + px(0o40755))
    with pytest.raises(CorruptError, match="without end"):
        list(open_volume(device_of(image)).walk())


def test_directories_end() -> None:
    """A directory that holds itself, or another one twice, is refused."""
    root = HandMade.ROOT // SECTOR_SIZE
    device = device_of(HandMade([Made(b"LOOP", root, SECTOR_SIZE, FileFlag.DIRECTORY)]))

    with pytest.raises(CorruptError, match="met twice"):
        list(open_volume(device).walk())
    assert "directory" in {finding.rule for finding in check_volume(device)}


def test_content_beyond_the_end() -> None:
    """A file beyond the end of the image is listed; reading it says where it should be."""
    device = device_of(HandMade([Made(b"A.;1", 1000, 10), Made(b"B.;1", 24, 5)]))
    volume = open_volume(device)
    found = paths_of(volume)

    with pytest.raises(CorruptError, match="beyond the end") as caught:
        volume.read(found[b"A"].node, 0, 10)
    assert caught.value.position == 1000 * SECTOR_SIZE
    assert volume.read(found[b"B"].node, 0, 10) == bytes(5)
    assert "beyond" in {finding.rule for finding in check_volume(device)}


def test_copies_that_differ() -> None:
    """Where the copies of a number differ the little-endian one counts, with a warning."""
    image = HandMade([Made(b"A.;1", 24, 5)], {24: b"12345"})
    device = device_of(image)
    at = HandMade.ROOT + 68 + DirectoryRecord.OFFSETS["size_both"] + 4
    device.write(at, bytes(4))

    volume = open_volume(device)
    assert content(volume, b"A") == b"12345"
    (warning,) = volume.warnings()
    assert warning.startswith("the two copies of a number differ, and the little-endian")
    assert [finding.rule for finding in check_volume(device)] == ["both-endian"]

    number = 16 * SECTOR_SIZE + VolumeDescriptor.OFFSETS["blocks_both"] + 4
    device.write(number, bytes(4))
    volume = open_volume(device)
    assert content(volume, b"A") == b"12345"
    assert any("two copies of blocks_both" in problem for problem in volume.warnings())


@pytest.mark.parametrize("start", [bytes(34), b"\x22" + bytes(33)], ids=["zeros", "no name"])
def test_a_directory_that_cannot_be_right(start: bytes) -> None:
    """Where a directory should be and is none, that is said: no empty list is shown."""
    image = HandMade([Made(b"A.;1", 24, 5), Made(b"D", 25, 2048, flags=2)], {24: b"12345"})
    device = device_of(image)
    device.write(25 * SECTOR_SIZE, start)
    losses: list[Loss] = []
    found = {entry.name: entry.node.number for entry in open_volume(device).walk(losses.append)}

    assert set(found) == {b"", b"A", b"D"}
    assert [(loss.directory, loss.name, loss.count) for loss in losses] == [
        (found[b"D"], b"", 1),
        (found[b""], b"", 0),  # more may be lost than could be counted
    ]
    with pytest.raises(CorruptError):
        list(open_volume(device).walk())


def test_joliet_prefers_its_own_root() -> None:
    """Names of Joliet come from its tree, a lone surrogate as three bytes."""
    image = HandMade([Made(b"A.;1", 24, 5)], {24: b"plain", 25: b"wide "})
    block = FREE // SECTOR_SIZE + 8
    names = [b"\xd8\x00\x00a\x00;\x001", b"\xd8\x3d\xde\x00"]
    directory = Made(b"\0", block, 2048, 2).pack() + Made(b"\1", block, 2048, 2).pack()
    directory += b"".join(Made(name, 25, 5).pack() for name in names)
    image.blocks[block] = directory
    image.supplementary.append(
        image.descriptor(
            type=2,
            escapes=b"%/E".ljust(32, b"\0"),
            volume_id="Gräte".encode("utf-16-be").ljust(32, b"\0"),
            root=Made(b"\0", block, 2048, 2).pack(),
        )
    )
    volume = open_volume(device_of(image))

    assert volume.namespace == "joliet"
    assert volume.label == "Gräte".encode()
    assert set(paths_of(volume)) == {b"", b"\xed\xa0\x80a", "\U0001f600".encode()}
    assert content(volume, b"\xed\xa0\x80a") == b"wide "
    assert content(open_volume(volume.device, prefer="plain"), b"A") == b"plain"


@given(st.text(st.characters(codec=None), min_size=1, max_size=64))
def test_every_joliet_name_survives(name: str) -> None:
    """Any sequence of code units comes back from the bytes that are given for it."""
    units = name.encode("utf-16-be", "surrogatepass")
    found = joliet_name(units, is_directory=True, position=0)

    assert found.decode("utf-8", "surrogatepass").encode("utf-16-be", "surrogatepass") == units


@given(
    st.lists(
        st.binary(min_size=1, max_size=100).filter(
            lambda name: name not in (b".", b"..") and b"/" not in name and b"\0" not in name
        ),
        max_size=8,
        unique=True,
    )
)
def test_every_rock_ridge_name_survives(names: list[bytes]) -> None:
    """Names are bytes, and come as they are."""
    records = [
        Made(b"%d.;1" % number, use=entry(b"NM", b"\0" + name) + px(0o100644))
        for number, name in enumerate(names)
    ]
    volume = rock_ridge(*records)

    assert [entry.name for entry in volume.walk()] == [b"", *names]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"block_size_both": both(0, 4)}, CorruptError),
        ({"block_size_both": both(3000, 4)}, CorruptError),
        ({"block_size_both": both(4096, 4)}, UnsupportedError),
        ({"root": bytes(34)}, CorruptError),
        ({"standard_id": b"CDROM"}, NotRecognisedError),
        ({"type": 2}, CorruptError),
    ],
    ids=str,
)
def test_descriptors_that_lead_nowhere(change: dict[str, object], error: type[Exception]) -> None:
    """A volume that nothing can be read by is refused at opening."""
    image = HandMade([])
    device: Device = device_of(image)
    device.write(16 * SECTOR_SIZE, image.descriptor(**change).pack())

    with pytest.raises(error):
        open_volume(device)


def test_empty_device() -> None:
    """What is too small, or has no descriptor, is not such a volume."""
    for size in (0, 16 * SECTOR_SIZE, 17 * SECTOR_SIZE):
        with pytest.raises(NotRecognisedError):
            open_volume(MemoryDevice(size))


def test_records_survive() -> None:
    """What is unpacked packs to the same bytes, copies that differ included."""
    data = bytes(range(200, 255)) * 40
    for layout in (DirectoryRecord, VolumeDescriptor):
        assert layout.unpack(data).pack() == data[: layout.SIZE]
    record = DirectoryRecord.unpack(data)
    changed = replace(record, block_both=both(7, 8))
    assert changed.block == 7
    assert struct.unpack("<I", changed.pack()[2:6]) == (7,)


def test_opens_by_its_signature() -> None:
    """The driver is found by what is on the device."""
    assert open_any(device_of(HandMade([]))).label == b"HANDMADE"
