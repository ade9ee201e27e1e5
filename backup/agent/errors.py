# SPDX-License-Identifier: Apache-2.0
"""Errors of the backup agent.

AgentError
├── NotRecoverableError     the machine could not be recovered whole; carries every problem
├── NoSourceError           nothing to back up was found or given
├── HookError               a command that is to run before the backup failed
└── WorkerError             a packing process ended before its work was done
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class AgentError(Exception):
    """Base of every error the agent itself raises."""


class Problem(NamedTuple):
    """Why one device cannot be recovered.  `device` is a name a person can act on."""

    device: str
    reason: str


class NotRecoverableError(AgentError):
    """What a recovery would lose is named before anything is sent; `problems` has all of it."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        listed = "; ".join(f"{problem.device}: {problem.reason}" for problem in problems)
        super().__init__(f"this machine cannot be recovered whole: {listed}")


class NoSourceError(AgentError):
    """Nothing to back up was found or given."""


class HookError(AgentError):
    """A command that is to run before the backup failed; nothing was read."""


class WorkerError(AgentError):
    """A packing process ended before its work was done; the last data set is untouched."""
