# SPDX-License-Identifier: Apache-2.0
"""The object table, `objtab.dat`: all objects of one data set, sealed, as a stream.

    preamble (8) | data set id (16) | object segment | ... | summary segment | footer (16)

In version 2, which is sealed with a machine's own key, the id of that key (32) comes third.

A segment is its kind, its length, and AES-256-GCM of a zstd frame.  The key is the data set's
own; the nonce is the segment's position in the file; kind and length are associated data.  So
no segment can be moved, exchanged, dropped or repeated, and a table that ends early has no
summary.  The summary (machine, time, totals, list of packs) is known last and so comes last;
the footer tells a reader that can seek where it is.

Memory does not grow with the number of objects, only with the list of packs.
Source: docs/formats.md "objtab.dat".  The streams are the caller's.
"""

from __future__ import annotations

import dataclasses
import io
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, NamedTuple, NoReturn, Protocol, TypeVar

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from backup.objects.data_keys import MACHINE_KEY_ID_SIZE, DataKey
from backup.objects.encoding import (
    DECODE_ERRORS,
    make_packer,
    make_unpacker,
    pack_plain,
    unpack_plain,
)
from backup.objects.errors import BindingError, DamagedError, ObjectsError, UnstorableError
from backup.objects.key_file import DATA_SET_ID_SIZE
from backup.objects.model import BackupObject, NodeObject, ObjectKind, Plain, VolumeObject
from backup.objects.pack import PackInfo
from backup.objects.preamble import MAJOR, PREAMBLE_SIZE, check_preamble, make_preamble
from backup.objects.records import iter_objects, record_of

TABLE_MAGIC: Final = b"RKOBJT"
MACHINE_MAJOR: Final = 2  # version of tables that are sealed with a machine's key
TABLE_MINOR: Final = 2  # docs/formats.md says what each added
SEGMENT_SIZE: Final = 256 << 10  # bytes of records after which a segment is closed
MAX_LOSSES: Final = 1000
MAX_SEGMENT_SIZE: Final = 256 << 20  # one record (a file of 4 TiB) may pass SEGMENT_SIZE by far

_HEAD_SIZE = PREAMBLE_SIZE + DATA_SET_ID_SIZE
_PREFIX = struct.Struct("<BI")  # kind of segment, bytes of the sealed segment
_FOOTER = struct.Struct("<Q8s")  # position of the summary segment's prefix, magic
_FOOTER_MAGIC = b"RKOBJEND"
_OBJECTS, _SUMMARY = 1, 2  # kinds of segment
_PACK = struct.Struct("<32sQ32s")  # digest, size, salt
_NONCE_SIZE = 12
_TAG_SIZE = 16
_LEVEL = 1  # signatures and content ids do not shrink; higher levels gain 2 %
_READ_SIZE = 1 << 20
_TABLE = "the object table (objtab.dat)"


class SupportsWrite(Protocol):
    """Where a table goes: anything with `write`."""

    def write(self, data: bytes, /) -> object: ...


@dataclass(slots=True)
class VolumeTotals:
    """What the table says of a volume as a whole."""

    number: int
    type: str
    label: bytes
    mount_point: bytes
    size: int
    used_size: int
    nodes: int = 0  # names, hard links included
    content_bytes: int = 0  # sum of file sizes


@dataclass(frozen=True, slots=True)
class Summary:
    """What a table holds and where its content lies."""

    data_set_id: bytes  # 16 bytes
    machine: str
    created_ns: int
    generation: int
    system: dict[str, Plain]  # what runs on the machine: see backup.agent
    options: dict[str, Plain]  # how the backup was asked for
    object_count: int
    counts: dict[ObjectKind, int]
    volumes: tuple[VolumeTotals, ...]
    packs: tuple[PackInfo, ...]
    missing: int = 0  # objects of the machine that should be here and could not be read
    losses: tuple[str, ...] = ()  # what was said of them, the first `MAX_LOSSES` sentences

    @property
    def content_bytes(self) -> int:
        """Sum of the sizes of all files."""
        return sum(volume.content_bytes for volume in self.volumes)


class _OrderError(ValueError):
    """Objects were given in an order that the format has not: a mistake of the caller."""


