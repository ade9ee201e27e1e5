# SPDX-License-Identifier: Apache-2.0
"""How the verbs of `rebuildkit fs` end: exit codes, one sentence for each failure, and what was
done when some of several things could not be.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

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
from fsdrivers.losses import UnreachedError
from fsdrivers.printable import printable
from imagebuilder.cli.common import UsageError, report_error
from rebuild.exit_codes import ExitCode

if TYPE_CHECKING:
    from fsdrivers.tree import Tree

EXIT_CODES: Final[dict[type[BaseException], ExitCode]] = {
    UsageError: ExitCode.USAGE,
    IsADirectoryError_: ExitCode.USAGE,
    AlreadyExistsError: ExitCode.USAGE,
    DirectoryNotEmptyError: ExitCode.USAGE,
    InvalidNameError: ExitCode.USAGE,
    NotRecognisedError: ExitCode.NOT_RECOGNISED,
    CorruptError: ExitCode.CORRUPT,
    UnsupportedError: ExitCode.NOT_SUPPORTED,
    NoSpaceError: ExitCode.NO_SPACE,
    NotFoundError: ExitCode.NOT_FOUND,
    NotADirectoryError_: ExitCode.NOT_FOUND,
    DeviceError: ExitCode.DEVICE,
    FilesystemError: ExitCode.CORRUPT,
}


def failure_of(error: BaseException) -> tuple[str, ExitCode]:
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


def report_losses(tree: Tree) -> ExitCode:
    """Name what of a volume cannot be read; return the exit code of who did the rest."""
    for path, loss in tree.lost_paths():
        what = "something of it" if loss.is_kept else "it" if loss.name else "something in it"
        report_error(f"{printable(path)}: {what} is lost: {reason_of(loss.error)}")
    causes = [loss.error for loss in tree.losses if not isinstance(loss.error, UnreachedError)]
    if any(isinstance(error, CorruptError) for error in causes):
        return ExitCode.CORRUPT
    return ExitCode.PARTIAL if tree.losses else ExitCode.DONE


@dataclass(slots=True)
class Outcome:
    """What a verb has done so far; it reports at once what it cannot do."""

    changed: list[str] = field(default_factory=list)  # paths
    problems: list[str] = field(default_factory=list)  # a line each
    failure: int = ExitCode.DONE  # exit code of the first thing that failed

    @property
    def code(self) -> int:
        """The exit code: of what failed first, 3 if things were only left out."""
        return self.failure or (ExitCode.PARTIAL if self.problems else ExitCode.DONE)

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
