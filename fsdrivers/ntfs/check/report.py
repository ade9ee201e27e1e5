# SPDX-License-Identifier: Apache-2.0
"""What the parts of the check share: the volume, what was found, what is to be compared later."""

from __future__ import annotations

from dataclasses import dataclass, field

from fsdrivers.findings import Findings
from fsdrivers.marks import Marks
from fsdrivers.ntfs.format.records import SystemRecord
from fsdrivers.ntfs.mft import FileRecord
from fsdrivers.ntfs.upcase import UpCase
from fsdrivers.ntfs.volume import NtfsVolume

NameKey = tuple[int, int, int, bytes]  # directory, file reference, namespace, units


@dataclass(slots=True)
class Check(Findings):
    """The state of one check."""

    volume: NtfsVolume
    upcase: UpCase
    claimed: Marks = field(default_factory=lambda: Marks(0))  # clusters
    names: set[NameKey] = field(default_factory=set)  # in records and not yet in an index
    sizes: dict[int, int] = field(default_factory=dict)  # content by record, of files
    security_ids: set[int] = field(default_factory=set)
    object_ids: dict[bytes, int] = field(default_factory=dict)  # record by id
    reparse_tags: dict[int, int] = field(default_factory=dict)  # tag by file reference
    directories: list[FileRecord] = field(default_factory=list)
    system_directories: set[int] = field(default_factory=lambda: {SystemRecord.EXTEND.value})
