# SPDX-License-Identifier: Apache-2.0
"""`rebuildkit fs mkfs --from DIRECTORY`: a volume made full, in one pass.

The directory is walked, the whole volume planned, then content is read straight into the place
it has in a buffer of 4 MiB, which is written past the page cache, then the metadata follows, what
makes the volume valid last.  Forked processes share the content.

A file that shrinks meanwhile is filled up with zeros and named.
"""

from __future__ import annotations

import argparse
import mmap
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from fsdrivers.device import Device
from imagebuilder.cli_common import DONE, PARTIAL, UsageError, print_json, report_error

if TYPE_CHECKING:
    from fsdrivers.volume import Description, Layout
    from imagebuilder.cli_fs_source import HostTree

BUFFER_SIZE = 4 << 20  # bytes written at once
WIPED_SIZE = 1 << 20  # bytes at the start: no old signature shows while the volume is made

# What is copied: (path, offset in the file, offset in the buffer, length).
Part = tuple[bytes, int, int, int]


class Job:
    """A run of the volume of at most `BUFFER_SIZE` bytes, and what fills it."""

    __slots__ = ("length", "parts", "position")

    def __init__(self, position: int) -> None:
        self.position = position
        self.length = 0
        self.parts: list[Part] = []


def populate(
    args: argparse.Namespace,
    plan: Callable[..., Layout],
    description: Description,
    device: Device,
    *,
    is_blank: bool,
) -> int:
    """Format `device` and fill it with what is below `args.source`; return the exit code.

    Args:
        args: the command's options.
        plan: the driver's `plan_volume`.
        description: of the volume to be made.
        device: where to.
        is_blank: it reads as zeros.

    Raises:
        UsageError: the directory cannot be read.
        FilesystemError: the volume cannot hold it; nothing has been written then.
        DeviceError: the medium failed.
    """
    from rebuild.collector import paused_collector

    with paused_collector():
        return _populate(args, plan, description, device, is_blank=is_blank)


def _populate(
    args: argparse.Namespace,
    plan: Callable[..., Layout],
    description: Description,
    device: Device,
    *,
    is_blank: bool,
) -> int:
    from imagebuilder.cli_fs_source import HostTree
    from rebuild.sharing import useful_processes

    type = str(description["type"])
    try:
        image = os.stat(args.image)
        source = os.fsencode(args.source)
        tree = HostTree(source, type, skipped=image, processes=useful_processes())
    except OSError as error:
        raise UsageError(f"{args.source}: {error.strerror}") from error
    options: dict[str, object] = {}
    if not type.startswith("fat"):
        options = {"regions": tree.regions, "is_blank": is_blank}
    layout = plan(
        description,
        size=device.size,
        sector_size=device.sector_size,
        entries=tree.entries,
        order=tree.order,
        **options,
    )
    problems = [*tree.problems, *write_volume(tree, layout, device, is_blank=is_blank)]
    for text in problems:
        report_error(text)
    if args.json:
        print_json(
            {
                "action": "mkfs",
                "type": type,
                "size": device.size,
                "objects": len(tree.entries),
                "problems": problems,
            }
        )
    return PARTIAL if problems else DONE


def write_volume(tree: HostTree, layout: Layout, device: Device, *, is_blank: bool) -> list[str]:
    """Write content, then metadata; return a line for each file that changed meanwhile.

    Raises:
        DeviceError: the medium failed.
    """
    from rebuild.sharing import share, useful_processes

    if not is_blank:
        device.write(0, bytes(min(WIPED_SIZE, device.size)))
    problems: list[str] = []

    def take(_: Job, changed: list[bytes]) -> None:
        problems.extend(f"{os.fsdecode(path)}: changed while it was read" for path in changed)

    share(
        cut_jobs(tree, layout),
        lambda jobs: _copy(jobs, device),
        take,
        lambda jobs: None,
        useful_processes(),
        lambda job: job.length + len(job.parts) * 8192,
    )
    for position, data in layout.iter_metadata():
        device.write(position, data)
    device.flush()
    return problems


def cut_jobs(tree: HostTree, layout: Layout) -> list[Job]:
    """Return all that is to be copied, in the order of the volume as far as the plan kept it."""
    jobs: list[Job] = []
    job = Job(-1)
    end = -1  # where the next part would go on
    placements, block_size = layout.placements, layout.block_size
    round_up = block_size - 1
    for number, path, size in tree.files():
        for offset, length, position, is_unwritten in placements(number):
            length = min(length, size - offset)
            while length > 0 and not is_unwritten:
                used = job.length
                if position != end or used >= BUFFER_SIZE:
                    job = Job(position)
                    jobs.append(job)
                    used = 0
                count = min(length, BUFFER_SIZE - used)
                job.parts.append((path, offset, used, count))
                stored = count + round_up & ~round_up
                job.length = used + stored
                end = position + stored
                offset, length, position = offset + count, length - count, position + count
    return jobs


def _copy(jobs: Sequence[Job], device: Device) -> Iterator[list[bytes]]:
    """Carry out jobs; yield for each the paths of files that were shorter than planned."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # forked processes have their own
    buffers = [memoryview(mmap.mmap(-1, BUFFER_SIZE, flags=flags)) for _ in range(2)]
    errors: list[Exception] = []
    writing: threading.Thread | None = None

    def write(position: int, data: memoryview) -> None:
        try:
            device.write(position, data)
        except Exception as error:  # raised again by who waits
            errors.append(error)

    changed: list[bytes] | None = None
    for job in jobs:
        buffer = buffers[0]
        found = _fill(job, buffer)
        if writing is not None:
            writing.join()
            if errors:
                raise errors[0]
            assert changed is not None, "it was set with the thread"
            yield changed
        buffers.reverse()
        changed = found
        writing = threading.Thread(target=write, args=(job.position, buffer[: job.length]))
        writing.start()
    if writing is not None:
        writing.join()
        if errors:
            raise errors[0]
        assert changed is not None, "it was set with the thread"
        yield changed


def _fill(job: Job, buffer: memoryview) -> list[bytes]:
    """Read the parts of a job to their places; return the paths of files that are shorter."""
    changed: list[bytes] = []
    parts = job.parts
    ends = [part[2] for part in parts[1:]]
    ends.append(job.length)
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
