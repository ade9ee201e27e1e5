# SPDX-License-Identifier: Apache-2.0
"""What a checker finds, as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from fsdrivers.errors import CorruptError, DeviceError, FilesystemError

UNREADABLE: Final = "unreadable"  # a rule: the medium gives everything that is looked for
MAXIMUM_FINDINGS: Final = 1000  # of one check; more say nothing new


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

    def __str__(self) -> str:
        return self.what if self.position is None else f"{self.what} (byte {self.position:#x})"


@dataclass(slots=True, kw_only=True)
class Findings:
    """What a check has found so far; drivers add what their passes hand on to each other."""

    findings: list[Finding] = field(default_factory=list)

    def add(self, rule: str, what: str, position: int | None = None) -> None:
        """Note a finding, if there are not too many."""
        if len(self.findings) < MAXIMUM_FINDINGS:
            self.findings.append(Finding(rule, what, position))

    def add_error(
        self, rule: str, error: FilesystemError | DeviceError, position: int | None = None
    ) -> None:
        """Note an error as a finding, at its own position where it has one.

        What the medium does not give breaks the rule `UNREADABLE`, whatever was looked for there.
        """
        if isinstance(error, DeviceError):
            self.add(UNREADABLE, str(error), position)
            return
        own = error.position if isinstance(error, CorruptError) else None
        self.add(rule, str(error), position if own is None else own)

    def run(self, *passes: Callable[[], object]) -> None:
        """Run the passes of a check in order, as far as the medium lets them.

        Later ones build on what earlier ones gathered, so the first that fails is the last.
        """
        try:
            for check_part in passes:
                check_part()
        except DeviceError as error:
            self.add(UNREADABLE, f"{error}: what comes behind was not checked")

    def expect(
        self, rule: str, what: str, position: int | None, expected: object, actual: object
    ) -> None:
        """Note a finding if the values differ."""
        if expected != actual:
            self.add(rule, f"{what}: expected {expected}, found {actual}", position)
