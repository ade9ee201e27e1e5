# SPDX-License-Identifier: Apache-2.0
"""What this computer remembers of the data sets it has seen, so that none is rolled back.

Everything a repository returns is authentic, but an old data set is authentic too.  So each
computer that backs up, builds discs or restores keeps, for each repository, user and machine,
the highest generation it has met, and refuses to go on when the newest one offered is lower.

One small JSON file below `REBUILDKIT_STATE`, `XDG_STATE_HOME` or ~/.local/state.  It holds no
secret.  A backup does not fail because of a state that cannot be read or written: the check is then
as strong as on a computer that never met the machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from backup.repository import ConflictError, DataSetInfo, RolledBackError

STATE_FILE = "data-sets.json"


def state_directory() -> Path:
    """Return where the state file lies; it need not exist."""
    own = os.environ.get("REBUILDKIT_STATE")
    if own:
        return Path(own)
    shared = os.environ.get("XDG_STATE_HOME")
    return (Path(shared) if shared else Path.home() / ".local" / "state") / "rebuildkit"


def check_and_remember(
    place: str, user: str, newest: DataSetInfo, directory: Path | None = None
) -> None:
    """Raise if `newest` is older than what was seen, else remember it.

    Args:
        place: which repository: a server's certificate fingerprint or URL, or a directory.
        user: the id.
        newest: the newest data set of a machine that the repository lists.
        directory: of the state file; by default `state_directory()`.

    Raises:
        RolledBackError: a newer data set of this machine has been seen at this place.
    """
    directory = directory or state_directory()
    key = key_of(place, user, newest.machine)
    with _opened(directory) as state:
        seen = state.get(key, 0)
        if newest.generation < seen:
            raise RolledBackError(
                f"the newest data set of {newest.machine} offered is number {newest.generation}, "
                f"but this computer has seen number {seen}: the repository was rolled back; "
                f"remove {directory / STATE_FILE} if that was on purpose"
            )
        state[key] = newest.generation


def forget(place: str, user: str, machine: str, directory: Path | None = None) -> None:
    """Forget a machine that was deleted, so that its name can be used again.  As above."""
    with _opened(directory or state_directory()) as state:
        state.pop(key_of(place, user, machine), None)


def key_of(place: str, user: str, machine: str) -> str:
    """Return what a machine's entries are found by; says nothing of the three."""
    return hashlib.sha256(json.dumps([place, user, machine]).encode()).hexdigest()


@contextlib.contextmanager
def alone(place: str, user: str, machine: str, directory: Path | None = None) -> Iterator[None]:
    """Keep other backups of the same machine to the same place from running on this computer.

    What one of two has sent, the other's commit would drop.  Where nothing can be written, nothing
    is kept from running.

    Args:
        place: which repository, as for `check_and_remember`.
        user: the id.
        machine: its name in the backups.
        directory: of the lock; by default `state_directory()`.

    Raises:
        ConflictError: another one is running.
    """
    key = key_of(place, user, machine)
    path = (directory or state_directory()) / f"backup-{key[:16]}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("a+")
    except OSError:
        yield
        return
    with lock:
        try:
            # Of this process alone: what it forked may live on for a moment when it is killed.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            raise ConflictError(
                f"another backup of {machine!r} to the same place is running (process "
                f"{lock.read().strip() or 'not known'}); run this one when it has ended"
            ) from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[dict[str, int]]:
    """Yield the state; write it back if it was changed and no error came."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / (STATE_FILE + ".lock")).open("w")
    except OSError:
        yield {}
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = directory / STATE_FILE
        state: dict[str, int] = {}
        with contextlib.suppress(OSError, ValueError):
            loaded = json.loads(path.read_text())
            if isinstance(loaded, dict):
                state = {k: v for k, v in loaded.items() if isinstance(v, int)}
        before = dict(state)
        yield state
        if state != before:
            with contextlib.suppress(OSError):
                partial = path.with_suffix(".new")
                partial.write_text(json.dumps(state, sort_keys=True))
                partial.replace(path)
