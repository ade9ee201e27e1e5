# SPDX-License-Identifier: Apache-2.0
"""Devices: image files, memory, windows."""

from __future__ import annotations

import errno
import mmap
import os
import random
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fsdrivers.device import Device, FileDevice, MemoryDevice, Window
from fsdrivers.errors import DeviceError
from tests.fsdrivers.faults import FaultyDevice

SIZE = 3 << 20


def image(tmp_path: Path, size: int = SIZE) -> Path:
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(size)
    return path


@pytest.fixture(params=["file", "memory", "window", "faulty"])
def device(request: pytest.FixtureRequest, tmp_path: Path) -> Device:
    """Each kind of device, blank, of SIZE bytes."""
    if request.param == "memory":
        return MemoryDevice(SIZE)
    if request.param == "faulty":
        return FaultyDevice(MemoryDevice(SIZE))
    if request.param == "window":
        return Window(MemoryDevice(SIZE + 12345), 12000, SIZE)
    return FileDevice.open(image(tmp_path), writable=True)


def test_reads_what_was_written(device: Device) -> None:
    """Any sequence of writes and zeroings reads like one on a bytearray."""
    rng = random.Random(1)
    expected = bytearray(SIZE)
    for _ in range(60):
        position = rng.randrange(SIZE)
        length = min(rng.choice([1, 511, 4096, 70_000, 300_000]), SIZE - position)
        if rng.random() < 0.4:
            device.zero(position, length)
            expected[position : position + length] = bytes(length)
        else:
            data = rng.randbytes(length)
            device.write(position, data)
            expected[position : position + length] = data
    device.flush()
    buffer = bytearray(SIZE)
    device.read_into(0, buffer)

    assert device.read(0, SIZE) == expected
    assert buffer == expected
    assert device.size == SIZE


def test_data_parts_cover_all_data(device: Device) -> None:
    """What iter_data leaves out reads as zeros, and large holes are left out."""
    device.write(65536, b"x" * 65536)
    device.write(2 << 20, b"y" * 10)
    parts = list(device.iter_data(0, SIZE))
    covered = bytearray(SIZE)
    for position, length in parts:
        covered[position : position + length] = b"\1" * length

    assert all(covered[at] for at in range(65536, 131072))
    assert all(covered[at] for at in range(2 << 20, (2 << 20) + 10))
    assert covered.count(1) < SIZE // 2
    assert parts == sorted(parts)
    assert list(device.iter_data(100_000, 10)) == [(100_000, 10)]
    assert list(device.iter_data(SIZE, 0)) == []


@pytest.mark.parametrize(("position", "length"), [(SIZE, 1), (-1, 1), (SIZE - 5, 6), (0, SIZE + 1)])
def test_ranges_outside_are_refused(device: Device, position: int, length: int) -> None:
    """Reading, writing or zeroing past the end is a DeviceError that names position and length."""
    with pytest.raises(DeviceError) as caught:
        device.read(position, length)
    assert caught.value.length == length
    with pytest.raises(DeviceError):
        device.read_into(position, bytearray(length))
    with pytest.raises(DeviceError) as caught:
        device.write(position, bytes(length))
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(DeviceError):
        device.zero(position, length)
    with pytest.raises(DeviceError):
        list(device.iter_data(position, length))


def test_file_zero_punches_a_hole(tmp_path: Path) -> None:
    """Zeroing a range of an image frees its blocks and keeps its size."""
    path = image(tmp_path)
    with FileDevice.open(path, writable=True) as device:
        device.write(0, b"x" * SIZE)
        device.flush()
        before = path.stat().st_blocks
        device.zero(1 << 20, 1 << 20)
        device.flush()

        assert path.stat().st_blocks <= before - 2000
        assert path.stat().st_size == SIZE
        assert device.read((1 << 20) - 1, 3) == b"x\0\0"


