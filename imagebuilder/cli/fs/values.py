# SPDX-License-Identifier: Apache-2.0
"""Values on the command line of `rebuildkit fs`: modes, owners, times, numbers, attributes.

Each function serves argparse: any other value raises ArgumentTypeError, which says what is
expected and ends the command as a usage error.
"""

from __future__ import annotations

import argparse
import os
import re
from datetime import UTC, datetime
from typing import Final

_SECOND: Final = 1_000_000_000
_LAST_ID: Final = 0xFFFF_FFFF


def octal_of_text(text: str) -> int:
    """Return permissions."""
    if not re.fullmatch("[0-7]{1,4}", text):
        raise argparse.ArgumentTypeError(f"mode must be octal, for example 0644, not {text!r}")
    return int(text, 8)


def owner_of_text(text: str) -> tuple[int | None, int | None]:
    """Return owner and group, None for what is to stay."""
    match = re.fullmatch(r"(\d*)(?::(\d*))?", text)
    numbers = [int(part) if part else None for part in match.groups()] if match else []
    if numbers in ([], [None, None]) or any(n is not None and n > _LAST_ID for n in numbers):
        raise argparse.ArgumentTypeError(f"owner must be 1000, 1000:100 or :100, not {text!r}")
    return numbers[0], numbers[1]


def time_of_text(text: str) -> int:
    """Return nanoseconds since 1970."""
    match = re.fullmatch(r"@(-?\d+)(?:\.(\d{1,9}))?", text)
    if match is not None:
        fraction = int((match[2] or "").ljust(9, "0"))
        return int(match[1]) * _SECOND + (-fraction if text[1] == "-" else fraction)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        words = f"time must be 2024-12-31T23:59:58 or @1735689598.5, not {text!r}"
        raise argparse.ArgumentTypeError(words) from error
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86400 + since.seconds) * _SECOND + since.microseconds * 1000


def number_of_text(text: str) -> int:
    """Return a number of any base."""
    try:
        number = int(text, 0)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"expected a number, for example 64 or 0x40, not {text!r}"
        ) from error
    if not 0 <= number <= _LAST_ID:
        raise argparse.ArgumentTypeError(f"the number must fit in 32 bits: {text}")
    return number


def pair_of_text(text: str) -> tuple[bytes, bytes]:
    """Return name and value of an attribute."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, not {text!r}")
    return os.fsencode(name), os.fsencode(value)


def hex_pair_of_text(text: str) -> tuple[bytes, bytes]:
    """Return name and value of an attribute."""
    name, value = pair_of_text(text)
    try:
        return name, bytes.fromhex(os.fsdecode(value))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected NAME=HEX, not {text!r}") from error
