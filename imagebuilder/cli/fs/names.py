# SPDX-License-Identifier: Apache-2.0
"""Which names of this host FAT and NTFS have a place for: those that Windows can reach.

Source: [MS-FSCC] 2.1.5; [fatgen103] "Name Limits".  Names that DOS takes for devices are let
through, as Windows itself can have them.
"""

from __future__ import annotations

from typing import Final

from fsdrivers.fat.codepage import fold
from fsdrivers.fat.names import is_legal_long_name, units_of

LONGEST: Final = 255  # UTF-16 units


class SeenNames:
    """The names of one directory, as far as they were taken."""

    def __init__(self, *, is_fat: bool) -> None:
        self._is_fat = is_fat
        self._taken: set[str] = set()

    def reason_against(self, name: bytes) -> str | None:
        """Return why a name cannot be in the directory, None if it can."""
        try:
            text = name.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            return "its name is not UTF-8"
        if len(name) > LONGEST and len(units_of(name)) > 2 * LONGEST:
            return f"its name is longer than {LONGEST} UTF-16 units"
        # DEL is one that FAT alone forbids.
        if not is_legal_long_name(name if self._is_fat else name.replace(b"\x7f", b"_")):
            return "Windows does not allow its name"
        return "its name differs from another only in case" if fold(text) in self._taken else None

    def take(self, name: bytes) -> None:
        """Remember a name that `reason_against` has nothing against."""
        self._taken.add(fold(name.decode("utf-8", "surrogatepass")))
