# SPDX-License-Identifier: Apache-2.0
"""Hashes of names in indexed directories.

Source: [kernel-ext4] "Directory Hash Tree"; [RFC 1320] for MD4's rounds, of which ext4 uses
three of eight steps each ("half MD4").  SipHash (casefold with encryption) is not implemented.
"""

from __future__ import annotations

from fsdrivers.errors import UnsupportedError
from fsdrivers.ext.format.flags import HashVersion
from fsdrivers.record import words_codec

Words4 = tuple[int, int, int, int]

DEFAULT_SEED: Words4 = (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476)
EOF_HASH = 0xFFFFFFFE  # HTREE_EOF: no name may have it
_MASK = 0xFFFFFFFF
_TEA_DELTA = 0x9E3779B9
_UNSIGNED_OF = 3  # distance from a hash version to its unsigned sister
_K2, _K3 = 0x5A827999, 0x6ED9EBA1
# Which words a round takes, and how far each step rotates.
_ROUND_2_WORDS = (1, 3, 5, 7, 0, 2, 4, 6)
_ROUND_3_WORDS = (3, 7, 2, 6, 1, 5, 0, 4)


def unpack_seed(hash_seed: bytes) -> Words4:
    """Return the four words of the superblock's `hash_seed` (16 bytes)."""
    a, b, c, d = words_codec(4).unpack(hash_seed)
    return a, b, c, d


def effective_version(version: int, *, is_unsigned: bool) -> HashVersion:
    """Return the hash that a directory of `version` uses on a volume of signed or unsigned char."""
    if version <= HashVersion.TEA and is_unsigned:
        version += _UNSIGNED_OF
    try:
        return HashVersion(version)
    except ValueError as error:
        raise UnsupportedError(f"directory hash version {version}") from error


def name_hash(name: bytes, version: int, seed: Words4) -> tuple[int, int]:
    """Return (hash, minor hash) of a name; bit 0 of the hash is always clear.

    Args:
        name: 1 to 255 bytes.
        version: an effective HashVersion.
        seed: of the superblock; all zeros mean the default.
    """
    signed = version <= HashVersion.TEA
    kind = version if signed else version - _UNSIGNED_OF
    if kind == HashVersion.HALF_MD4:
        high, minor = _half_md4(name, signed, seed if any(seed) else DEFAULT_SEED)
    elif kind == HashVersion.TEA:
        high, minor = _tea(name, signed, seed if any(seed) else DEFAULT_SEED)
    elif kind == HashVersion.LEGACY:
        high, minor = _legacy(name, signed), 0
    else:
        raise UnsupportedError(f"directory hash version {version}")
    high &= ~1
    return (EOF_HASH - 2 if high == EOF_HASH else high), minor


def _legacy(name: bytes, signed: bool) -> int:
    """Return the hash of the first indexed directories."""
    hash_0, hash_1 = 0x12A3FE2D, 0x37ABE8F9
    for value in name:
        if signed and value > 127:
            value -= 256
        mixed = (hash_1 + (hash_0 ^ (value * 7152373 & _MASK))) & _MASK
        if mixed & 0x80000000:
            mixed = (mixed - 0x7FFFFFFF) & _MASK
        hash_1, hash_0 = hash_0, mixed
    return hash_0 << 1 & _MASK


def _words(chunk: bytes, remaining: int, count: int, signed: bool) -> list[int]:
    """Return `count` words of a chunk of a name of which `remaining` bytes are left.

    Bytes fill words from the top; a word starts from the length repeated four times, and signed
    bytes carry their sign into the bytes above.
    """
    pad = remaining * 0x01010101 & _MASK
    if len(chunk) == count * 4 and (not signed or chunk.isascii()):
        return list(words_codec(count, ">").unpack(chunk))
    words = []
    for at in range(0, len(chunk), 4):
        value = pad
        for byte in chunk[at : at + 4]:
            if signed and byte > 127:
                byte -= 256
            value = (byte + (value << 8)) & _MASK
        words.append(value)
    words.extend([pad] * (count - len(words)))
    return words


def _half_md4(name: bytes, signed: bool, seed: Words4) -> tuple[int, int]:
    state = seed
    remaining = len(name)
    for at in range(0, len(name), 32):
        state = _half_md4_transform(state, _words(name[at : at + 32], remaining, 8, signed))
        remaining -= 32
    return state[1], state[2]


def _half_md4_transform(state: Words4, words: list[int]) -> Words4:
    """Return the state after three rounds of eight steps over eight words."""
    a, b, c, d = state
    for at in (0, 4):
        w, x, y, z = words[at : at + 4]
        a = (a + (d ^ b & (c ^ d)) + w) & _MASK
        a = (a << 3 | a >> 29) & _MASK
        d = (d + (c ^ a & (b ^ c)) + x) & _MASK
        d = (d << 7 | d >> 25) & _MASK
        c = (c + (b ^ d & (a ^ b)) + y) & _MASK
        c = (c << 11 | c >> 21) & _MASK
        b = (b + (a ^ c & (d ^ a)) + z) & _MASK
        b = (b << 19 | b >> 13) & _MASK
    for at in (0, 4):
        w, x, y, z = (words[index] for index in _ROUND_2_WORDS[at : at + 4])
        a = (a + (b & c) + ((b ^ c) & d) + w + _K2) & _MASK
        a = (a << 3 | a >> 29) & _MASK
        d = (d + (a & b) + ((a ^ b) & c) + x + _K2) & _MASK
        d = (d << 5 | d >> 27) & _MASK
        c = (c + (d & a) + ((d ^ a) & b) + y + _K2) & _MASK
        c = (c << 9 | c >> 23) & _MASK
        b = (b + (c & d) + ((c ^ d) & a) + z + _K2) & _MASK
        b = (b << 13 | b >> 19) & _MASK
    for at in (0, 4):
        w, x, y, z = (words[index] for index in _ROUND_3_WORDS[at : at + 4])
        a = (a + (b ^ c ^ d) + w + _K3) & _MASK
        a = (a << 3 | a >> 29) & _MASK
        d = (d + (a ^ b ^ c) + x + _K3) & _MASK
        d = (d << 9 | d >> 23) & _MASK
        c = (c + (d ^ a ^ b) + y + _K3) & _MASK
        c = (c << 11 | c >> 21) & _MASK
        b = (b + (c ^ d ^ a) + z + _K3) & _MASK
        b = (b << 15 | b >> 17) & _MASK
    return (
        (state[0] + a) & _MASK,
        (state[1] + b) & _MASK,
        (state[2] + c) & _MASK,
        (state[3] + d) & _MASK,
    )


def _tea(name: bytes, signed: bool, seed: Words4) -> tuple[int, int]:
    low, high = seed[0], seed[1]
    remaining = len(name)
    for at in range(0, len(name), 16):
        low, high = _tea_transform(low, high, _words(name[at : at + 16], remaining, 4, signed))
        remaining -= 16
    return low, high


def _tea_transform(low: int, high: int, words: list[int]) -> tuple[int, int]:
    """Return both halves after sixteen rounds keyed by four words."""
    a, b, c, d = words
    x, y, total = low, high, 0
    for _ in range(16):
        total = (total + _TEA_DELTA) & _MASK
        x = (x + (((y << 4) + a) ^ (y + total) ^ ((y >> 5) + b))) & _MASK
        y = (y + (((x << 4) + c) ^ (x + total) ^ ((x >> 5) + d))) & _MASK
    return (low + x) & _MASK, (high + y) & _MASK
