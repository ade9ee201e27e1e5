# SPDX-License-Identifier: Apache-2.0
"""Which discs were built on this computer: a line of JSON for each, beside `remembered`'s file.

It is for a hint that a disc is out of date; nothing depends on it, so what cannot be written or
read is left out.
"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from backup.client.remembered import key_of, state_directory

FILE = "discs.jsonl"


@dataclass(frozen=True, slots=True)
class KnownDisc:
    """A disc that was built here."""

    path: str  # of the image, when it was built
    data_set: str
    generation: int
    built_s: int  # since 1970


def remember_disc(
    place: str, user: str, machine: str, path: Path, data_set: str, generation: int
) -> None:
    """Remember a disc; `place` and `user` as for `remembered.check_and_remember`."""
    disc = KnownDisc(str(path), data_set, generation, int(time.time()))
    line = json.dumps({"key": key_of(place, user, machine), **asdict(disc)})
    with contextlib.suppress(OSError):
        directory = state_directory()
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / FILE).open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")


def known_discs(place: str, user: str, machine: str) -> list[KnownDisc]:
    """Return the discs of a machine that were built here, the newest last."""
    key = key_of(place, user, machine)
    found = []
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in (state_directory() / FILE).read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError, TypeError):
                values = json.loads(line)
                if values.pop("key") == key:
                    found.append(KnownDisc(**values))
    return found
