# SPDX-License-Identifier: Apache-2.0
"""As a program under the shim of inject.py: one commit, to copy after copy of a store.

In the first copy the process is killed before the first call of the commit that touches files, in
the next before a later one, and so on; the last copy is the one in which the commit ends.
"""

from __future__ import annotations

import os
import shutil
import struct
import sys
import traceback
from pathlib import Path

from tests.backup.repositories import open_repository
from tests.faults.inject import Fault, Injector

AT = 1 << 40
"""The call at which the shim kills; what the counter stands at before the commit decides which."""

USER = "user"
MACHINE = "host"
PACK = bytes(range(250)) * 4


def command(
    injector: Injector, model: Path, copies: Path, table: Path, step: int
) -> tuple[list[str], dict[str, str]]:
    """Return this program as a command, and its environment.

    Args:
        injector: has the shim.
        model: a store with the user and the machine.
        copies: an empty directory.
        table: a file: what is committed.
        step: how many calls later the process is killed in each next copy.
    """
    counter = injector.reset()
    environment = Fault("kill", copies, AT).environment(injector.shim, counter)
    paths = [str(path) for path in (model, copies, table, counter)]
    return [sys.executable, "-m", "tests.faults.commits", *paths, str(step)], environment


def main() -> int:
    """Commit to copies of a store until one commit ends; return the exit code of that."""
    model, copies, table, counter = map(Path, sys.argv[1:5])
    with counter.open("r+b", buffering=0) as calls:
        for number in range(1, AT, int(sys.argv[5])):
            store = copies / f"{number:04}"
            shutil.copytree(model, store, ignore=shutil.ignore_patterns("reserve"))
            _set_calls(calls.fileno(), 0)
            child = os.fork()
            if child == 0:
                os.setpgid(0, 0)  # the shim kills the whole group
                _commit(store, table, calls.fileno(), number)
            _, status = os.waitpid(child, 0)
            _set_calls(calls.fileno(), 0)
            (store / "reserve").unlink(missing_ok=True)  # 64 MiB for each copy
            if os.WIFEXITED(status):
                return os.WEXITSTATUS(status)
    return 1


def _commit(store: Path, table: Path, calls: int, number: int) -> None:
    """Send a pack, and commit a table that lists it; never return."""
    code = 1
    try:
        with open_repository(store, USER) as repository:
            repository.put_pack(MACHINE, PACK)
            packs = [pack.digest for pack in repository.pending_packs(MACHINE)]
            _set_calls(calls, AT - number)
            repository.commit(MACHINE, table, packs, 0)
            _set_calls(calls, 0)
        code = 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(code)


def _set_calls(counter: int, number: int) -> None:
    """Have the shim believe that so many calls were made."""
    os.pwrite(counter, struct.pack("=Q", number), 0)


if __name__ == "__main__":
    sys.exit(main())