def test_zero_falls_back_to_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where holes cannot be punched, zeros are written."""

    def refuse(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr("fsdrivers.device._punch_hole", refuse)
    with FileDevice.open(image(tmp_path), writable=True) as device:
        device.write(0, b"x" * SIZE)
        device.zero(10, SIZE - 20)

        assert device.read(0, SIZE) == b"x" * 10 + bytes(SIZE - 20) + b"x" * 10


@pytest.mark.parametrize(
    ("position", "length"),
    [(0, 1 << 20), (4096, 65536), (512, 65536), (8192, 65536 + 100), (1, 70001)],
)
def test_direct_writes_arrive(tmp_path: Path, position: int, length: int) -> None:
    """What is written past the page cache reads back the same, whatever its alignment."""
    path = tmp_path / "image"
    path.write_bytes(b"\xaa" * (2 << 20))
    memory = mmap.mmap(-1, 2 << 20)
    memory[:length] = random.Random(length).randbytes(length)
    with FileDevice.open(path, writable=True, direct=True) as device:
        device.write(position, b"buffered before")
        device.write(position, memoryview(memory)[:length])
        device.write(position + 10, b"buffered after")
        device.flush()

        assert device.read(0, position) == b"\xaa" * position
        assert device.read(position, 10) == memory[:10]
        assert device.read(position + 10, 14) == b"buffered after"
        assert device.read(position + 24, length - 24) == memory[24:length]
        assert device.read(position + length, 100) == b"\xaa" * 100


def test_read_only_device_refuses_writes(tmp_path: Path) -> None:
    """A device opened for reading raises DeviceError on write and zero."""
    with FileDevice.open(image(tmp_path)) as device:
        window = Window(device, 0, 100)
        for target in (device, window):
            with pytest.raises(DeviceError) as caught:
                target.write(0, b"x")
            assert caught.value.errno == errno.EROFS
            with pytest.raises(DeviceError):
                target.zero(0, 1)


def test_truncated_file_is_a_device_error(tmp_path: Path) -> None:
    """An image cut short after opening fails to read instead of returning less."""
    path = image(tmp_path)
    with FileDevice.open(path) as device:
        os.truncate(path, 1000)
        with pytest.raises(DeviceError):
            device.read(0, 2000)
        with pytest.raises(DeviceError):
            device.read_into(0, bytearray(2000))


def test_open_failures_are_device_errors(tmp_path: Path) -> None:
    """What is missing, a directory, a character device and a FIFO without a writer are refused
    with the path in the message, for reading and for writing."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for is_writing in (False, True):
        for path, reason in (
            (tmp_path / "nothing", "No such file or directory"),
            (tmp_path, "it is a directory, no image file or block device"),
            (Path("/dev/null"), "it is neither an image file nor a block device"),
            (fifo, "it is neither an image file nor a block device"),
        ):
            with pytest.raises(DeviceError) as caught:
                FileDevice.open(path, writable=is_writing)
            assert caught.value.strerror == f"cannot open: {reason}"
            assert caught.value.filename == str(path)


def test_sector_size_is_as_asked(tmp_path: Path) -> None:
    """An image has 512-byte sectors unless told; a window has those of its device."""
    path = image(tmp_path)
    with FileDevice.open(path) as small, FileDevice.open(path, sector_size=4096) as large:
        assert small.sector_size == 512
        assert Window(large, 0, 4096).sector_size == 4096


def test_close_is_idempotent(tmp_path: Path) -> None:
    """Closing twice is harmless, and closing a window leaves the device open."""
    device = FileDevice.open(image(tmp_path))
    Window(device, 0, 10).close()
    assert device.read(0, 1) == b"\0"
    device.close()
    device.close()


def test_threads_and_forks_read_the_same(tmp_path: Path) -> None:
    """Concurrent readers and a forked child see the right bytes: no shared file offset is used."""
    path = image(tmp_path)
    content = random.Random(2).randbytes(SIZE)
    path.write_bytes(content)
    with FileDevice.open(path) as device:
        spots = [(at, 4000) for at in range(0, SIZE - 4000, 3000)]
        with ThreadPoolExecutor(4) as pool:
            pieces = list(pool.map(lambda spot: device.read(*spot), spots))
        assert pieces == [content[at : at + count] for at, count in spots]
        child = os.fork()
        if not child:
            os._exit(0 if device.read(77, 999) == content[77:1076] else 1)
        assert device.read(5000, 999) == content[5000:5999]
        assert os.waitpid(child, 0)[1] == 0


@pytest.mark.root
@pytest.mark.tools
def test_block_device(tmp_path: Path) -> None:
    """A loop device tells its size and sector size, is written, and zeroed."""
    path = image(tmp_path)
    command = ["losetup", "--find", "--show", "--sector-size", "4096", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    loop = done.stdout.strip()
    try:
        with FileDevice.open(loop, writable=True) as device:
            device.write(0, b"x" * SIZE)
            device.zero(100, SIZE - 200)
            device.flush()

            assert (device.size, device.sector_size) == (SIZE, 4096)
            assert device.read(0, SIZE) == b"x" * 100 + bytes(SIZE - 200) + b"x" * 100
            assert next(device.iter_data(0, SIZE))[0] == 0
    finally:
        subprocess.run(["losetup", "--detach", loop], check=True)


def test_faulty_device_fails_as_told() -> None:
    """The failing write raises, later ones pass or are dropped, bad ranges give EIO."""
    memory = MemoryDevice(10_000)
    faulty = FaultyDevice(memory, fail_write=1, bad_ranges=[(5000, 10)])
    faulty.write(0, b"a")
    with pytest.raises(DeviceError):
        faulty.write(1, b"b")
    faulty.write(2, b"c")
    assert memory.read(0, 3) == b"a\0c"
    with pytest.raises(DeviceError):
        faulty.read(4990, 11)
    cut = FaultyDevice(memory, fail_write=0, drop_later=True)
    cut.write(0, b"z")
    cut.zero(0, 3)
    assert memory.read(0, 3) == b"a\0c"


def test_memory_device_is_sparse() -> None:
    """A device of many terabytes costs only what is written to it."""
    device = MemoryDevice(64 << 40)
    device.write((64 << 40) - 5, b"hello")
    device.write(0, bytes(1 << 20))

    assert device.read((64 << 40) - 5, 5) == b"hello"
    assert len(list(device.iter_data(0, 3 << 20))) == 0
