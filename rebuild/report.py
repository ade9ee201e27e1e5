# SPDX-License-Identifier: Apache-2.0
"""The result of a restore: counts, names of what failed, and notes of the fix-ups."""

from __future__ import annotations

from dataclasses import dataclass, field

from backup.shared.text import missing_text, plural, printable, size_text
from rebuild.exit_codes import ExitCode

_RESULTS = {
    ExitCode.DONE: "complete",
    ExitCode.PARTIAL: "partial",
    ExitCode.NOT_STARTING: "restored",  # but it will not start
}
NAMES_SHOWN = 12  # as many as leave room for the rest of the report on one screen


@dataclass(slots=True)
class Failure:
    """One object that could not be restored whole, and why."""

    path: str  # volume and path, or what else identifies the object
    reason: str


@dataclass(slots=True)
class VolumeResult:
    """What became of one volume."""

    name: str
    object_count: int
    content_size: int  # bytes of content meant for it


@dataclass(slots=True)
class RestoreReport:
    """The result of applying a plan."""

    object_count: int = 0
    content_size: int = 0  # bytes of content written
    volumes: list[VolumeResult] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    elapsed_s: float = 0.0
    verified_count: int | None = None  # objects read back and compared; None when not asked for
    differences: list[str] = field(default_factory=list)  # what reading back found
    missing: int = 0  # objects of the machine that the data set does not hold
    losses: tuple[str, ...] = ()  # sentences that name them
    # Why it will not start: what follows on "It will not start ".
    obstacles: list[str] = field(default_factory=list)

    @property
    def is_restored(self) -> bool:
        """Whether every object of the data set was restored and, where read back, is there."""
        return not self.failures and not self.differences

    @property
    def is_complete(self) -> bool:
        """Whether, besides, the data set holds every object of the machine."""
        return self.is_restored and not self.missing

    @property
    def exit_code(self) -> ExitCode:
        """What the command or the shell ends with."""
        if not self.is_complete:
            return ExitCode.PARTIAL
        return ExitCode.NOT_STARTING if self.obstacles else ExitCode.DONE

    def lines(self, names_shown: int | None = NAMES_SHOWN) -> list[str]:
        """Return the report as text; `names_shown` None names everything that failed."""
        rate = round(self.content_size / max(self.elapsed_s, 1e-6))
        restored = self.object_count - len(self.failures)
        lines = [""]
        lines += [
            f"  {volume.name}: {plural(volume.object_count, 'object')}, "
            f"{size_text(volume.content_size)}"
            for volume in self.volumes
        ]
        lines.append(
            f"Restored: {restored:,} of {self.object_count:,} objects, "
            f"{size_text(self.content_size)} in {self.elapsed_s:.1f} s ({size_text(rate)}/s)"
        )
        if self.verified_count is not None:
            found = plural(len(self.differences), "difference") if self.differences else "all equal"
            if self.missing:
                found += f"; {missing_text(self.missing)} were not compared"
            lines.append(f"Verified by reading back: {self.verified_count:,} objects, {found}.")
        lines += self.notes
        lines += _named(
            [f"FAILED {item.path}: {item.reason}" for item in self.failures], names_shown
        )
        lines += _named([f"DIFFERS {text}" for text in self.differences], names_shown)
        lines += _named([f"NOT IN THE BACKUP {text}" for text in self.losses], names_shown)
        lines += [f"WILL NOT START {text}" for text in self.obstacles if len(self.obstacles) > 1]
        lines.append(f"Result: {self.result}.")
        return [printable(line) for line in lines]

    @property
    def result(self) -> str:
        """In a few words: complete, or partial with the number of objects; and if it starts."""
        if not self.obstacles:
            return self._result_of_objects("complete")
        others = len(self.obstacles) - 1
        more = f" (and {plural(others, 'more reason')}, named above)" if others else ""
        words = self._result_of_objects("restored")
        return f"{words}; will not start {self.obstacles[0]}{more}"

    def _result_of_objects(self, word: str) -> str:
        """Return what came of the objects; `word`, if all is well with them."""
        if self.is_complete:
            return word
        if self.is_restored:
            return f"{word} except for {missing_text(self.missing)}"
        words = []
        if self.failures:
            words.append(f"{plural(len(self.failures), 'object')} failed")
        if self.differences:
            words.append(f"{plural(len(self.differences), 'difference')} found")
        if self.missing:
            words.append(f"without {missing_text(self.missing)}")
        return "partial, " + ", ".join(words)

    def to_dict(self) -> dict[str, object]:
        """Return the report as plain data for JSON."""
        return {
            "result": _RESULTS[self.exit_code],
            "objects": self.object_count,
            "restored": self.object_count - len(self.failures),
            "missing": self.missing,
            "losses": list(self.losses),
            "obstacles": list(self.obstacles),
            "verified": self.verified_count,
            "content_size": self.content_size,
            "elapsed_s": round(self.elapsed_s, 3),
            "volumes": [
                {"name": item.name, "objects": item.object_count, "content_size": item.content_size}
                for item in self.volumes
            ],
            "failures": [{"path": item.path, "reason": item.reason} for item in self.failures],
            "differences": list(self.differences),
            "notes": list(self.notes),
        }


def _named(lines: list[str], shown: int | None) -> list[str]:
    """Return the first `shown` lines and how many more there are."""
    if shown is None or len(lines) <= shown:
        return lines
    return [*lines[:shown], f"... and {len(lines) - shown:,} more; the log names them all."]
