# SPDX-License-Identifier: Apache-2.0
"""What the schemes of partition tables share: a partition, and what stands in descriptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fsdrivers.errors import CorruptError
from fsdrivers.volume import Description, Plain

# GUID and MBR type.  Source: UEFI 2.10, 5.3.3 and 5.2.2.
EFI_SYSTEM_TYPES = ("C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "ef")


@dataclass(frozen=True, slots=True)
class PartitionEntry:
    """One partition; `start` and `size` in bytes."""

    number: int  # as Linux counts: logical partitions from 5
    start: int
    size: int
    type: str  # MBR: two hexadecimal digits in lower case; GPT: type GUID in upper case
    name: str = ""  # GPT only
    flags: int = 0  # MBR: status byte; GPT: attributes
    guid: str = ""  # GPT only, upper case
    partuuid: str = ""  # as blkid prints it, for both schemes
    is_active: bool = False  # what a BIOS boot loader would start
    is_extended: bool = False  # only holds logical partitions
    container: int = 0  # of a logical partition: number of its extended one

    @property
    def end(self) -> int:
        """First byte behind it."""
        return self.start + self.size

    @property
    def is_efi_system(self) -> bool:
        """Whether firmware looks for boot loaders in it."""
        return self.type in EFI_SYSTEM_TYPES


def subtract(
    ranges: Sequence[tuple[int, int]], taken: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Return the parts of the half-open `ranges` that are in none of `taken`, ascending."""
    for start, end in taken:
        pieces = []
        for low, high in ranges:
            pieces += [(low, min(high, start)), (max(low, end), high)]
        ranges = sorted({(low, high) for low, high in pieces if low < high})
    return list(ranges)


def get_integer(description: Description, key: str) -> int:
    """Return the integer under `key`, or raise CorruptError."""
    value = description.get(key)
    if not isinstance(value, int):
        raise CorruptError(f"partition table description, {key}", None, "an integer", value)
    return value


def get_list(description: Description, key: str) -> list[Plain]:
    """Return the list under `key`, or raise CorruptError."""
    value = description.get(key)
    if not isinstance(value, list | tuple):
        raise CorruptError(f"partition table description, {key}", None, "a list", value)
    return list(value)


def get_map(description: Description, key: str) -> dict[str, Plain]:
    """Return the map under `key`, or raise CorruptError."""
    return as_map(description.get(key), key)


def as_map(value: Plain, what: str) -> dict[str, Plain]:
    """Return `value` if it is a map, or raise CorruptError."""
    if not isinstance(value, Mapping):
        raise CorruptError(f"partition table description, {what}", None, "a map", value)
    return dict(value)


def get_bytes(description: Description, key: str) -> bytes:
    """Return the bytes under `key`, or raise CorruptError."""
    value = description.get(key)
    if not isinstance(value, bytes):
        raise CorruptError(f"partition table description, {key}", None, "bytes", value)
    return value
