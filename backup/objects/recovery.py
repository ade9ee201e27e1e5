# SPDX-License-Identifier: Apache-2.0
"""The recovery key as people print, read and type it.

160 random bits in eight groups of five characters, for example `7QX4P-0B2MD-...`: four
characters carry 20 bits, the fifth checks the group and its place, so that a typing error is
found, and named, before anything is derived.  The alphabet is Crockford's base 32: no I, L, O
or U; lower case is accepted, O reads as 0, I and L as 1; dashes and white space are ignored.

The check character is a polynomial over GF(32): it finds every single wrong character, every
two exchanged characters of a group, and every two exchanged groups.
Source: docs/formats.md "Recovery key".
"""

from __future__ import annotations

from backup.objects.errors import InvalidRecoveryKeyError

SECRET_SIZE = 20  # bytes
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_GROUPS = 8
_DATA_CHARACTERS = 4  # of a group; one check character follows
_GROUP_LENGTH = _DATA_CHARACTERS + 1
_VALUES = {character: value for value, character in enumerate(_ALPHABET)}
_VALUES |= {"O": 0, "I": 1, "L": 1}
_REDUCTION = 0b100101  # x^5 + x^2 + 1, irreducible over GF(2)


def recovery_text(secret: bytes) -> str:
    """Return the printable form of `secret` (20 bytes): eight groups joined by dashes."""
    if len(secret) != SECRET_SIZE:
        raise ValueError(f"a recovery key has {SECRET_SIZE} bytes, not {len(secret)}")
    number = int.from_bytes(secret, "big")
    groups = []
    for group in range(_GROUPS):
        shift = 5 * _DATA_CHARACTERS * (_GROUPS - 1 - group)
        values = [number >> shift + 5 * place & 31 for place in range(_DATA_CHARACTERS - 1, -1, -1)]
        values.append(_check_value(group, values))
        groups.append("".join(_ALPHABET[value] for value in values))
    return "-".join(groups)


def recovery_secret(text: str) -> bytes:
    """Return the 20 bytes that `text` stands for.

    Raises:
        InvalidRecoveryKeyError: a character no recovery key has, a wrong length, or a group
            whose check character does not fit; names the first such group.
    """
    values: list[int] = []
    for character in text.upper():
        if character.isspace() or character in "-‐‑‒–—_.":  # noqa: RUF001
            continue
        if character not in _VALUES:
            raise InvalidRecoveryKeyError(
                f"{character!r} is not a character of a recovery key",
                len(values) // _GROUP_LENGTH + 1,
            )
        values.append(_VALUES[character])
    if len(values) != _GROUPS * _GROUP_LENGTH:
        raise InvalidRecoveryKeyError(
            f"a recovery key has {_GROUPS * _GROUP_LENGTH} characters, this has {len(values)}"
        )
    number = 0
    for group in range(_GROUPS):
        *data, check = values[group * _GROUP_LENGTH : (group + 1) * _GROUP_LENGTH]
        if check != _check_value(group, data):
            raise InvalidRecoveryKeyError(
                f"group {group + 1} of the recovery key is mistyped", group + 1
            )
        for value in data:
            number = number << 5 | value
    return number.to_bytes(SECRET_SIZE, "big")


def is_recovery_key(text: str) -> bool:
    """Tell whether `text` is a recovery key without a typing error."""
    try:
        recovery_secret(text)
    except InvalidRecoveryKeyError:
        return False
    return True


def typing_error(text: str) -> str:
    """Return which group is mistyped in what has the length of a recovery key; "" elsewhere."""
    try:
        recovery_secret(text)
    except InvalidRecoveryKeyError as error:
        if error.group is not None and sum(map(str.isalnum, text)) == _GROUPS * _GROUP_LENGTH:
            return f"group {error.group} of the recovery key is mistyped"
    return ""


def resembles_recovery_key(text: str) -> bool:
    """Tell whether `text` may be a recovery key, mistyped or in part: then nothing shows it."""
    return sum(map(str.isalnum, text)) >= _GROUPS * _GROUP_LENGTH // 2


def _check_value(group: int, values: list[int]) -> int:
    """Return the check value of a group: its values as polynomial at x times x, plus its place."""
    result = 0
    for value in values:
        result = _times_x(result ^ value)
    return result ^ group


def _times_x(value: int) -> int:
    """Multiply by x in GF(32)."""
    value <<= 1
    return value ^ _REDUCTION if value & 32 else value
