# SPDX-License-Identifier: Apache-2.0
"""How the verbs of `rebuildkit fs` end: exit codes, one sentence for each failure, and what was
done when some of several things could not be.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from fsdrivers.errors import (
    AlreadyExistsError,
    CorruptError,
    DeviceError,
    DirectoryNotEmptyError,
    FilesystemError,
    InvalidNameError,
    IsADirectoryError_,
    NoSpaceError,
    NotADirectoryError_,
    NotFoundError,
    NotRecognisedError,
    UnsupportedError,
)
from imagebuilder.cli.common import DONE, PARTIAL, UsageError, report_error

EXIT_CODES: Final[dict[type[BaseException], int]] = {
    UsageError: 2,
    IsADirectoryError_: 2,
    AlreadyExistsError: 2,
    DirectoryNotEmptyError: 2,
    InvalidNameError: 2,
    NotRecognisedError: 4,
    CorruptError: 5,
    UnsupportedError: 6,
    NoSpaceError: 7,
    NotFoundError: 8,
    NotADirectoryError_: 8,
    DeviceError: 9,
    FilesystemError: 5,
}


def failure_of(error: BaseException) -> tuple[str, int]:
    """Return what happened in one sentence, and the exit code for it."""
    text = str(error)
    if isinstance(error, DeviceError):
        text = f"{error.filename}: {error.strerror}"
    text = " ".join(" ".join((text, *getattr(error, "__notes__", ()))).split())
    return text, next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind))


def reason_of(error: BaseException) -> str:
    """Return why, without the name of the file."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(reason.split())


@dataclass(slots=True)
class Outcome:
    """What a verb has done so far; whatever it cannot do is said at once."""

    changed: list[str] = field(default_factory=list)  # paths
    problems: list[str] = field(default_factory=list)  # a line each
    failure: int = DONE  # exit code of the first thing that failed

    @property
    def code(self) -> int:
        """The exit code: of what failed first, 3 if things were only left out."""
        return self.failure or (PARTIAL if self.problems else DONE)

    def leave_out(self, what: str, reason: str) -> None:
        """Name something that the volume cannot hold; the rest is done."""
        self._report(f"{what}: left out: {reason}")

    def fail(self, error: BaseException) -> None:
        """Note one of `EXIT_CODES`."""
        text, code = failure_of(error)
        self.failure = self.failure or code
        self._report(text)

    def _report(self, text: str) -> None:
        self.problems.append(text)
        report_error(text)
