# SPDX-License-Identifier: Apache-2.0
"""The file of an enrolled machine: where it backs up to, what it logs in with, and its key.

A JSON object; `version` says how to read it.
Source: docs/formats.md "The credential of a machine".
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from backup.repository import CREDENTIAL_SIZE
from backup.wire import pack_base64, unpack_base64

VERSION = 1
MAXIMUM_SIZE = 64 << 10
_SIZES = {"credential": CREDENTIAL_SIZE, "key_id": 32, "key": 32}


class MachineFileError(Exception):
    """The file cannot be read or written, or is none; its text is one sentence."""


@dataclass(frozen=True, slots=True)
class MachineFile:
    """What a machine needs.  One of `server` and `store` is set."""

    user: str
    machine: str
    server: str | None
    fingerprint: str | None  # of the server's certificate
    store: str | None
    credential: bytes = field(repr=False)
    key_id: bytes
    key: bytes = field(repr=False)


@contextlib.contextmanager
def write(path: Path, file: MachineFile) -> Iterator[None]:
    """Write a new file, for its owner alone; if the body fails it is removed again.

    Raises:
        MachineFileError: the path exists already.
        OSError: it cannot be written.
    """
    values = {
        name: pack_base64(value) if isinstance(value, bytes) else value
        for name, value in asdict(file).items()
    }
    text = json.dumps({"version": VERSION, **values}, indent=2) + "\n"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise MachineFileError(f"{path} exists: remove it, or choose another --output") from error
    try:
        with open(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def read(path: Path) -> MachineFile:
    """Read the file of an enrolled machine.

    Raises:
        MachineFileError: it cannot be read, or is none.
    """
    try:
        with path.open(encoding="utf-8") as stream:
            values = json.loads(stream.read(MAXIMUM_SIZE))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not JSON"
        raise MachineFileError(f"cannot read the credential {path}: {reason}") from error
    try:
        if values["version"] != VERSION:
            raise MachineFileError(f"{path} was made by a newer rebuildkit: update rebuildkit")
        found: dict[str, Any] = {
            item.name: unpack_base64(values[item.name])
            if item.name in _SIZES
            else values[item.name]
            for item in fields(MachineFile)
        }
        texts = [value for name, value in found.items() if name not in _SIZES]
        is_good = all(isinstance(text, str | None) for text in texts)
        is_good &= all(len(found[name]) == size for name, size in _SIZES.items())
        is_good &= all(isinstance(found[name], str) for name in ("user", "machine"))
        if not is_good or bool(found["server"]) == bool(found["store"]):
            raise ValueError
    except MachineFileError:
        raise
    except Exception as error:
        raise MachineFileError(f"{path} is not what `rebuildkit enroll` writes") from error
    return MachineFile(**found)
