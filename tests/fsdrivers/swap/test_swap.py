# SPDX-License-Identifier: Apache-2.0
"""Swap areas, read and planned; mkswap, blkid, swaplabel and file are the oracles."""

from __future__ import annotations

import contextlib
import random
import struct
import subprocess
from pathlib import Path

import pytest

from fsdrivers.device import FileDevice, MemoryDevice
from fsdrivers.errors import (
    CorruptError,
    FilesystemError,
    NoSpaceError,
    NotRecognisedError,
    UnsupportedError,
)
from fsdrivers.swap.format import MAGIC, PAGE_SIZE, SwapHeader
from fsdrivers.swap.mkfs import SwapLayout, minimum_size, plan_volume
from fsdrivers.swap.volume import SwapVolume, open_volume

SIZE = 8 << 20
UUID = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"


def made(tmp_path: Path, *options: str, size: int = SIZE) -> Path:
    path = tmp_path / "swap.img"
    path.write_bytes(bytes(size))
    command = ["mkswap", "--uuid", UUID, "--label", "sw\u00e4p", *options, str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path


def volume_of(path: Path) -> SwapVolume:
    with FileDevice.open(path) as device:
        return open_volume(device)


def apply(layout: SwapLayout, path: Path) -> None:
    path.write_bytes(b"\xa5" * layout.size)
    with FileDevice.open(path, writable=True) as device:
        for position, data in layout.iter_metadata():
            device.write(position, data)


def swap_device(
    *, version: int = 1, last_page: int = 9, bad: int = 0, magic: bytes = MAGIC
) -> MemoryDevice:
    device = MemoryDevice(10 * PAGE_SIZE)
    header = SwapHeader(bytes(1024), version, last_page, bad, b"\1" * 16, bytes(16), bytes(468))
    device.write(0, header.pack())
    device.write(PAGE_SIZE - 10, magic)
    return device


@pytest.mark.tools
def test_reads_what_mkswap_made(tmp_path: Path) -> None:
    """UUID, label and size equal what mkswap was asked for; nothing is on it."""
    volume = volume_of(made(tmp_path))

    assert (volume.type, volume.uuid, volume.label) == ("swap", UUID, "sw\u00e4p".encode())
    assert (volume.size, volume.used_size()) == (SIZE, PAGE_SIZE)
    assert list(volume.walk()) == []


@pytest.mark.tools
@pytest.mark.parametrize("size", [minimum_size({}), SIZE // 2, SIZE, SIZE * 2 + 1024])
def test_planned_area_is_the_same_swap(tmp_path: Path, size: int) -> None:
    """On any size blkid sees only our swap, over old signatures, with the recorded identity."""
    volume = volume_of(made(tmp_path))
    layout = plan_volume(volume.describe(), size=size, sector_size=512)
    path = tmp_path / "new.img"
    apply(layout, path)
    with FileDevice.open(path, writable=True) as device:
        if size > SIZE:
            device.write(0x10040, b"_BHRfS_M")
            device.write(1024 + 56, b"\x53\xef")
            for position, data in layout.iter_metadata():
                device.write(position, data)
    command = ["blkid", "--probe", "--output", "export", str(path)]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    label = subprocess.run(["swaplabel", str(path)], check=True, capture_output=True, text=True)
    text = subprocess.run(["file", str(path)], check=True, capture_output=True, text=True).stdout
    again = volume_of(path)

    assert f"UUID={UUID}" in found
    assert "TYPE=swap" in found
    assert UUID in label.stdout
    assert f"size {size // PAGE_SIZE - 1} pages" in text
    assert (again.uuid, again.label, again.size) == (
        UUID, volume.label, size // PAGE_SIZE * PAGE_SIZE,
    )  # fmt: skip
    assert path.stat().st_size == size == layout.size


@pytest.mark.tools
def test_same_size_is_the_same_page(tmp_path: Path) -> None:
    """Planned for the same size, the header equals mkswap's byte for byte."""
    path = made(tmp_path)
    layout = plan_volume(volume_of(path).describe(), size=SIZE, sector_size=512)
    assert layout.page == path.read_bytes()[:PAGE_SIZE]


@pytest.mark.parametrize("magic", [b"S1SUSPEND\0", b"S2SUSPEND\0", b"ULSUSPEND\0", b"LINHIB0001"])
def test_hibernated_area_becomes_plain(magic: bytes) -> None:
    """A hibernation signature is recognised, described, and planned as plain swap."""
    volume = open_volume(swap_device(magic=magic))
    layout = plan_volume(volume.describe(), size=SIZE, sector_size=4096)

    assert volume.is_hibernated
    assert volume.describe()["hibernated"] is True
    assert layout.page.endswith(MAGIC)
    assert not open_volume(MemoryDevice.of(layout.page.ljust(SIZE, b"\0"))).is_hibernated


def test_bad_pages_are_kept_where_they_fit() -> None:
    """Bad pages survive on a larger area; on a smaller one those behind its end go."""
    device = swap_device(bad=2)
    device.write(SwapHeader.SIZE, struct.pack("<2I", 4, 12))
    description = open_volume(device).describe()
    large = plan_volume(description, size=SIZE, sector_size=512).page
    small = plan_volume(description, size=10 * PAGE_SIZE, sector_size=512).page

    assert open_volume(MemoryDevice.of(large.ljust(SIZE, b"\0"))).bad_pages == (4, 12)
    assert open_volume(MemoryDevice.of(small.ljust(10 * PAGE_SIZE, b"\0"))).bad_pages == (4,)


@pytest.mark.parametrize(
    ("device", "error"),
    [
        (MemoryDevice(100), NotRecognisedError),
        (MemoryDevice(SIZE), NotRecognisedError),
        (swap_device(magic=b"SWAP-SPACE"), UnsupportedError),
        (swap_device(version=2), UnsupportedError),
        (swap_device(version=1 << 24), UnsupportedError),
        (swap_device(last_page=10), CorruptError),
        (swap_device(last_page=0), CorruptError),
        (swap_device(bad=638), CorruptError),
    ],
    ids=["tiny", "blank", "v0", "v2", "big-endian", "too-long", "empty", "bad-pages"],
)
def test_refusals(device: MemoryDevice, error: type[FilesystemError]) -> None:
    """No swap area, another kind, one that contradicts itself: each has its own kind of error."""
    with pytest.raises(error):
        open_volume(device)


def test_too_small_is_refused() -> None:
    """Less than ten pages is too small for a swap area; the error carries the numbers."""
    description = open_volume(swap_device()).describe()
    with pytest.raises(NoSpaceError) as caught:
        plan_volume(description, size=minimum_size(description) - 1, sector_size=512)
    assert (caught.value.needed, caught.value.available) == (40960, 40959)


@pytest.mark.parametrize(
    "change",
    [{"header": None}, {"header": {}}, {"bad_pages": 1}, {"bad_pages": [-1]}, {"bad_pages": ["x"]}],
)
def test_bad_descriptions_are_corrupt(change: dict[str, None]) -> None:
    """A description that is not ours is CorruptError."""
    description = {**open_volume(swap_device()).describe(), **change}
    with pytest.raises(CorruptError):
        plan_volume(description, size=SIZE, sector_size=512)


def test_record_round_trip() -> None:
    """Both codecs of the header agree on random bytes."""
    data = random.Random(5).randbytes(SwapHeader.SIZE)
    header = SwapHeader.unpack(data)

    assert header.pack() == data
    assert SwapHeader.LAYOUT.build(header.to_plain()) == data


def test_flipped_bytes_never_surprise() -> None:
    """Any changed byte of the header gives a swap area or a FilesystemError."""
    page = bytearray(swap_device(bad=1).read(0, PAGE_SIZE))
    for at in [*range(1024, 1100), *range(PAGE_SIZE - 10, PAGE_SIZE)]:
        page[at] ^= 0xFF
        with contextlib.suppress(FilesystemError):
            open_volume(MemoryDevice.of(bytes(page).ljust(10 * PAGE_SIZE, b"\0"))).describe()
        page[at] ^= 0xFF
