# SPDX-License-Identifier: Apache-2.0
"""On-disk records: declared once with construct, coded two ways.

A record is a slotted dataclass whose annotations carry construct wire types.
`@record(size=N)` reads them once and makes

* `LAYOUT`, the construct `Struct`: the declaration, and the codec of records whose
  width or byte order varies from field to field;
* `CODEC`, the `struct.Struct` derived from it when every field is fixed-width and
  of one byte order: the codec of the hot paths (about 30 times faster to parse).

Both come from the same annotations, so they cannot drift apart.
"""

from __future__ import annotations

import dataclasses
import re
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Annotated, Any, ClassVar, Self, TypeVar, dataclass_transform

from fsdrivers.errors import CorruptError
from fsdrivers.volume import Plain


class _Deferred(ModuleType):
    """Stands for a module until somebody asks for anything in it."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


# construct imports it, 11 ms at every start, for a debugger that nobody uses.
sys.modules.setdefault("pdb", _Deferred("pdb"))
import construct  # noqa: E402

u8 = Annotated[int, construct.Int8ul]
u16 = Annotated[int, construct.Int16ul]
u32 = Annotated[int, construct.Int32ul]
u64 = Annotated[int, construct.Int64ul]
i8 = Annotated[int, construct.Int8sl]
u32be = Annotated[int, construct.Int32ub]

# Codecs of one integer.
U16, U32, U64 = struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<Q")
U32BE, U64BE = struct.Struct(">I"), struct.Struct(">Q")


class Record:
    """Base of all on-disk records.  `SIZE` and `OFFSETS` are in bytes."""

    __slots__ = ()
    SIZE: ClassVar[int]
    OFFSETS: ClassVar[dict[str, int]]
    WIRE: ClassVar[dict[str, Any]]  # the construct of each field
    LAYOUT: ClassVar[Any]  # construct.Struct
    CODEC: ClassVar[struct.Struct | None]

    # Here once instead of made for each class: that takes as long as all else of a record.

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.OFFSETS)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.OFFSETS)
        return f"{type(self).__qualname__}({fields})"

    @classmethod
    def codec(cls) -> struct.Struct:
        """Return CODEC, for hot paths: a record object costs some microseconds more."""
        assert cls.CODEC is not None, "all fields are of fixed width and one byte order"
        return cls.CODEC

    @classmethod
    def unpack(cls, data: bytes | bytearray | memoryview, offset: int = 0) -> Self:
        """Decode the record that starts `offset` bytes into `data`.

        Raises:
            CorruptError: `data` ends before the record does, or a construct rejects a field.
        """
        try:
            if cls.CODEC is not None:
                return cls(*cls.CODEC.unpack_from(data, offset))
            fields = cls.LAYOUT.parse(bytes(data[offset : offset + cls.SIZE]))
        except (struct.error, construct.ConstructError) as error:
            raise CorruptError(
                f"{cls.__name__} at byte {offset} of {len(data)}: {error}"
            ) from error
        return cls(**{name: fields[name] for name in cls.OFFSETS})

    @classmethod
    def unpack_all(cls, data: bytes | bytearray | memoryview) -> Iterator[Self]:
        """Decode the records packed back to back in `data`.

        Raises:
            CorruptError: `data` is not a whole number of records.
        """
        if len(data) % cls.SIZE:
            raise CorruptError(f"{cls.__name__}: {len(data)} bytes are not whole records")
        if cls.CODEC is None:
            yield from (cls.unpack(data, at) for at in range(0, len(data), cls.SIZE))
        else:
            yield from (cls(*values) for values in cls.CODEC.iter_unpack(data))

    def pack(self) -> bytes:
        """Encode to exactly `SIZE` bytes.

        Raises:
            construct.ConstructError: a value does not fit its field; names the field.
        """
        values = [getattr(self, name) for name in self.OFFSETS]
        if self.CODEC is not None:
            try:
                return self.CODEC.pack(*values)
            except struct.error:
                pass  # construct fails on the same value and says which field it is
        return bytes(self.LAYOUT.build(dict(zip(self.OFFSETS, values, strict=True))))

    def to_plain(self) -> dict[str, Plain]:
        """Return the fields by name, for a description; `from_plain` takes them back."""
        return {name: getattr(self, name) for name in self.OFFSETS}

    @classmethod
    def from_plain(cls, fields: Plain | Mapping[str, Plain]) -> Self:
        """Make a record of what `to_plain` gave; what else is in `fields` is left alone.

        Raises:
            CorruptError: a field is missing or does not fit.
        """
        try:
            if not isinstance(fields, Mapping):
                raise TypeError(f"expected its fields, found {type(fields).__name__}")
            made = cls(**{name: fields[name] for name in cls.OFFSETS})
            if cls.unpack(made.pack()) != made:  # construct takes an integer for bytes
                raise TypeError("a field has the wrong type")
        except (KeyError, TypeError, construct.ConstructError) as error:
            raise CorruptError(f"description of a {cls.__name__}: {error}") from error
        return made


_R = TypeVar("_R", bound=Record)


@dataclass_transform()
def record(*, size: int) -> Callable[[type[_R]], type[_R]]:
    """Make an annotated subclass of Record a record of `size` bytes.

    A subclass of a record extends it: its fields follow those of its base on disk.

    Raises:
        TypeError: the declared fields do not add up to `size`.
    """

    def decorate(cls: type[_R]) -> type[_R]:
        made: Any = dataclasses.dataclass(slots=True, repr=False, eq=False)(cls)
        wire = made.WIRE = getattr(cls, "WIRE", {}) | _wire_types_of(cls)
        made.LAYOUT = construct.Struct(*(name / subcon for name, subcon in wire.items()))
        made.CODEC = _derive_codec(list(wire.values()))
        made.SIZE = size
        made.OFFSETS, end = {}, 0
        for name, subcon in wire.items():
            made.OFFSETS[name] = end
            end += subcon.sizeof()
        if end != size:
            raise TypeError(f"{cls.__name__}: fields take {end} bytes, the format says {size}")
        return made  # type: ignore[no-any-return]

    return decorate


def _wire_types_of(cls: type) -> dict[str, Any]:
    """Return the construct of each field that the class itself declares.

    Measured: `typing.get_type_hints` takes three times as long, 8 ms for the records of ext.
    """
    names = vars(sys.modules[cls.__module__])
    wire = {}
    for field, declared in vars(cls).get("__annotations__", {}).items():
        hint = declared
        if isinstance(declared, str):
            hint = names[declared] if declared in names else eval(declared, names)
        wire[field] = hint.__metadata__[0]
    return wire


def _derive_codec(subcons: list[Any]) -> struct.Struct | None:
    """Return the `struct` codec equal to `subcons` in sequence, or None if there is none."""
    orders, codes = set(), []
    for subcon in subcons:
        if isinstance(subcon, construct.FormatField):
            codes.append(subcon.fmtstr[1:])
            if subcon.length > 1:
                orders.add(subcon.fmtstr[0])
        elif isinstance(subcon, construct.Bytes) and isinstance(subcon.length, int):
            codes.append(f"{subcon.length}s")
        else:
            return None
    if len(orders) > 1:
        return None
    return struct.Struct((orders.pop() if orders else "<") + "".join(codes))


def sparse_codec(
    record: type[Record],
    names: Sequence[str] | None = None,
    *,
    start: int = 0,
    end: int | None = None,
) -> struct.Struct:
    """Return a codec of some fields of a record, in their order.

    The others are passed over when unpacking and become zeros when packing.

    Args:
        record: has a CODEC.
        names: of fields, ascending; None for all that are not reserved, to the record's end.
        start: offset at which the codec begins.
        end: offset at which it ends; None for the end of the last field.
    """
    codec = record.codec()
    formats = dict(zip(record.OFFSETS, re.findall(r"\d*[a-zA-Z]", codec.format), strict=True))
    if names is None:
        names = [name for name in formats if not name.startswith("reserved")]
        end = end or record.SIZE
    parts, at = [codec.format[0]], start
    for name in names:
        parts.append(f"{record.OFFSETS[name] - at}x{formats[name]}")
        at = record.OFFSETS[name] + record.WIRE[name].sizeof()
    return struct.Struct("".join(parts) + f"{(end or at) - at}x")


def joined_codec(*parts: struct.Struct | int) -> struct.Struct:
    """Return one codec of little-endian parts in sequence; a number stands for as many bytes."""
    return struct.Struct(
        "<" + "".join(f"{p}s" if isinstance(p, int) else p.format.removeprefix("<") for p in parts)
    )


@cache
def words_codec(count: int, order: str = "<") -> struct.Struct:
    """Return the codec of `count` words of 32 bits, little-endian unless `order` is ">"."""
    return struct.Struct(f"{order}{count}I")
