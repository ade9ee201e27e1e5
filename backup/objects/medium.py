# SPDX-License-Identifier: Apache-2.0
"""What a restore reads from: a disc, an image of one, a server, or a store directory."""

from __future__ import annotations

from typing import BinaryIO, Protocol


class Medium(Protocol):
    """One data set and the key file that opens it.  Everything read is still sealed."""

    name: str  # for messages: "disc.iso", "https://..."

    def read_key_file(self) -> bytes:
        """Return `hash.dat`; of several copies, one that `keys.is_intact` accepts if any is."""
        ...

    def open_table(self) -> BinaryIO:
        """Open `objtab.dat`, the raw object table, for reading from its start.  Seekable."""
        ...

    def open_table_copy(self) -> BinaryIO | None:
        """Open the second copy of the table, if there is one: equal, byte for byte.

        `table.TableReader` turns to it when a segment of the first is damaged.
        """
        ...

    def read_pack(self, index: int, digest: bytes, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` of a pack; fewer only where the pack ends early.

        `index` is the pack's place in the data set's list, `digest` its SHA-256 (32 bytes).

        Raises:
            MissingPackError: the medium does not have the pack.
            OSError: the medium cannot be read there.
        """
        ...
