# SPDX-License-Identifier: Apache-2.0
"""What a checker finds, as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One broken rule.

    Attributes:
        rule: short stable name, for programs.
        what: one sentence, for people.
        position: bytes from the start of the volume, where there is one place.
    """

    rule: str
    what: str
    position: int | None = None
