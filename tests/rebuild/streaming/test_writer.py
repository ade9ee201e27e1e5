# SPDX-License-Identifier: Apache-2.0
"""Tests of the coalescing writer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from backup.shared.sharing import share
from fsdrivers.device import FileDevice, MemoryDevice
from rebuild.streaming.writer import BUFFER_SIZE, CoalescingWriter


class CountingDevice(MemoryDevice):
    """Counts the writes it gets."""

    writes = 0

    def write(self, position: int, data: bytes | bytearray | memoryview) -> None:
        """Count and write."""
        self.writes += 1
        super().write(position, data)


def test_neighbours_become_one_write_with_zeroed_tails() -> None:
    """Small files in neighbouring blocks reach the device at once, stale bytes of tails zeroed."""
    device = CountingDevice(1 << 20)
    device.write(0, b"\xff" * (1 << 16))
    device.writes = 0
    writer = CoalescingWriter(device, 4096)
    for block in range(8):
        writer.write(block * 4096, b"x" * (100 + block))
    writer.flush()

    assert device.writes == 1
    for block in range(8):
        want = (b"x" * (100 + block)).ljust(4096, b"\0")
        assert device.read(block * 4096, 4096) == want
    assert device.read(8 * 4096, 4096) == b"\xff" * 4096


def test_processes_collect_apart(tmp_path: Path) -> None:
    """Two processes that write through one writer, made before the fork, do not mix."""
    path = tmp_path / "image"
    path.write_bytes(bytes(64 << 20))
    with FileDevice.open(path, writable=True, direct=True) as device:
        writer = CoalescingWriter(device, 4096)

        def work(jobs: Sequence[int]) -> Iterator[None]:
            for job in jobs:
                for block in range(256):
                    position = (job * 256 + block) * 4096
                    writer.write(position, b"%d %d" % (job, block))
                yield None

        share(range(64), work, lambda job, result: None, lambda jobs: writer.flush(), 3)
        writer.flush()

        for block in range(64 * 256):
            want = b"%d %d" % divmod(block, 256)
            assert device.read(block * 4096, 4096) == want.ljust(4096, b"\0")


def test_a_gap_of_whole_blocks_is_left_alone() -> None:
    """What lies between two runs is not the writer's to touch."""
    device = MemoryDevice(1 << 20)
    device.write(0, b"\xff" * (1 << 16))
    writer = CoalescingWriter(device, 1024)
    writer.write(0, b"a" * 1024)
    writer.write(3072, b"b" * 10)
    writer.flush()

    assert device.read(1024, 2048) == b"\xff" * 2048
    assert device.read(3072, 1024) == (b"b" * 10).ljust(1024, b"\0")


def test_larger_than_the_buffer_goes_straight_through() -> None:
    """One piece larger than the buffer is written whole, and its tail zeroed."""
    device = MemoryDevice(4 * BUFFER_SIZE)
    writer = CoalescingWriter(device, 4096)
    data = bytes(range(256)) * (BUFFER_SIZE // 256) + b"end"
    writer.write(8192, data)
    writer.flush()

    assert device.read(8192, len(data)) == data


@given(
    st.lists(st.tuples(st.integers(0, 63), st.integers(1, 3000)), max_size=40),
    st.sampled_from([1, 512, 1024, 4096]),
)
def test_last_write_of_a_block_wins(writes: list[tuple[int, int]], block_size: int) -> None:
    """In any order of block-aligned writes, what was written is what is read."""
    device = MemoryDevice(1 << 20)
    writer = CoalescingWriter(device, block_size)
    want: dict[int, bytes] = {}
    for number, (slot, length) in enumerate(writes):
        if slot in want:
            continue
        want[slot] = bytes([number + 1]) * length
        writer.write(slot * 8192, want[slot])
    writer.flush()

    for slot, data in want.items():
        assert device.read(slot * 8192, len(data)) == data