class TableWriter:
    """Writes one object table to `stream`, segment by segment.

    A writer works only in the process that made it: see `pack.PackWriter`.

    Args:
        master: the master key, or a machine's.
        stream: takes the bytes; nothing is read back and nothing sought.
        machine: the machine's name.
        created_ns: when the backup was started, nanoseconds since 1970 UTC.
        generation: how many backups of the machine there were, this one included.
        system, options: plain data for the summary.
    """

    def __init__(
        self,
        master: DataKey,
        stream: SupportsWrite,
        *,
        machine: str,
        created_ns: int,
        generation: int = 1,
        system: Mapping[str, Plain] | None = None,
        options: Mapping[str, Plain] | None = None,
    ) -> None:
        self.data_set_id: Final = os.urandom(DATA_SET_ID_SIZE)
        self._stream = stream
        self._fields: dict[str, object] = {
            "machine": machine,
            "created_ns": created_ns,
            "generation": generation,
            "system": pack_plain(system or {}),
            "options": pack_plain(options or {}),
        }
        major = MACHINE_MAJOR if master.id else MAJOR
        preamble = make_preamble(TABLE_MAGIC, TABLE_MINOR, major)
        self._cipher = AESGCM(master.table_key(preamble, self.data_set_id))
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL)
        self._packer = make_packer(autoreset=False)
        self._last_number = 0
        self._counts = dict.fromkeys(ObjectKind, 0)
        self._volumes: dict[int, VolumeTotals] = {}
        self._position = 0
        self._process = os.getpid()
        self._is_finished = False
        self._write(preamble + self.data_set_id + master.id)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a TableWriter cannot be copied: two would use the same nonces")

    def add(self, obj: BackupObject) -> None:
        """Append an object; numbers ascend.

        Raises:
            UnstorableError: a value does not fit the format.
        """
        self.add_all((obj,))

    def add_all(self, objects: Iterable[BackupObject]) -> None:
        """Append objects, as `add` each of them.  Measured: 1 us less an object."""
        counts, volumes, packer = self._counts, self._volumes, self._packer
        pack, size_of = packer.pack, packer.getbuffer
        file, last = ObjectKind.FILE, self._last_number
        number = 0
        try:
            for obj in objects:
                number, kind = obj.number, obj.kind
                if number <= last:
                    raise _OrderError(f"object {number} comes after object {last}")
                last = number
                counts[kind] += 1
                if type(obj) is NodeObject:
                    totals = volumes.get(obj.volume)
                    if totals is None:
                        raise _OrderError(f"object {number} comes before its volume, {obj.volume}")
                    totals.nodes += 1
                    if kind is file:
                        totals.content_bytes += obj.size
                elif isinstance(obj, VolumeObject):
                    volumes[number] = VolumeTotals(
                        number, obj.type, obj.label, obj.mount_point, obj.size, obj.used_size
                    )
                pack(record_of(obj))
                if len(size_of()) >= SEGMENT_SIZE:
                    self._close_segment()
        except _OrderError:
            raise
        except (TypeError, ValueError, OverflowError, UnstorableError) as error:
            self._is_finished = True  # the packer has dropped what it had gathered
            raise UnstorableError(f"object {number} cannot be stored: {error}") from error
        finally:
            self._last_number = last

    def finish(
        self, packs: Sequence[PackInfo], *, missing: int = 0, losses: Sequence[str] = ()
    ) -> Summary:
        """Write the summary and the footer.

        Args:
            packs: in the order that `Piece.pack` counts.
            missing: objects of the machine that should be in the table and are not.
            losses: sentences that name them; the first `MAX_LOSSES` are kept.
        """
        if len(self._packer.getbuffer()):
            self._close_segment()
        position = self._position
        count = sum(self._counts.values())
        self._fields |= {
            "objects": count,
            "counts": [[int(kind), number] for kind, number in self._counts.items() if number],
            "volumes": [dataclasses.astuple(totals) for totals in self._volumes.values()],
            "packs": b"".join([_PACK.pack(*pack) for pack in packs]),
        }
        if missing:
            self._fields |= {"missing": missing, "losses": list(losses[:MAX_LOSSES])}
        packed = make_packer().pack(self._fields)
        self._seal(_SUMMARY, packed)
        self._write(_FOOTER.pack(position, _FOOTER_MAGIC))
        self._is_finished = True
        return _summary_of(packed, self.data_set_id)

    def _close_segment(self) -> None:
        """Seal the records gathered so far."""
        with self._packer.getbuffer() as records:
            self._seal(_OBJECTS, records)
        self._packer.reset()

    def _seal(self, kind: int, plain: bytes | memoryview) -> None:
        """Write one segment; its position, given out once only, is the nonce."""
        if self._is_finished:
            raise ValueError("the table is finished")
        if self._process != os.getpid():
            raise ValueError("a TableWriter does not survive a fork")
        if len(plain) > MAX_SEGMENT_SIZE:
            raise UnstorableError(f"a segment of {len(plain)} bytes is too large")
        packed = self._compressor.compress(plain)
        prefix = _PREFIX.pack(kind, len(packed) + _TAG_SIZE)
        nonce = self._position.to_bytes(_NONCE_SIZE, "little")
        self._write(prefix + self._cipher.encrypt(nonce, packed, prefix))

    def _write(self, data: bytes) -> None:
        """Pass bytes on and keep count.  A write that fails ends the table."""
        self._position += len(data)
        is_finished, self._is_finished = self._is_finished, True
        self._stream.write(data)
        self._is_finished = is_finished


