# SPDX-License-Identifier: Apache-2.0
"""MessagePack as the object formats use it: shortest forms, one encoding for each value.

Two additions: an integer of more than 64 bits is extension type 1, little-endian two's
complement; text may hold lone surrogates, as three bytes each.
Source: docs/formats.md "Encoding".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgpack

from backup.objects.errors import DamagedError, UnstorableError
from backup.objects.model import Plain

BIG_INTEGER: Final = 1  # MessagePack extension type

# What decoding raises on bytes that are not an encoding of ours.
DECODE_ERRORS: Final = (
    ValueError,
    TypeError,
    LookupError,
    OverflowError,
    RecursionError,
    msgpack.UnpackException,
)


def make_packer(*, autoreset: bool = True) -> Any:
    """Return a `msgpack.Packer`; not thread-safe.  With `autoreset` off it accumulates."""
    return msgpack.Packer(
        use_bin_type=True,
        unicode_errors="surrogatepass",
        default=_encode_other,
        autoreset=autoreset,
    )


def make_unpacker(size: int) -> Any:
    """Return a `msgpack.Unpacker` for up to `size` bytes of records; arrays become tuples."""
    return msgpack.Unpacker(
        use_list=False,
        unicode_errors="surrogatepass",
        ext_hook=_decode_other,
        strict_map_key=False,
        max_buffer_size=size,
    )


def pack_plain(value: Plain | Mapping[str, Plain]) -> bytes:
    """Encode plain data, maps in their own order.

    Raises:
        UnstorableError: something in it is not plain data.
    """
    try:
        packed: bytes = make_packer().pack(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise UnstorableError(f"plain data cannot be stored: {error}") from error
    return packed


def unpack_plain(data: bytes, what: str) -> dict[str, Plain]:
    """Decode a map that fills `data`; arrays become lists.

    Raises:
        DamagedError: `data` is not an encoded map; `what` names it.
    """
    try:
        value = msgpack.unpackb(
            data, unicode_errors="surrogatepass", ext_hook=_decode_other, strict_map_key=True
        )
    except DECODE_ERRORS as error:
        raise DamagedError(what, "cannot be decoded") from error
    if not isinstance(value, dict):
        raise DamagedError(what, "cannot be decoded")
    return value


def canonical(value: Plain) -> object:
    """Return plain data so that equal data encodes to equal bytes: maps as sorted pairs.

    A map becomes [1, [key, value], ...] and a list [0, value, ...], so the two stay apart.
    """
    if isinstance(value, dict):
        return (1, *((key, canonical(value[key])) for key in sorted(value)))
    if isinstance(value, list | tuple):
        return (0, *map(canonical, value))
    return value


def _encode_other(value: object) -> msgpack.ExtType:
    """Encode what MessagePack has no form for."""
    if isinstance(value, int):
        size = value.bit_length() // 8 + 1
        return msgpack.ExtType(BIG_INTEGER, value.to_bytes(size, "little", signed=True))
    raise UnstorableError(f"a {type(value).__name__} cannot be stored")


def _decode_other(code: int, data: bytes) -> int:
    """Decode an extension type."""
    if code != BIG_INTEGER:
        raise ValueError(f"unknown extension type {code}")
    return int.from_bytes(data, "little", signed=True)
