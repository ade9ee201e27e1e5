# SPDX-License-Identifier: Apache-2.0
"""Packs: many sealed pieces in one file, each opened on its own.

    preamble (8) | salt (32) | sealed piece | sealed piece | ... | sealed index | u32 index length

Every pack has a key of its own, derived from the master key and the pack's random salt.  A
piece is sealed with AES-256-GCM; the nonce is its byte position in the pack, the content id is
the associated data.  A piece whose sealed form is exactly 16 bytes (the tag) longer than its
plain form was stored as it is; every other one is a zstd frame.

The object table knows salt, position and length of every piece, so a restore needs neither
preamble nor index: damage to a byte costs the one piece that holds it.

Source: docs/formats.md "Packs".  No I/O.
"""

from __future__ import annotations

import hashlib
import os
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, NoReturn

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from backup.objects.content import CONTENT_ID_SIZE, PIECE_SIZE
from backup.objects.data_keys import DataKey
from backup.objects.errors import DamagedError
from backup.objects.model import Piece
from backup.objects.preamble import PREAMBLE_SIZE, Buffer, check_preamble, make_preamble

PACK_MAGIC: Final = b"RKPACK"
SALT_SIZE: Final = 32
HEADER_SIZE: Final = PREAMBLE_SIZE + SALT_SIZE
TAG_SIZE: Final = 16
TARGET_SIZE: Final = 8 << 20  # a writer is full once it holds this much
MAX_PACK_SIZE: Final = 64 << 20
DEFAULT_LEVEL: Final = 3

_NONCE_SIZE = 12
_INDEX_AAD = b"index"
_INDEX_ENTRY = struct.Struct(f"<{CONTENT_ID_SIZE}sII")  # content id, sealed length, plain length
_INDEX_LENGTH = struct.Struct("<I")  # of the sealed index
_PACK = "the pack"


class PackInfo(NamedTuple):
    """A pack as the object table lists it."""

    digest: bytes  # SHA-256 of the whole file, 32 bytes; also the pack's name
    size: int
    salt: bytes  # 32 bytes


class IndexEntry(NamedTuple):
    """A piece as the pack's own index lists it."""

    content_id: bytes
    pack_offset: int
    sealed_length: int
    length: int


@dataclass(frozen=True, slots=True)
class SealedPack:
    """A finished pack.  `data` is a view of the writer's buffer."""

    data: memoryview
    info: PackInfo
    pieces: tuple[IndexEntry, ...]


class _Contexts(threading.local):
    """zstd contexts of one thread: making one for each call costs 30 us."""

    def __init__(self) -> None:
        self.compressors: dict[int, zstandard.ZstdCompressor] = {}
        self.decompressor = zstandard.ZstdDecompressor()


_contexts = _Contexts()


def compress(plain: Buffer, level: int = DEFAULT_LEVEL) -> Buffer:
    """Return the zstd frame of `plain`, or `plain` itself where that is not shorter."""
    compressors = _contexts.compressors
    compressor = compressors.get(level)
    if compressor is None:
        compressor = zstandard.ZstdCompressor(level=level, write_checksum=False)
        compressors[level] = compressor
    packed = compressor.compress(plain)
    return packed if len(packed) < len(plain) else plain


