# SPDX-License-Identifier: Apache-2.0
"""What a backup is asked to do, and what it says it did."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum

from backup.agent.hooks import Hooks
from backup.repository import DataSetInfo


class Snapshot(StrEnum):
    """When a mounted filesystem is frozen, so that what is read of it is of one moment."""

    AUTO = "auto"  # when files keep changing while they are read
    ALWAYS = "always"  # for every look at what has changed; it must be possible
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class BackupOptions:
    """How a backup is to be made.

    Attributes:
        allow_raw: keep what no driver can read as raw partitions instead of refusing it.
        exclude: paths and patterns left out with everything below them, see `agent.exclusions`.
        workers: packing processes; 0 for one per processor.
        level: zstd level of the packs.  Measured: at 1 a Debian root is packed in 0.6 times the
            processor time of 3, and is 5 % larger.
        hooks: commands that run before and after reading.
        snapshot: when mounted filesystems are frozen.
        system: identification of the operating system, if the sources cannot tell.
    """

    allow_raw: bool = False
    exclude: tuple[bytes, ...] = ()
    workers: int = 0
    level: int = 1
    snapshot: Snapshot = Snapshot.AUTO
    hooks: Hooks = field(default_factory=Hooks)
    system: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class BackupResult:
    """What a backup did.  Sizes in bytes, counts in objects."""

    data_set: DataSetInfo | None = None
    objects: int = 0
    new: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    size: int = 0  # of all files together, holes included
    bytes_read: int = 0  # from the sources, contents only
    bytes_sent: int = 0  # packs and table
    packs_sent: int = 0
    duration_s: float = 0.0
    phases_s: dict[str, float] = field(default_factory=dict)
    healed_packs: int = 0  # found damaged, and not needed any more by the new data set
    missing: int = 0  # objects left out because they could not be read
    mixed: int = 0  # objects kept that changed all the while, and may be of several moments
    warnings: list[str] = field(default_factory=list)  # missing, or changed while being read
    notes: list[str] = field(default_factory=list)  # worth saying, nothing is missing

    @property
    def is_partial(self) -> bool:
        """Whether something is not in the data set that should be, or not in one state."""
        return self.missing > 0 or self.mixed > 0

    def to_dict(self) -> dict[str, object]:
        """Return plain data for JSON."""
        fields: dict[str, object] = asdict(self)
        fields["is_partial"] = self.is_partial
        return fields
