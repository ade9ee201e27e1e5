# SPDX-License-Identifier: Apache-2.0
"""What a restore came to: counts, names of what failed, and notes of the fix-ups."""

from __future__ import annotations

from dataclasses import dataclass, field

from rebuild.screen import printable

NAMES_SHOWN = 50


@dataclass(slots=True)
class Failure:
    """One object that could not be restored whole, and why."""

    path: str  # printable; volume and path, or what else identifies the object
    reason: str


@dataclass(slots=True)
class RestoreReport:
    """The result of applying a plan."""

    object_count: int = 0
    content_size: int = 0  # bytes of content written
    failures: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    elapsed_s: float = 0.0
    verified_count: int | None = None  # objects read back and compared; None when not asked for

    @property
    def is_complete(self) -> bool:
        """Whether every object was restored."""
        return not self.failures

    def lines(self) -> list[str]:
        """Return the report as text, no line wider than 79 characters."""
        rate = self.content_size / (1 << 20) / max(self.elapsed_s, 1e-6)
        restored = self.object_count - len(self.failures)
        lines = [
            "",
            f"Restored: {restored:,} of {self.object_count:,} objects, "
            f"{self.content_size / (1 << 20):,.1f} MiB in {self.elapsed_s:.1f} s "
            f"({rate:.1f} MiB/s)",
        ]
        if self.verified_count is not None:
            lines.append(f"Verified by reading back: {self.verified_count:,} objects.")
        lines += [note[:79] for note in self.notes]
        for failure in self.failures[:NAMES_SHOWN]:
            lines.append(f"FAILED {printable(failure.path)}: {failure.reason}"[:79])
        if len(self.failures) > NAMES_SHOWN:
            lines.append(f"... and {len(self.failures) - NAMES_SHOWN:,} more.")
        lines.append(
            "Result: complete."
            if self.is_complete
            else f"Result: partial, {len(self.failures):,} objects failed."
        )
        return lines

    def to_dict(self) -> dict[str, object]:
        """Return the report as plain data for JSON."""
        return {
            "result": "complete" if self.is_complete else "partial",
            "objects": self.object_count,
            "restored": self.object_count - len(self.failures),
            "verified": self.verified_count,
            "content_size": self.content_size,
            "elapsed_s": round(self.elapsed_s, 3),
            "failures": [{"path": item.path, "reason": item.reason} for item in self.failures],
            "notes": list(self.notes),
        }
