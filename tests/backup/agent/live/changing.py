# SPDX-License-Identifier: Apache-2.0
"""A mounted volume that is backed up while a test changes it, at moments of its choice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from backup.agent.backup import run_backup
from backup.agent.exclusions import IsExcluded
from backup.agent.live.source import LiveSource
from backup.agent.local_set import LocalSet
from backup.agent.machine import Machine
from backup.agent.result import BackupOptions, BackupResult, Snapshot
from tests.backup.agent.machines import (
    MACHINE,
    MASTER,
    DataSet,
    make_repository,
    read_data_set,
)


class ChangingSource(LiveSource):
    """A machine on which something happens between walk and reading, and at every later look."""

    def __init__(
        self,
        machine: Machine,
        change: Callable[[], None],
        again: Callable[[], None],
        snapshot: Snapshot,
    ) -> None:
        super().__init__(machine, snapshot=snapshot)
        self.change, self.again = change, again

    def scan(self, local: LocalSet, is_excluded: IsExcluded | None) -> None:
        super().scan(local, is_excluded)
        self.change()

    def settle(self, local: LocalSet, *, is_last: bool) -> bool:
        self.again()
        return super().settle(local, is_last=is_last)


Changed = tuple[BackupResult, DataSet]


class Busy:
    """A mounted volume that is backed up while it changes."""

    def __init__(self, root: Path, machine: Machine, store: Path) -> None:
        self.root, self.machine, self.store = root, machine, store

    def back_up(
        self,
        change: Callable[[], None],
        again: Callable[[], None] = lambda: None,
        snapshot: Snapshot = Snapshot.AUTO,
    ) -> Changed:
        """Back up, `change` being called when the walk is over, `again` before each later look."""
        with make_repository(self.store) as repository:
            source = ChangingSource(self.machine, change, again, snapshot)
            options = BackupOptions(workers=2)
            result = run_backup(repository, MASTER, MACHINE, [source], options)
            return result, read_data_set(repository)