class TableReader:
    """Reads an object table as a stream; iterate for the objects, once.

    What is yielded is authentic, but only the end of the iteration says that nothing is
    missing: act on a whole table.

    Args:
        master: the master key, or a machine's.
        stream: the table, from its start.
        open_copy: opens a second copy of the table, or returns None.  With it, both streams
            must be able to seek; a segment damaged in one copy is read from the other.

    Raises (also while iterating):
        UnknownVersionError: another major version; checked first.
        DamagedError: no table, cut short, changed, or of another master key.
        OtherKeyError: it names a key that `master` does not give.
        BindingError: it is sealed with the key of another machine than the one it names.

    Attributes:
        data_set_id: 16 bytes.
        key: what the data set is sealed with, its packs too.
    """

    def __init__(
        self,
        master: DataKey,
        stream: BinaryIO,
        open_copy: Callable[[], BinaryIO | None] | None = None,
    ) -> None:
        self._master = master
        self._copies = _Copies(stream, open_copy)
        self._summary: Summary | None = None
        self.key, self.data_set_id, self._cipher, self._first = self._copies.read(self._read_head)

    @property
    def summary(self) -> Summary:
        """The summary; before the end of the iteration the stream must be able to seek."""
        if self._summary is None:
            self._summary = self._copies.read(self._read_summary)
        return self._summary

    def __iter__(self) -> Iterator[BackupObject]:
        """Yield the objects in table order; at the end `summary` is known and agrees with them."""
        segment, count = self._first, 0
        while segment.kind == _OBJECTS:
            unpacker = make_unpacker(len(segment.plain))
            unpacker.feed(segment.plain)
            for obj in iter_objects(unpacker):
                count += 1
                yield obj
            segment = self._copies.read(self._segment_reader(segment.end))
        self._summary = self._summary_in(segment)
        if self._summary.object_count != count:
            raise DamagedError(_TABLE, "lists another number of objects than it holds")
        self._copies.read(lambda source: _check_end(source, segment))

    def _read_head(self, source: _Source) -> tuple[DataKey, bytes, AESGCM, _Segment]:
        """Read up to the end of the first segment, whose seal proves the head right."""
        start = source.read_at(0, PREAMBLE_SIZE)
        preamble = check_preamble(start, TABLE_MAGIC, _TABLE, newest=MACHINE_MAJOR)
        data_set_id = source.read_at(PREAMBLE_SIZE, DATA_SET_ID_SIZE)
        key_id_size = MACHINE_KEY_ID_SIZE if preamble[len(TABLE_MAGIC)] == MACHINE_MAJOR else 0
        key = self._master.named(source.read_at(_HEAD_SIZE, key_id_size))
        cipher = AESGCM(key.table_key(preamble, data_set_id))
        first = _read_segment(source, cipher, _HEAD_SIZE + key_id_size)
        return key, data_set_id, cipher, first

    def _segment_reader(self, position: int) -> Callable[[_Source], _Segment]:
        """Return what reads the segment at `position` from a copy."""
        return lambda source: _read_segment(source, self._cipher, position)

    def _read_summary(self, source: _Source) -> Summary:
        """Find the summary through the footer."""
        at = source.size() - _FOOTER.size
        if at <= _HEAD_SIZE:
            raise DamagedError(_TABLE, "is cut short")
        position, magic = _FOOTER.unpack(source.read_at(at, _FOOTER.size))
        if magic != _FOOTER_MAGIC or not _HEAD_SIZE <= position < at:
            raise DamagedError(_TABLE, "has no end", at)
        segment = _read_segment(source, self._cipher, position)
        if segment.kind != _SUMMARY or segment.end != at:
            raise DamagedError(_TABLE, position=position)
        return self._summary_in(segment)

    def _summary_in(self, segment: _Segment) -> Summary:
        """Decode the summary, and check that the key is that of the machine it names."""
        summary = _summary_of(segment.plain, self.data_set_id)
        if not self._master.is_key_of(summary.machine, self.key.id):
            raise BindingError(
                f"a backup of {summary.machine} is sealed with the key of another machine"
            )
        return summary


def read_summary(
    master: DataKey,
    stream: BinaryIO,
    open_copy: Callable[[], BinaryIO | None] | None = None,
) -> Summary:
    """Return the summary of the table in `stream`, which can seek, reading little of it.

    Raises:
        UnknownVersionError, DamagedError: as `TableReader`.
    """
    return TableReader(master, stream, open_copy).summary