class PackWriter:
    """Builds one pack in memory.

    `add` may be called from several threads; compression runs in parallel, sealing in turn.
    A writer works only in the process that made it: after a fork both sides would seal
    different bytes under the same key and nonce.

    Args:
        master: the master key, or a machine's.
        level: zstd level; 0 stores everything as it is.
        buffer: memory to build the pack in, taken over until the finished pack is done with;
            grows when too small.
    """

    def __init__(
        self, master: DataKey, level: int = DEFAULT_LEVEL, buffer: bytearray | None = None
    ) -> None:
        self._level = level
        if buffer is None or len(buffer) < HEADER_SIZE:
            buffer = bytearray(TARGET_SIZE + PIECE_SIZE + TARGET_SIZE // 16)
        self._buffer = buffer
        self._view = memoryview(buffer)
        self._salt = os.urandom(SALT_SIZE)
        preamble = make_preamble(PACK_MAGIC)
        self._view[:HEADER_SIZE] = preamble + self._salt
        self._end = HEADER_SIZE
        self._seal = AESGCM(master.pack_key(self._salt)).encrypt_into
        self._pieces: list[IndexEntry] = []
        self._process = os.getpid()
        self._is_finished = False
        self._lock = threading.Lock()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a PackWriter cannot be copied: two would use the same nonces")

    @property
    def size(self) -> int:
        """Bytes that the pack would have if it were finished now."""
        index = len(self._pieces) * _INDEX_ENTRY.size + TAG_SIZE + _INDEX_LENGTH.size
        return self._end + index

    @property
    def is_full(self) -> bool:
        """Whether the pack has reached its target size and should be finished."""
        return self.size >= TARGET_SIZE

    def add(self, plain: Buffer, content_id: bytes) -> tuple[int, int]:
        """Compress and seal a piece; return (pack offset, sealed length).

        `plain`: 1 byte to 1 MiB.  `content_id`: its content id, 32 bytes.
        """
        packed = compress(plain, self._level) if self._level else plain
        return self.add_compressed(packed, len(plain), content_id)

    def add_compressed(self, packed: Buffer, length: int, content_id: bytes) -> tuple[int, int]:
        """Seal what `compress` gave for a piece of `length` bytes; return as `add`."""
        size = len(packed)
        sealed_length = size + TAG_SIZE
        if not 0 < size <= length <= PIECE_SIZE or len(content_id) != CONTENT_ID_SIZE:
            raise ValueError(f"not a piece: {length} bytes, {size} compressed")
        with self._lock:
            offset = self._claim(sealed_length)
            end = offset + sealed_length
            self._seal(
                offset.to_bytes(_NONCE_SIZE, "little"), packed, content_id, self._view[offset:end]
            )
            self._pieces.append(IndexEntry(content_id, offset, sealed_length, length))
        return offset, sealed_length

    def finish(self) -> SealedPack:
        """Seal the index and return the pack.  The writer is used up."""
        index = b"".join(
            [
                _INDEX_ENTRY.pack(content_id, sealed, length)
                for content_id, _, sealed, length in self._pieces
            ]
        )
        sealed_length = len(index) + TAG_SIZE
        with self._lock:
            offset = self._claim(sealed_length + _INDEX_LENGTH.size)
            self._is_finished = True
            end = offset + sealed_length
            nonce = offset.to_bytes(_NONCE_SIZE, "little")
            aad = _INDEX_AAD + bytes(self._view[:PREAMBLE_SIZE])
            self._seal(nonce, index, aad, self._view[offset:end])
            _INDEX_LENGTH.pack_into(self._view, end, sealed_length)
        data = self._view[: self._end]
        info = PackInfo(hashlib.sha256(data).digest(), len(data), self._salt)
        return SealedPack(data, info, tuple(self._pieces))

    def _claim(self, length: int) -> int:
        """Take the next `length` bytes of the pack; return their position, given out once only."""
        if self._is_finished:
            raise ValueError("the pack is finished")
        if self._process != os.getpid():
            raise ValueError("a PackWriter does not survive a fork")
        offset = self._end
        end = offset + length
        if end > MAX_PACK_SIZE:
            raise ValueError("the pack is too large: finish it when is_full says so")
        if end > len(self._view):
            grown = bytearray(max(end, len(self._view) * 3 // 2))
            grown[:offset] = self._view[:offset]
            self._buffer, self._view = grown, memoryview(grown)
        self._end = end
        return offset


class PackReader:
    """Opens the pieces of one pack.  Thread-safe; holds no data.

    Args:
        master: the master key, or a machine's.
        salt: the pack's salt, as the table lists it.
        preamble: the pack's first bytes, which its index is bound to.
    """

    __slots__ = ("_index_aad", "_open")

    def __init__(
        self, master: DataKey, salt: bytes, preamble: bytes = make_preamble(PACK_MAGIC)
    ) -> None:
        if len(salt) != SALT_SIZE:
            raise ValueError(f"a pack salt has {SALT_SIZE} bytes, not {len(salt)}")
        self._index_aad = _INDEX_AAD + preamble
        self._open = AESGCM(master.pack_key(salt)).decrypt

    @classmethod
    def from_header(cls, master: DataKey, header: Buffer) -> PackReader:
        """Make a reader from the first `HEADER_SIZE` bytes of a pack.

        Raises:
            UnknownVersionError, DamagedError: it is not a pack, or not one of this format.
        """
        preamble = check_preamble(header, PACK_MAGIC, _PACK)
        if len(header) < HEADER_SIZE:
            raise DamagedError(_PACK, "is cut short")
        return cls(master, bytes(header[PREAMBLE_SIZE:HEADER_SIZE]), preamble)

    def open(self, piece: Piece | IndexEntry, sealed: Buffer) -> bytes:
        """Return the plain bytes of `piece`; `sealed`: its `sealed_length` bytes of the pack.

        Raises:
            DamagedError: the bytes are not those that were sealed there.
        """
        offset = piece.pack_offset
        try:
            packed = self._open(offset.to_bytes(_NONCE_SIZE, "little"), sealed, piece.content_id)
        except InvalidTag as error:
            raise _damaged(offset) from error
        length = piece.length
        if len(packed) == length:
            return packed
        try:
            plain = _contexts.decompressor.decompress(packed, max_output_size=length)
        except zstandard.ZstdError as error:
            raise _damaged(offset) from error
        if len(plain) != length:
            raise _damaged(offset)
        return plain

    def open_index(self, sealed: Buffer, offset: int) -> list[IndexEntry]:
        """Return the pieces, in order, that a sealed index found at `offset` lists.

        Raises:
            DamagedError: the index is not the one sealed there.
        """
        nonce = offset.to_bytes(_NONCE_SIZE, "little")
        try:
            index = self._open(nonce, sealed, self._index_aad)
        except InvalidTag as error:
            raise DamagedError(_PACK, "has a damaged index", offset) from error
        entries = list(_iter_index(index))
        end = entries[-1].pack_offset + entries[-1].sealed_length if entries else HEADER_SIZE
        if end != offset:
            raise DamagedError(_PACK, "has a damaged index", offset)
        return entries


def index_offset(tail: Buffer, size: int) -> int:
    """Return where the sealed index starts, which runs to the last four bytes.

    `tail`: the last four bytes of the pack; `size`: bytes of the whole pack.

    Raises:
        DamagedError: no index can be there.
    """
    if size < HEADER_SIZE + TAG_SIZE + _INDEX_LENGTH.size:
        raise DamagedError(_PACK, "is cut short")
    (length,) = _INDEX_LENGTH.unpack(tail)
    offset: int = size - _INDEX_LENGTH.size - length
    if offset < HEADER_SIZE or (length - TAG_SIZE) % _INDEX_ENTRY.size:
        raise DamagedError(_PACK, "has a damaged index", size - _INDEX_LENGTH.size)
    return offset


def _iter_index(index: bytes) -> Iterator[IndexEntry]:
    """Yield the entries of an opened index; pieces lie back to back."""
    offset = HEADER_SIZE
    for content_id, sealed_length, length in _INDEX_ENTRY.iter_unpack(index):
        yield IndexEntry(content_id, offset, sealed_length, length)
        offset += sealed_length


def _damaged(offset: int) -> DamagedError:
    """Return the error for the piece at `offset`."""
    return DamagedError("the piece", position=offset)
