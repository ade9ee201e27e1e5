# SPDX-License-Identifier: Apache-2.0
"""Hashes of many directory names at once.

`htree.name_hash` costs about 30 us a name in pure Python.  Here one Python integer holds a
32-bit word of every name, each in a lane of 64 bits, so each step of half-MD4 is a handful of
long-integer operations for all names together.  Measured: 1 us a name.

How a lane stays apart from its neighbours: values are below 2**32 between steps; a sum of four
of them stays below 2**34; a rotation spills only into bits 32 to 63, of the same lane (left
shift) or of the lane below (right shift), and `ones` masks those away.

Source: as `htree`.  Other hashes than half-MD4, and few names, go through `htree.name_hash`.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence

from fsdrivers.ext.format.flags import HashVersion
from fsdrivers.ext.htree import DEFAULT_SEED, EOF_HASH, Words4, name_hash

CHUNK = 32  # bytes of a name that one transform takes
WORDS = CHUNK // 4
MIN_LANES = 24  # below this the scalar code is as fast
MAX_LANES = 1024  # above this the integers leave the processor's first cache
_K2, _K3 = 0x5A827999, 0x6ED9EBA1
# One step: (variable to change, index of its word); the other three follow in rotation.
_ROUND_1 = ((3, 7, 11, 19), (0, 1, 2, 3, 4, 5, 6, 7))  # shifts, words
_ROUND_2 = ((3, 5, 9, 13), (1, 3, 5, 7, 0, 2, 4, 6))
_ROUND_3 = ((3, 9, 11, 15), (3, 7, 2, 6, 1, 5, 0, 4))
_SIGN_BITS = bytes(byte >> 7 for byte in range(256))


def name_hashes(names: Sequence[bytes], version: HashVersion, seed: Words4) -> list[int]:
    """Return the hash of each name (1 to 255 bytes), in their order; bit 0 is always clear."""
    if version not in (HashVersion.HALF_MD4, HashVersion.HALF_MD4_UNSIGNED):
        return [name_hash(name, version, seed)[0] for name in names]
    by_chunks: dict[int, list[int]] = {}
    for index, name in enumerate(names):
        by_chunks.setdefault(-(-len(name) // CHUNK), []).append(index)
    hashes = [0] * len(names)
    for chunks, indexes in by_chunks.items():
        for at in range(0, len(indexes), MAX_LANES):
            batch = indexes[at : at + MAX_LANES]
            group = [names[index] for index in batch]
            if len(group) < MIN_LANES:
                found = [name_hash(name, version, seed)[0] for name in group]
            else:
                is_signed = version == HashVersion.HALF_MD4
                found = _half_md4_lanes(group, chunks, seed, is_signed=is_signed)
            for index, value in zip(batch, found, strict=True):
                hashes[index] = value
    return hashes


def _half_md4_lanes(names: list[bytes], chunks: int, seed: Words4, *, is_signed: bool) -> list[int]:
    """Return the hashes of names that all take the same number of chunks."""
    lanes = len(names)
    unit = int.from_bytes((1).to_bytes(8, "little") * lanes, "little")  # 1 in every lane
    state = [unit * word for word in (seed if any(seed) else DEFAULT_SEED)]
    for chunk in range(chunks):
        words = _word_lanes(names, chunk, unit, is_signed=is_signed)
        _transform(state, words, unit)
    values = array("Q", state[1].to_bytes(lanes * 8, "little"))
    if sys.byteorder == "big":
        values.byteswap()
    last = EOF_HASH - 2
    return [min(value & ~1, last) for value in values]


def _word_lanes(names: list[bytes], chunk: int, unit: int, *, is_signed: bool) -> list[int]:
    """Return the eight words of one chunk of every name, a long integer each.

    A word is four bytes, first byte on top.  What the name leaves over counts as bytes of the
    remaining length, but in a cut word they stand before the name's bytes.  Signed bytes above
    127 count less 256: that takes one from the byte above, as the second pass of words does.
    """
    at = chunk * CHUNK
    laid_out, signs = [], []
    has_signs = False
    for name in names:
        part = name[at : at + CHUNK]
        cut = len(part) & 3
        whole = len(part) - cut
        pad = bytes((len(name) - at,))
        laid_out.append((part[:whole] + pad * (-cut & 3) + part[whole:]).ljust(CHUNK, pad))
        if is_signed and not part.isascii():
            has_signs = True
    words = _spread(b"".join(laid_out), len(names))
    if not has_signs:
        return words
    for name in names:
        part = name[at : at + CHUNK].translate(_SIGN_BITS)
        cut = len(part) & 3
        whole = len(part) - cut
        signs.append((part[:whole] + bytes(-cut & 3) + part[whole:]).ljust(CHUNK, b"\0"))
    ones = unit * 0xFFFFFFFF
    carried = unit << 32
    return [
        (word + carried - (sign << 8 & ones)) & ones
        for word, sign in zip(words, _spread(b"".join(signs), len(names)), strict=True)
    ]


def _spread(data: bytes, lanes: int) -> list[int]:
    """Return, for each of the eight big-endian words of a chunk, all names' words in lanes."""
    values = array("I", data)
    if sys.byteorder == "little":
        values.byteswap()
    spread = []
    for index in range(WORDS):
        buffer = array("I", bytes(lanes * 8))
        buffer[0::2] = values[index::WORDS]
        if sys.byteorder == "big":  # pragma: no cover - no such machine at hand
            buffer.byteswap()
        spread.append(int.from_bytes(buffer.tobytes(), "little"))
    return spread


def _transform(state: list[int], words: list[int], unit: int) -> None:
    """Mix eight words of every lane into the four state words."""
    ones = unit * 0xFFFFFFFF
    a, b, c, d = state
    shifts, order = _ROUND_1
    for step, index in enumerate(order):
        total = (a + (d ^ b & (c ^ d)) + words[index]) & ones
        shift = shifts[step & 3]
        a, b, c, d = d, (total << shift | total >> 32 - shift) & ones, b, c
    shifts, order = _ROUND_2
    constant = unit * _K2
    for step, index in enumerate(order):
        total = (a + (b & c | (b ^ c) & d) + words[index] + constant) & ones
        shift = shifts[step & 3]
        a, b, c, d = d, (total << shift | total >> 32 - shift) & ones, b, c
    shifts, order = _ROUND_3
    constant = unit * _K3
    for step, index in enumerate(order):
        total = (a + (b ^ c ^ d) + words[index] + constant) & ones
        shift = shifts[step & 3]
        a, b, c, d = d, (total << shift | total >> 32 - shift) & ones, b, c
    for index, mixed in enumerate((a, b, c, d)):
        state[index] = (state[index] + mixed) & ones