class _Segment(NamedTuple):
    """An opened segment."""

    kind: int
    plain: bytes
    position: int  # of its prefix
    end: int


class _Source:
    """One copy of a table.  Seeks only to go elsewhere than on, so that a pipe will do."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._position = 0

    def read_at(self, position: int, length: int) -> bytes:
        """Return exactly `length` bytes from `position`; a little at a time, for `length` may
        come from a damaged table.

        Raises:
            DamagedError: the table ends before.
        """
        if position != self._position:
            self._stream.seek(position)
            self._position = position
        parts = []
        missing = length
        while missing:
            part = self._stream.read(min(missing, _READ_SIZE))
            if not part:
                raise DamagedError(_TABLE, "is cut short", self._position)
            parts.append(part)
            missing -= len(part)
            self._position += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def is_at_end(self, position: int) -> bool:
        """Return whether the table ends at `position`, where reading stands."""
        return not self._stream.read(1) if position == self._position else False

    def size(self) -> int:
        """Return the bytes of the table."""
        self._position = self._stream.seek(0, io.SEEK_END)
        return self._position


_T = TypeVar("_T")


class _Copies:
    """The copies of a table: what cannot be read from one is read from the other."""

    def __init__(self, stream: BinaryIO, open_copy: Callable[[], BinaryIO | None] | None) -> None:
        self._current = _Source(stream)
        self._other: _Source | None = None
        self._open_copy = open_copy

    def read(self, reader: Callable[[_Source], _T]) -> _T:
        """Return what `reader` gives for the current copy, else for the other one."""
        try:
            return reader(self._current)
        except (ObjectsError, OSError):
            other = self._find_other()
            if other is None:
                raise
            try:
                result = reader(other)
            except (ObjectsError, OSError):
                other = None
            if other is None:
                raise
        self._current, self._other = other, self._current
        return result

    def _find_other(self) -> _Source | None:
        """Return the other copy, opened when first asked for."""
        if self._other is None and self._open_copy is not None:
            stream = self._open_copy()
            self._open_copy = None
            self._other = None if stream is None else _Source(stream)
        return self._other


def _read_segment(source: _Source, cipher: AESGCM, position: int) -> _Segment:
    """Read and open the segment whose prefix is at `position`."""
    prefix = source.read_at(position, _PREFIX.size)
    kind, length = _PREFIX.unpack(prefix)
    if kind not in (_OBJECTS, _SUMMARY) or not _TAG_SIZE < length <= MAX_SEGMENT_SIZE:
        raise DamagedError(_TABLE, position=position)
    sealed = source.read_at(position + _PREFIX.size, length)
    try:
        packed = cipher.decrypt(position.to_bytes(_NONCE_SIZE, "little"), sealed, prefix)
        if not 0 <= zstandard.frame_content_size(packed) <= MAX_SEGMENT_SIZE:
            raise DamagedError(_TABLE, position=position)
        plain = zstandard.ZstdDecompressor().decompress(packed)
    except (InvalidTag, zstandard.ZstdError) as error:
        raise DamagedError(_TABLE, position=position) from error
    return _Segment(kind, plain, position, position + _PREFIX.size + length)


def _check_end(source: _Source, summary: _Segment) -> None:
    """Check that the footer, and nothing else, follows the summary."""
    footer = source.read_at(summary.end, _FOOTER.size)
    if footer != _FOOTER.pack(summary.position, _FOOTER_MAGIC):
        raise DamagedError(_TABLE, "has a damaged end", summary.end)
    if not source.is_at_end(summary.end + _FOOTER.size):
        raise DamagedError(_TABLE, "goes on after its end", summary.end + _FOOTER.size)


def _summary_of(plain: bytes, data_set_id: bytes) -> Summary:
    """Decode a summary; fields of later minor versions are ignored."""
    fields: Any = unpack_plain(plain, _TABLE)
    try:
        return Summary(
            data_set_id=data_set_id,
            machine=fields["machine"],
            created_ns=fields["created_ns"],
            generation=fields["generation"],
            system=unpack_plain(fields["system"], _TABLE),
            options=unpack_plain(fields["options"], _TABLE),
            object_count=fields["objects"],
            counts={ObjectKind(kind): number for kind, number in fields["counts"]},
            volumes=tuple(VolumeTotals(*values[:8]) for values in fields["volumes"]),
            packs=tuple(PackInfo._make(pack) for pack in _PACK.iter_unpack(fields["packs"])),
            missing=fields.get("missing", 0),
            losses=tuple(fields.get("losses", ())),
        )
    except (*DECODE_ERRORS, struct.error) as error:
        raise DamagedError(_TABLE, "has a summary that cannot be decoded") from error
