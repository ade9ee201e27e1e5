# SPDX-License-Identifier: Apache-2.0
"""What a comparison needs to know, and its result as text and as data."""

from __future__ import annotations

from dataclasses import dataclass, field

from backup.objects.content import content_id
from backup.objects.data_keys import DataKey
from backup.objects.model import Piece
from backup.shared.text import missing_text, size_text
from rebuild.fixups.protocol import Changes
from rebuild.machine import Machine
from rebuild.progress import Progress

DIFFERENCES_SHOWN = 40


@dataclass(slots=True)
class Comparison:
    """What the comparison found."""

    object_count: int = 0  # objects compared
    content_size: int = 0  # bytes of content compared
    differences: list[str] = field(default_factory=list)
    missing: int = 0  # objects of the machine that the data set does not hold

    @property
    def is_equal(self) -> bool:
        """Whether every object that the data set holds is as recorded."""
        return not self.differences

    def lines(self) -> list[str]:
        """Return the result as text."""
        lines = [
            f"Compared: {self.object_count:,} objects, {size_text(self.content_size)} of content."
        ]
        lines += [f"DIFFERS {text}" for text in self.differences[:DIFFERENCES_SHOWN]]
        if len(self.differences) > DIFFERENCES_SHOWN:
            lines.append(f"... and {len(self.differences) - DIFFERENCES_SHOWN:,} more.")
        result = "equal" if self.is_equal else "different"
        if self.missing:
            result += f", and not compared: {missing_text(self.missing)}"
        lines.append(f"Result: {result}.")
        return lines

    def to_dict(self) -> dict[str, object]:
        """Return the result as plain data for JSON."""
        return {
            "result": "equal" if self.is_equal else "different",
            "objects": self.object_count,
            "missing": self.missing,
            "content_size": self.content_size,
            "differences": list(self.differences),
        }


@dataclass(frozen=True, slots=True)
class Case:
    """What every part of a comparison needs; it changes nothing but the result."""

    machine: Machine  # as it was recorded
    master: DataKey
    changes: Changes  # what fix-ups changed, which is expected
    shown: Progress
    result: Comparison

    def differs(self, text: str) -> None:
        """Note a difference."""
        self.result.differences.append(text)

    def is_content(self, piece: Piece, data: bytes) -> bool:
        """Tell whether `data` is the content of a piece."""
        self.result.content_size += len(data)
        return content_id(self.master, data) == piece.content_id
