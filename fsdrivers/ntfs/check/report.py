# SPDX-License-Identifier: Apache-2.0
"""What the parts of the check share: the volume, what was found, what is to be compared later."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from fsdrivers.findings import Finding
from fsdrivers.ntfs.format.records import SystemRecord
from fsdrivers.ntfs.mft import FileRecord
from fsdrivers.ntfs.upcase import UpCase
from fsdrivers.ntfs.volume import NtfsVolume

MAXIMUM_FINDINGS: Final = 1000
NameKey = tuple[int, int, int, bytes]  # directory, file reference, namespace, units


@dataclass(slots=True)
class Check:
    """The state of one check."""

    volume: NtfsVolume
    upcase: UpCase
    findings: list[Finding] = field(default_factory=list)
    claimed: bytearray = field(default_factory=bytearray)  # one byte per cluster
    names: set[NameKey] = field(default_factory=set)  # in records and not yet in an index
    sizes: dict[int, int] = field(default_factory=dict)  # content by record, of files
    security_ids: set[int] = field(default_factory=set)
    object_ids: dict[bytes, int] = field(default_factory=dict)  # record by id
    reparse_tags: dict[int, int] = field(default_factory=dict)  # tag by file reference
    directories: list[FileRecord] = field(default_factory=list)
    system_directories: set[int] = field(default_factory=lambda: {SystemRecord.EXTEND.value})

    def add(self, rule: str, what: str, position: int | None = None) -> None:
        """Note a finding, if there are not too many."""
        if len(self.findings) < MAXIMUM_FINDINGS:
            self.findings.append(Finding(rule, what, position))
