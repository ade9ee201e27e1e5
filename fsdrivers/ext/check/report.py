# SPDX-License-Identifier: Apache-2.0
"""What the checker of ext volumes finds, as data, and what its passes hand on to each other."""

from __future__ import annotations

from dataclasses import dataclass, field

from fsdrivers.errors import FilesystemError
from fsdrivers.volume import Kind

MAX_FINDINGS = 1000


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it must be."""

    what: str
    position: int | None = None  # bytes from the start of the volume

    def __str__(self) -> str:
        return self.what if self.position is None else f"{self.what} (byte {self.position:#x})"


@dataclass(slots=True)
class FoundInode:
    """What the later passes need of an inode in use."""

    kind: Kind | None  # None for those that no name may lead to
    links: int
    position: int
    is_indexed: bool = False
    is_orphan: bool = False


@dataclass(slots=True)
class Report:
    """Findings as they are made."""

    findings: list[Finding] = field(default_factory=list)

    def add(self, what: str, position: int | None = None) -> None:
        """Note a finding; past MAX_FINDINGS nothing new is learned."""
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(Finding(what, position))

    def expect(self, what: str, position: int | None, expected: object, actual: object) -> None:
        """Note a finding if the values differ."""
        if expected != actual:
            self.add(f"{what}: expected {expected}, found {actual}", position)

    def add_error(self, error: FilesystemError) -> None:
        self.add(str(error), getattr(error, "position", None))
