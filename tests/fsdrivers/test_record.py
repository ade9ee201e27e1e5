# SPDX-License-Identifier: Apache-2.0
"""On-disk records: one declaration, two codecs."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Annotated

import construct
import pytest

from fsdrivers.errors import CorruptError
from fsdrivers.record import (
    U16,
    Record,
    i8,
    joined_codec,
    record,
    sparse_codec,
    u8,
    u16,
    u32,
    u32be,
    u64,
    words_codec,
)


@record(size=24)
class Plain(Record):
    name: Annotated[bytes, construct.Bytes(3)]
    kind: u8
    delta: i8
    middle: u16
    low: u32
    large: u64
    reserved_13: Annotated[bytes, construct.Bytes(5)]


@record(size=28)
class Longer(Plain):
    extra: u32


@record(size=8)
class Mixed(Record):
    little: u32
    big: u32be


@record(size=4)
class Big(Record):
    value: u32be


@pytest.mark.parametrize("kind", [Plain, Longer, Mixed, Big])
def test_codecs_agree_on_random_bytes(kind: type[Record]) -> None:
    """LAYOUT and CODEC decode any bytes alike, and encode them back unchanged."""
    rng = random.Random(kind.__name__)
    for _ in range(50):
        data = rng.randbytes(kind.SIZE)
        value = kind.unpack(data)
        parsed = kind.LAYOUT.parse(data)

        assert {name: getattr(value, name) for name in kind.OFFSETS} == {
            name: parsed[name] for name in kind.OFFSETS
        }
        assert value.pack() == data
        assert kind.LAYOUT.build({name: parsed[name] for name in kind.OFFSETS}) == data


def test_sizes_and_offsets() -> None:
    """Offsets follow from the widths, a subclass extends its base, mixed orders have no CODEC."""
    assert Plain.OFFSETS == {
        "name": 0, "kind": 3, "delta": 4, "middle": 5, "low": 7, "large": 11, "reserved_13": 19,
    }  # fmt: skip
    assert Longer.OFFSETS["extra"] == Plain.SIZE
    assert Plain.CODEC is not None
    assert Plain.CODEC.size == Plain.SIZE == Plain.LAYOUT.sizeof()
    assert Big.CODEC is not None
    assert Mixed.CODEC is None


def test_wrong_size_is_refused_at_declaration() -> None:
    """A declaration that does not add up to the format's size does not import."""
    with pytest.raises(TypeError, match="fields take 4 bytes, the format says 5"):

        @record(size=5)
        class Wrong(Record):
            value: u32


@pytest.mark.parametrize("kind", [Plain, Mixed])
def test_short_data_is_corrupt(kind: type[Record]) -> None:
    """Data that ends inside a record is CorruptError, which names the record and the byte."""
    with pytest.raises(CorruptError, match=f"{kind.__name__} at byte 2 of {kind.SIZE}"):
        kind.unpack(bytes(kind.SIZE), 2)


@pytest.mark.parametrize("kind", [Plain, Mixed])
def test_unpack_all(kind: type[Record]) -> None:
    """Records back to back decode like one at a time, from bytes and from a memoryview."""
    data = random.Random(3).randbytes(kind.SIZE * 7)
    expected = [kind.unpack(data, at) for at in range(0, len(data), kind.SIZE)]

    assert list(kind.unpack_all(data)) == expected
    assert list(kind.unpack_all(memoryview(data))) == expected
    with pytest.raises(CorruptError, match="not whole records"):
        list(kind.unpack_all(data[1:]))


def test_bad_value_names_the_field() -> None:
    """A value that does not fit its field is refused and the field is named."""
    value = Plain.unpack(bytes(Plain.SIZE))
    with pytest.raises(construct.ConstructError, match="middle"):
        replace(value, middle=1 << 16).pack()


def test_plain_fields_round_trip() -> None:
    """A record survives as plain data; missing and unfit fields are CorruptError."""
    value = Plain.unpack(random.Random(4).randbytes(Plain.SIZE))
    plain = value.to_plain()

    assert Plain.from_plain({**plain, "more": 1}) == value
    for bad in ({**plain, "low": -1}, {**plain, "name": 7}, {"name": b"abc"}, None):
        with pytest.raises(CorruptError, match="description of a Plain"):
            Plain.from_plain(bad)


def test_sparse_codec_is_a_part_of_the_record() -> None:
    """A codec of some fields takes them where the record has them; what it leaves out is zero."""
    value = Plain.unpack(random.Random(5).randbytes(Plain.SIZE))
    some = sparse_codec(Plain, ("kind", "low"))
    field = sparse_codec(Plain, ("middle",), start=Plain.OFFSETS["middle"])
    whole = sparse_codec(Plain)

    assert some.unpack_from(value.pack()) == (value.kind, value.low)
    assert Plain.unpack(some.pack(7, 9).ljust(Plain.SIZE, b"\0")).to_plain() == {
        **Plain.unpack(bytes(Plain.SIZE)).to_plain(),
        "kind": 7,
        "low": 9,
    }
    assert field.unpack(value.pack()[5:7]) == (value.middle,)
    assert sparse_codec(Plain, ("kind",), end=Plain.SIZE).size == Plain.SIZE
    data = whole.pack(*whole.unpack(value.pack()))
    assert data == replace(value, reserved_13=bytes(5)).pack()


def test_joined_codec_is_its_parts_in_sequence() -> None:
    """Codecs joined give the bytes of each one behind the other, and take raw bytes between."""
    plain = Plain.unpack(random.Random(6).randbytes(Plain.SIZE))
    values = list(plain.to_plain().values())
    joined = joined_codec(Plain.codec(), 3, U16)

    assert joined.pack(*values, b"ab", 5) == plain.pack() + b"ab\0" + b"\5\0"
    assert words_codec(2).pack(1, 2) == b"\1\0\0\0\2\0\0\0"
    assert words_codec(2, ">").pack(1, 2) == b"\0\0\0\1\0\0\0\2"
