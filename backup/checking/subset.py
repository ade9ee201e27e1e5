# SPDX-License-Identifier: Apache-2.0
"""Which part of all packs a check reads: everything, the n-th of t parts, or some at random."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

_PART = re.compile(r"([0-9]{1,6})/([0-9]{1,6})")
_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,6})?)%")


@dataclass(frozen=True, slots=True)
class Subset:
    """A part of all packs.

    Parts are cut by the digests of packs: the n-th of t parts is the same whoever asks, and the t
    parts together are everything.
    """

    part: int = 1
    parts: int = 1
    percent: float = 100.0  # of those, drawn at random

    @property
    def is_everything(self) -> bool:
        """Whether nothing is left out."""
        return self.parts == 1 and self.percent == 100.0

    def choose(self, packs: Mapping[bytes, int], noise: random.Random) -> list[bytes]:
        """Return the packs of this part, in their order.

        Args:
            packs: sizes by digest.
            noise: for parts drawn at random.
        """
        chosen = [
            digest
            for digest in packs
            if int.from_bytes(digest[:8], "big") % self.parts == self.part - 1
        ]
        if self.percent < 100.0 and chosen:
            count = max(1, round(len(chosen) * self.percent / 100))
            kept = set(noise.sample(range(len(chosen)), count))
            chosen = [digest for place, digest in enumerate(chosen) if place in kept]
        return chosen


def parse_subset(text: str) -> Subset:
    """Return the part that "1/7" or "10%" names.

    Raises:
        ValueError: it names none.
    """
    if match := _PART.fullmatch(text):
        part, parts = int(match[1]), int(match[2])
        if 1 <= part <= parts:
            return Subset(part, parts)
        raise ValueError(
            f"there is no part {text!r}: of 7 parts, the first is 1/7 and the last 7/7"
        )
    if match := _PERCENT.fullmatch(text):
        if 0 < (percent := float(match[1])) <= 100:
            return Subset(percent=percent)
        raise ValueError(f"{text!r} must be more than 0% and at most 100%")
    raise ValueError(f"{text!r} is not a part: write 1/7 or 10%")
