# SPDX-License-Identifier: Apache-2.0
"""Keys of machines: what they seal, and what they do not open."""

from __future__ import annotations

import io

import pytest

from backup.objects.content import content_id
from backup.objects.data_keys import DataKey, MachineKey
from backup.objects.errors import BindingError, DamagedError, OtherKeyError, UnknownVersionError
from backup.objects.keys import MasterKey
from backup.objects.model import BackupObject
from backup.objects.pack import HEADER_SIZE, PackReader, PackWriter
from backup.objects.table import TableReader, TableWriter, read_summary
from backup.repository import data_set_id_of
from tests.backup.objects.samples import sample

MASTER = MasterKey(bytes(range(32)))
NAME = "web-ä"
KEY = MASTER.new_machine_key(NAME)
OBJECTS = sample()


def table(key: DataKey, machine: str = NAME) -> bytes:
    """Return a table of the sample, sealed with `key`."""
    stream = io.BytesIO()
    writer = TableWriter(key, stream, machine=machine, created_ns=5, generation=3)
    writer.add_all(OBJECTS)
    writer.finish([])
    return stream.getvalue()


def read(key: DataKey, data: bytes) -> list[BackupObject]:
    """Return what a table holds."""
    return list(TableReader(key, io.BytesIO(data)))


def test_the_master_key_opens_what_a_machine_sealed() -> None:
    """The table names its key; packs are opened with the key that the reader found."""
    reader = TableReader(MASTER, io.BytesIO(table(KEY)))
    writer = PackWriter(KEY)
    piece = content_id(KEY, b"content")
    writer.add(b"content", piece)
    pack = writer.finish()

    assert list(reader) == OBJECTS
    assert reader.summary.machine == NAME
    assert reader.key.id == KEY.id
    sealed = bytes(pack.data)[HEADER_SIZE:][: pack.pieces[0].sealed_length]
    assert PackReader(reader.key, pack.info.salt).open(pack.pieces[0], sealed) == b"content"
    assert content_id(reader.key, b"content") == piece


def test_a_machine_opens_its_own_sets_with_what_it_keeps() -> None:
    """Id and secret are all that its credential holds."""
    again = MachineKey(KEY.secret, KEY.id)

    assert read(again, table(KEY)) == OBJECTS
    assert read(KEY, table(again)) == OBJECTS


@pytest.mark.parametrize(
    "other",
    [MASTER, MASTER.new_machine_key("db"), MASTER.new_machine_key(NAME)],
    ids=["the id's", "another machine's", "its own of another enrolment"],
)
def test_a_machine_opens_nothing_else(other: DataKey) -> None:
    """Neither sets of others nor those of the password; the error says so."""
    with pytest.raises(OtherKeyError):
        read(KEY, table(other))


def test_keys_of_two_machines_have_nothing_in_common() -> None:
    """Equal content has other ids and signatures: no machine can ask what another one holds."""
    other = MASTER.new_machine_key("db")
    values = [(key.content_id_key, key.signature_key, key.secret) for key in (KEY, other)]
    values.append((MASTER.content_id_key, MASTER.signature_key, bytes(range(32))))

    assert len({value for three in values for value in three}) == 9


def test_a_machine_cannot_pass_for_another() -> None:
    """With a stolen key and the help of the server, a set under another's name is refused."""
    forged = table(KEY, machine="db")

    with pytest.raises(BindingError, match="db"):
        read_summary(MASTER, io.BytesIO(forged))
    with pytest.raises(BindingError, match="db"):
        read(MASTER, forged)


def test_a_key_id_cannot_be_made_up() -> None:
    """An id with another code gives another key, and the code fits no name."""
    data = bytearray(table(KEY))
    data[24 + 31] ^= 1

    with pytest.raises(DamagedError):
        read(MASTER, bytes(data))


def test_the_head_says_which_version_it_is() -> None:
    """Version 2 where a machine sealed it, 1 as ever where the master key did."""
    data = table(KEY)

    assert (data[6], table(MASTER)[6]) == (2, 1)
    assert data[24:56] == KEY.id
    assert data_set_id_of(data[:24]) == data[8:24].hex()


@pytest.mark.parametrize("version", [0, 3])
def test_other_versions_are_refused(version: int) -> None:
    """Before anything else is looked at."""
    data = bytearray(table(KEY))
    data[6] = version

    with pytest.raises(UnknownVersionError):
        read(MASTER, bytes(data))


def test_nothing_shows_a_key() -> None:
    """Not in a traceback, not in a log."""
    assert repr(KEY) == "MachineKey(...)"
