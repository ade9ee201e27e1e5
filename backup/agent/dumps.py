# SPDX-License-Identifier: Apache-2.0
"""Ready commands that have databases dumped before a machine is read, into files of the machine.

The backup takes the dumps along; afterwards they are removed from the machine.  Each is made under
another name first, so that a dump that was cut short is never taken for one.

Source: PostgreSQL documentation "SQL Dump"; mariadb-dump(1); sqlite.org/backup.html.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from backup.agent.hooks import Hooks

DIRECTORY = Path("/var/backups/rebuildkit")
_COMMANDS = {  # what writes a dump to its standard output
    "postgresql": "runuser -u postgres -- pg_dumpall",
    "mariadb": "mariadb-dump --all-databases --single-transaction --routines --events",
}
SQLITE = "sqlite"


def dumping(wanted: Sequence[str], directory: Path = DIRECTORY) -> Hooks:
    """Return what has databases dumped.

    Args:
        wanted: "postgresql", "mariadb", or "sqlite:" and the path of a file.
        directory: of the dumps.

    Raises:
        ValueError: one is something else.
    """
    before, after = [], []
    for text in wanted:
        kind, _, path = text.partition(":")
        if kind in _COMMANDS and not path:
            target, command = directory / f"{kind}.sql", _COMMANDS[kind]
        elif kind == SQLITE and path.startswith("/"):
            target = directory / kind / path.lstrip("/")
            command = shlex.join([sys.executable, "-m", "backup.agent.copy_sqlite", path])
        else:
            kinds = ", ".join(_COMMANDS)
            raise ValueError(f"{text!r} cannot be dumped: say {kinds} or {SQLITE}:/PATH/OF/FILE")
        partial = shlex.quote(f"{target}.partial")
        before.append(
            f"umask 077; mkdir -p {shlex.quote(str(target.parent))} && {command} > {partial} && "
            f"mv {partial} {shlex.quote(str(target))}"
        )
        after.append(f"rm -f {partial} {shlex.quote(str(target))}")
    return Hooks(tuple(before), tuple(after))
