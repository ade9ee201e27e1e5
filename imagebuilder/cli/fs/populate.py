# SPDX-License-Identifier: Apache-2.0
"""`rebuildkit fs mkfs --from DIRECTORY`: make and fill a volume in one pass.

It walks the directory, plans the whole volume, reads content straight into its place in a buffer of
4 MiB, which it writes past the page cache, and then writes the metadata, what makes the volume
valid last.  Forked processes share the content.

A file that shrinks meanwhile is filled up with zeros and named.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from backup.shared.collector import paused_collector
from backup.shared.sharing import share, useful_processes
from fsdrivers import Driver, signatures
from fsdrivers.device import Device
from fsdrivers.printable import printable
from fsdrivers.volume import Description, Layout, StreamLayout
from imagebuilder.cli.common import UsageError, print_json, report_error
from rebuild.exit_codes import ExitCode

if TYPE_CHECKING:
    from imagebuilder.cli.fs.open import Image
    from imagebuilder.cli.fs.source import HostTree

BUFFER_SIZE = 4 << 20  # bytes written at once

STRETCH_SIZE = 16 << 20  # bytes of content that a process copies before it takes the next
FILE_WEIGHT = 8 << 10  # bytes that are copied while a file is opened

# What is copied: (path, offset in the file, offset in the buffer, length).
Part = tuple[bytes, int, int, int]


class Stretch(NamedTuple):
    """Neighbouring files, or a part of a large one: (ranks in the tree's order, bytes)."""

    first: int
    stop: int
    begin: int  # in the first file
    end: int  # in the last file
    weight: int


class Job:
    """A run of the volume of at most `BUFFER_SIZE` bytes, and what fills it."""

    __slots__ = ("length", "parts", "position")

    def __init__(self, position: int) -> None:
        self.position = position
        self.length = 0
        self.parts: list[Part] = []


@paused_collector()
def populate(
    options: Image,
    source: str,
    driver: Driver,
    description: Description,
    device: Device,
    *,
    is_blank: bool,
) -> int:
    """Format `device` and fill it with what is below `source`; return the exit code.

    Args:
        options: of the command.
        source: directory to copy.
        driver: that makes it.
        description: of the volume to be made.
        device: where to.
        is_blank: it reads as zeros.

    Raises:
        UsageError: the directory cannot be read.
        FilesystemError: the volume cannot hold it; nothing has been written then.
        DeviceError: the medium failed.
    """
    from imagebuilder.cli.fs.source import HostTree

    try:
        image = os.stat(options.image)
        tree = HostTree(os.fsencode(source), driver, skipped=image, processes=useful_processes())
    except OSError as error:
        raise UsageError(f"{source}: {error.strerror}") from error
    layout = driver.plan_volume(
        description,
        size=device.size,
        sector_size=device.sector_size,
        entries=tree.entries,
        order=tree.order,
        is_blank=is_blank,
        regions=tree.regions,
    )
    streams = driver.with_streams(layout)
    problems = [*tree.problems, *write_volume(tree, layout, device, streams, is_blank=is_blank)]
    for text in problems:
        report_error(text)
    if options.json:
        print_json(
            {
                "action": "mkfs",
                "type": description["type"],
                "size": device.size,
                "objects": len(tree.entries),
                "problems": problems,
            }
        )
    return ExitCode.PARTIAL if problems else ExitCode.DONE


def write_volume(
    tree: HostTree,
    layout: Layout,
    device: Device,
    streams: StreamLayout | None = None,
    *,
    is_blank: bool,
) -> list[str]:
    """Write content, then metadata; return a line for each file that changed meanwhile.

    `streams` is the layout where content may go inside the metadata.

    Raises:
        DeviceError: the medium failed.
    """
    if not is_blank:
        signatures.wipe(device)
    problems: list[str] = []

    def take(_: Stretch, changed: list[bytes]) -> None:
        problems.extend(f"{printable(path)}: changed while it was read" for path in changed)

    def work(stretches: Sequence[Stretch]) -> Iterator[list[bytes]]:
        copier = Copier(device)
        for stretch in stretches:
            if streams is not None:
                copier.read_resident(tree, streams, stretch)
            for job in iter_jobs(tree, layout, stretch):
                copier.copy(job)
            yield copier.finish()

    count = useful_processes()
    share(
        cut_stretches(tree.sizes),
        work,
        take,
        lambda stretches: None,
        count,
        lambda stretch: stretch.weight,
    )
    for position, data in layout.iter_metadata():
        device.write(position, data)
    device.flush()
    return problems


def cut_stretches(sizes: Sequence[int]) -> list[Stretch]:
    """Cut files of such sizes into stretches of about the same work."""
    made: list[Stretch] = []
    first = weight = 0
    last = len(sizes) - 1
    for rank, size in enumerate(sizes):
        begin = 0
        if size >= STRETCH_SIZE:
            if first < rank:
                made.append(Stretch(first, rank, 0, sizes[rank - 1], weight))
            while size - begin > STRETCH_SIZE:
                end = begin + STRETCH_SIZE
                made.append(Stretch(rank, rank + 1, begin, end, STRETCH_SIZE))
                begin = end
            made.append(Stretch(rank, rank + 1, begin, size, size - begin))
            first, weight = rank + 1, 0
            continue
        weight += size + FILE_WEIGHT
        if weight >= STRETCH_SIZE or rank == last:
            made.append(Stretch(first, rank + 1, 0, size, weight))
            first, weight = rank + 1, 0
    return made


def iter_jobs(tree: HostTree, layout: Layout, stretch: Stretch) -> Iterator[Job]:
    """Yield what is to be copied, in the order of the volume as far as the plan kept it."""
    job = Job(-1)
    goes_on_at = -1
    placements, block_size = layout.placements, layout.block_size
    round_up = block_size - 1
    order, sizes, path_of = tree.order, tree.sizes, tree.path
    last = stretch.stop - 1
    for rank in range(stretch.first, stretch.stop):
        begin = stretch.begin if rank == stretch.first else 0
        end = stretch.end if rank == last else sizes[rank]
        path = path_of(rank)
        for offset, length, position, is_unwritten in placements(order[rank]):
            stop = min(offset + length, end)
            if is_unwritten or stop <= begin:
                continue
            if offset < begin:
                offset, position = begin, position + begin - offset
            while offset < stop:
                used = job.length
                if position != goes_on_at or used >= BUFFER_SIZE:
                    if used:
                        yield job
                    job = Job(position)
                    used = 0
                count = min(stop - offset, BUFFER_SIZE - used)
                job.parts.append((path, offset, used, count))
                stored = count + round_up & ~round_up
                job.length = used + stored
                goes_on_at = position + stored
                offset, position = offset + count, position + count
    if job.length:
        yield job


class Copier:
    """Carries out jobs: one buffer is filled while the other is written."""

    def __init__(self, device: Device) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # forked processes have their own
        self._device = device
        self._buffers = [memoryview(mmap.mmap(-1, BUFFER_SIZE, flags=flags)) for _ in range(2)]
        self._writing: threading.Thread | None = None
        self._error: Exception | None = None
        self._changed: list[bytes] = []

    def copy(self, job: Job) -> None:
        """Copy what `job` says; it may still be written when this returns.

        Raises:
            DeviceError: the device failed, perhaps with an earlier job.
        """
        buffer = self._buffers[0]
        self._changed += _fill(job.parts, buffer[: job.length])
        self._wait()
        self._buffers.reverse()

        def write() -> None:
            try:
                self._device.write(job.position, buffer[: job.length])
            except Exception as error:  # raised again by who waits
                self._error = error

        self._writing = threading.Thread(target=write, name="write")
        self._writing.start()

    def read_resident(self, tree: HostTree, layout: StreamLayout, stretch: Stretch) -> None:
        """Read the content that goes inside metadata."""
        resident, place_of = layout.resident, layout.resident_place
        for rank in range(stretch.first, stretch.stop):
            place = place_of(tree.order[rank], b"")
            if place is not None:
                size = tree.sizes[rank]
                parts = [(tree.path(rank), 0, 0, size)]
                self._changed += _fill(parts, resident[place : place + size])

    def finish(self) -> list[bytes]:
        """Wait for what is being written; return the paths of files that were shorter.

        Raises:
            DeviceError: the device failed.
        """
        self._wait()
        changed, self._changed = self._changed, []
        return changed

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.join()
        error, self._error = self._error, None
        if error is not None:
            raise error


def _fill(parts: Sequence[Part], buffer: memoryview) -> list[bytes]:
    """Read parts to their places, zeros between; return the paths of files that are shorter."""
    changed: list[bytes] = []
    ends = [part[2] for part in parts[1:]]
    ends.append(len(buffer))
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    for (path, offset, at, count), end in zip(parts, ends, strict=True):
        stop = at + count
        try:
            descriptor = os.open(path, flags)
        except OSError:
            changed.append(path)
            buffer[at:end] = bytes(end - at)
            continue
        try:
            while at < stop:
                done = os.preadv(descriptor, [buffer[at:stop]], offset)
                if not done:
                    changed.append(path)
                    break
                at += done
                offset += done
        except OSError:
            changed.append(path)
        finally:
            os.close(descriptor)
        if at < end:
            buffer[at:end] = bytes(end - at)
    return changed
