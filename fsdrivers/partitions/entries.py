# SPDX-License-Identifier: Apache-2.0
"""What the schemes of partition tables share: a partition, and what stands in descriptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from fsdrivers.errors import CorruptError
from fsdrivers.volume import Description, Plain

# GUID and MBR type.  Source: UEFI 2.10, 5.3.3 and 5.2.2.
EFI_SYSTEM_TYPES = ("C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "ef")

_T = TypeVar("_T")
_KINDS: Final = {int: "an integer", bytes: "bytes", list: "a list", dict: "a map"}


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


def get_value(description: Description, key: str, kind: type[_T]) -> _T:
    """Return what stands under `key`, of that kind, or raise CorruptError."""
    return as_kind(description.get(key), key, kind)


def as_kind(value: Plain, what: str, kind: type[_T]) -> _T:
    """Return `value` if it is of that kind, or raise CorruptError.

    Serialisers may have made a tuple of a list, and another mapping of a dictionary.
    """
    found: object = value
    if isinstance(value, tuple | Mapping):
        found = dict(value) if isinstance(value, Mapping) else list(value)
    if not isinstance(found, kind):
        expected = _KINDS[kind]
        raise CorruptError(f"partition table description, {what}", None, expected, value)
    return found
