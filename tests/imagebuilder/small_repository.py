# SPDX-License-Identifier: Apache-2.0
"""A repository in memory with one data set of one small disk, for tests of discs."""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import BinaryIO

from backup.objects.keys import MasterKey, NewKeyFile, create_key_file
from backup.objects.model import DiskObject
from backup.objects.pack import PackInfo
from backup.objects.table import TableWriter

USER = "anna"
PASSWORD = "correct horse"  # of test data only


@cache
def new_key_file() -> NewKeyFile:
    """Return one key file for the whole test run: making it costs an Argon2id run."""
    return create_key_file(USER, PASSWORD)


@dataclass
class SmallRepository:
    """Implements `imagebuilder.build.DataSource`; its packs are random bytes."""

    pack_sizes: tuple[int, ...] = (100_000, 2048, 1)
    table: bytes = b""
    data_set: str = ""
    packs: dict[bytes, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        noise = random.Random(7)
        contents = [noise.randbytes(size) for size in self.pack_sizes]
        self.packs = {hashlib.sha256(data).digest(): data for data in contents}
        stream = io.BytesIO()
        writer = TableWriter(self.master, stream, machine="desk", created_ns=1_700_000_000 * 10**9)
        writer.add(
            DiskObject(1, name="sda", size=1 << 30, sector_size=512, scheme="none", table={})
        )
        writer.finish(
            [PackInfo(hashlib.sha256(data).digest(), len(data), bytes(32)) for data in contents]
        )
        self.table, self.data_set = stream.getvalue(), writer.data_set_id.hex()

    @property
    def master(self) -> MasterKey:
        """Return what the key file unlocks."""
        return new_key_file().master

    def key_file(self) -> bytes:
        """Return hash.dat, not bound to a disc."""
        return new_key_file().data

    def open_table(self, data_set: str) -> BinaryIO:
        """Open the only table."""
        assert data_set == self.data_set
        return io.BytesIO(self.table)

    def read_pack(self, digest: bytes, offset: int, length: int) -> bytes:
        """Return a part of a pack."""
        return self.packs[digest][offset : offset + length]

    def check(self, packs: Sequence[bytes], tables: Sequence[str]) -> None:
        """Take notice of damage: nobody backs up to here."""
