# SPDX-License-Identifier: Apache-2.0
"""How much memory a restore takes, and how much there is: told before anything is written.

Source: linux Documentation/filesystems/proc.rst (MemAvailable, VmSize),
Documentation/admin-guide/cgroup-v2.rst (memory.max, memory.current, memory.stat).
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from rebuild.errors import NotEnoughMemoryError

if TYPE_CHECKING:
    from backup.objects.key_file import KdfParameters
    from backup.objects.table import Summary

# Measured: peaks of whole restores beyond what the process had before it loaded the table, of
# ext4, FAT32 and NTFS with 4,000, 12,000 and 30,000 files, of volumes of 400 GiB, and of files of
# 90 MiB.  At most 29 MiB do not depend on the number of objects; an object took up to 2.6 KiB,
# most of all on FAT.
FIXED = 32 << 20  # bytes: buffers, pieces on their way
PER_OBJECT = 2816  # bytes: the object, its driver's node, its places in layout and packs
PER_PIECE = 512  # bytes, of files in many pieces
_PIECE_SIZE = 8 << 20  # bytes of content in most pieces of a large file
_CGROUPS = "/sys/fs/cgroup"


def memory_needed(summary: Summary) -> int:
    """Return how many bytes a restore of a data set takes at most, beyond what is in use."""
    pieces = summary.content_bytes // _PIECE_SIZE + len(summary.packs)
    return FIXED + summary.object_count * PER_OBJECT + pieces * PER_PIECE


def check_memory(summary: Summary) -> None:
    """Refuse to load a data set that memory will not do for.

    Raises:
        NotEnoughMemoryError: with both numbers.
    """
    _check(memory_needed(summary), "this data set")


def check_memory_for_password(parameters: KdfParameters) -> None:
    """Refuse to derive a key for which memory will not do.

    Raises:
        NotEnoughMemoryError: with both numbers.
    """
    _check(parameters.memory_kib << 10, "checking the password")


def _check(needed: int, what: str) -> None:
    available = memory_available()
    if available is not None and available < needed:
        raise NotEnoughMemoryError(needed, available, what)


def memory_available() -> int | None:
    """Return how many bytes this process can still have, swap included; None if nobody knows."""
    found = []
    with suppress(OSError, KeyError, ValueError):
        fields = _fields_of("/proc/meminfo")
        found.append(fields["MemAvailable"] + fields.get("SwapFree", 0))
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        with suppress(OSError, KeyError, ValueError):
            found.append(limit - _fields_of("/proc/self/status")["VmSize"])
    found += _left_in_groups()
    return max(0, min(found)) if found else None


def _left_in_groups() -> Iterator[int]:
    """Yield what is left in the control group of this process and in those above it."""
    with suppress(OSError, ValueError):
        with open("/proc/self/cgroup") as file:
            paths = [line[3:].strip() for line in file if line.startswith("0::")]
        parts = paths[0].strip("/").split("/") if paths else []
        for depth in range(len(parts) + 1):
            directory = "/".join((_CGROUPS, *parts[:depth]))
            with suppress(OSError, ValueError, KeyError):
                limit = int(_text_of(f"{directory}/memory.max"))  # "max" for none
                used = int(_text_of(f"{directory}/memory.current"))
                statistics = dict(
                    line.split() for line in _text_of(f"{directory}/memory.stat").splitlines()
                )
                yield limit - used + int(statistics["inactive_file"])


def _fields_of(path: str) -> dict[str, int]:
    """Return the sizes in a file of "Name: 123 kB" lines, in bytes."""
    lines = (line.partition(":") for line in _text_of(path).splitlines())
    return {name: int(rest.split()[0]) << 10 for name, _, rest in lines if rest.endswith(" kB")}


def _text_of(path: str) -> str:
    with open(path) as file:
        return file.read()
