# SPDX-License-Identifier: Apache-2.0
"""A medium of packs in memory."""

from __future__ import annotations

from io import BytesIO
from typing import BinaryIO

from backup.objects.errors import MissingPackError

MISSING = 2  # number of a pack


class Packs:
    """A medium of packs in memory; pack number MISSING is not there."""

    name = "packs"

    def __init__(self) -> None:
        self.data: list[bytearray] = []

    def read_key_file(self) -> bytes:
        return b""

    def open_table(self) -> BinaryIO:
        return BytesIO()

    def open_table_copy(self) -> BinaryIO | None:
        return None

    def read_pack(self, index: int, digest: bytes, offset: int, length: int) -> bytes:
        if index == MISSING:
            raise MissingPackError(index, digest)
        return bytes(self.data[index][offset : offset + length])
