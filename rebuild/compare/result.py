# SPDX-License-Identifier: Apache-2.0
"""What a comparison found, as text and as data."""

from __future__ import annotations

from dataclasses import dataclass, field

DIFFERENCES_SHOWN = 40


@dataclass(slots=True)
class Comparison:
    """What the comparison found."""

    object_count: int = 0  # objects compared
    content_size: int = 0  # bytes of content compared
    differences: list[str] = field(default_factory=list)

    @property
    def is_equal(self) -> bool:
        """Whether every object is as recorded."""
        return not self.differences

    def lines(self) -> list[str]:
        """Return the result as text."""
        lines = [
            f"Compared: {self.object_count:,} objects, "
            f"{self.content_size / (1 << 20):,.1f} MiB of content."
        ]
        lines += [f"DIFFERS {text}" for text in self.differences[:DIFFERENCES_SHOWN]]
        if len(self.differences) > DIFFERENCES_SHOWN:
            lines.append(f"... and {len(self.differences) - DIFFERENCES_SHOWN:,} more.")
        lines.append("Result: equal." if self.is_equal else "Result: different.")
        return lines

    def to_dict(self) -> dict[str, object]:
        """Return the result as plain data for JSON."""
        return {
            "result": "equal" if self.is_equal else "different",
            "objects": self.object_count,
            "content_size": self.content_size,
            "differences": list(self.differences),
        }
