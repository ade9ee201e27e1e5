# SPDX-License-Identifier: Apache-2.0
"""What the repository has already: the previous data set, and packs of an interrupted run.

Source: EP1168174A1 [0040].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from backup.agent.previous import PreviousSet, index_objects, no_previous
from backup.objects.data_keys import DataKey
from backup.objects.errors import DamagedError, ObjectsError
from backup.objects.model import Piece
from backup.objects.pack import HEADER_SIZE, IndexEntry, PackInfo, PackReader, index_offset
from backup.objects.preamble import PREAMBLE_SIZE
from backup.objects.table import TableReader
from backup.repository import (
    DamagedDataSetError,
    DataSetInfo,
    Repository,
    RepositoryError,
    check_sealed,
)
from backup.repository import PackInfo as StoredPack

TAIL_SIZE = 256 << 10  # bytes; holds the index of most packs
INDEX_LENGTH_SIZE = 4
PREVIOUS_TRIES = 3  # data sets, the newest first


@dataclass(slots=True)
class PendingPacks:
    """Packs that a run left before it could commit, and what is in them."""

    packs: list[PackInfo] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)


def load_previous(
    repository: Repository, master: DataKey, data_sets: Sequence[DataSetInfo]
) -> tuple[PreviousSet, list[str]]:
    """Read the newest data set that can be used; return it indexed, and notes on what cannot.

    A table that is damaged or of another version costs time, not the backup: an older data set is
    taken, and what is not in that is sent again.

    Args:
        repository: has the data sets.
        master: the master key, or a machine's.
        data_sets: of the machine, the newest last, which the new one follows in any case.
    """
    notes: list[str] = []
    previous = no_previous()
    for info in data_sets[: -PREVIOUS_TRIES - 1 : -1]:
        try:
            previous = _load(repository, master, info)
        except (ObjectsError, DamagedDataSetError) as error:
            notes.append(
                f"data set {info.generation} of {info.machine} cannot be compared with: {error}"
            )
            if isinstance(error, DamagedError | DamagedDataSetError):
                repository.check((), (info.id,))
        else:
            break
    previous.id = data_sets[-1].id if data_sets else ""
    return previous, notes


def _load(repository: Repository, master: DataKey, info: DataSetInfo) -> PreviousSet:
    """Read a data set.

    Raises:
        ObjectsError, DamagedDataSetError: it cannot be used.
    """
    with repository.open_table(info.id) as stream:
        reader = TableReader(master, stream)
        objects = list(reader)
        summary = reader.summary
    check_sealed(info, summary.data_set_id, summary.machine, summary.generation)
    previous = index_objects(
        objects,
        set_id=info.id,
        key=reader.key,
        started_ns=summary.created_ns,
        packs=summary.packs,
    )
    previous.system = summary.system
    return previous


def read_pending(repository: Repository, master: DataKey, machine: str, first: int) -> PendingPacks:
    """Read the indexes of packs that are stored but in no data set.

    Args:
        repository: has the packs.
        master: the master key, or a machine's.
        machine: whose packs.
        first: index in the new data set's list that the first of them gets.
    """
    pending = PendingPacks()
    for stored in repository.pending_packs(machine):
        try:
            salt, entries = _read_index(repository, master, stored)
        except (ObjectsError, RepositoryError):
            continue  # not of this key, or damaged: its content is sent again
        number = first + len(pending.packs)
        pending.packs.append(PackInfo(stored.digest, stored.size, salt))
        pending.pieces += [
            Piece(0, entry.length, entry.content_id, number, entry.pack_offset, entry.sealed_length)
            for entry in entries
        ]
    return pending


def _read_index(
    repository: Repository, master: DataKey, stored: StoredPack
) -> tuple[bytes, list[IndexEntry]]:
    """Return the salt of a stored pack, and the pieces it lists."""
    size = stored.size
    header = repository.read_pack(stored.digest, 0, HEADER_SIZE)
    reader = PackReader.from_header(master, header)
    start = max(0, size - TAIL_SIZE)
    tail = repository.read_pack(stored.digest, start, size - start)
    offset = index_offset(tail[-INDEX_LENGTH_SIZE:], size)
    if offset < start:
        tail = repository.read_pack(stored.digest, offset, size - offset)
        start = offset
    index = memoryview(tail)[offset - start : -INDEX_LENGTH_SIZE]
    return header[PREAMBLE_SIZE:HEADER_SIZE], reader.open_index(index, offset)
