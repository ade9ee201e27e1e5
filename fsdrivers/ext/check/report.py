# SPDX-License-Identifier: Apache-2.0
"""What the passes of the check hand on to each other."""

from __future__ import annotations

from dataclasses import dataclass

from fsdrivers.volume import Kind


@dataclass(slots=True)
class FoundInode:
    """What the later passes need of an inode in use."""

    kind: Kind | None  # None for those that no name may lead to
    links: int
    position: int
    is_indexed: bool = False
    is_orphan: bool = False
