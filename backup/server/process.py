# SPDX-License-Identifier: Apache-2.0
"""A server in a process of its own: for rehearsals, tests and benchmarks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import backup
from backup.server.run import FINGERPRINT, LISTENING, ServerStartError

STOP_TIMEOUT_S = 20.0


class ServerProcess:
    """A running server.

    Attributes:
        url: where it listens.
        fingerprint: of its certificate; None without TLS.
        pid: of the process.
    """

    def __init__(self, process: subprocess.Popen[str], url: str, fingerprint: str | None) -> None:
        self.url = url
        self.fingerprint = fingerprint
        self.pid = process.pid
        self._process = process

    @classmethod
    def start(
        cls,
        data_dir: Path,
        listen: str = "127.0.0.1:0",
        *,
        tls: bool = True,
        log: Path | None = None,
        options: Sequence[str] = ("--open-registration",),
        **limits: float,
    ) -> Self:
        """Start a server and wait until it listens.

        Args:
            data_dir: made if it is missing.
            listen: HOST:PORT; port 0 for any free one.
            tls: whether to use HTTPS.
            log: where its standard error goes; nowhere when None.
            options: of `python -m backup.server`.
            limits: fields of `backup.server.limits.Limits` that differ from their defaults.

        Raises:
            ServerStartError: it ended instead.
        """
        command = [sys.executable, "-m", "backup.server"]
        command += ["--data", str(data_dir), "--listen", listen]
        if not tls:
            command += ["--no-tls"]
        command += [f"--limit={name}={number}" for name, number in limits.items()]
        command += options
        errors = subprocess.DEVNULL if log is None else log.open("ab")
        try:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, env=_environment()
            )
        finally:
            if not isinstance(errors, int):
                errors.close()
        assert process.stdout is not None, "its output is a pipe"
        url = _value(process.stdout.readline(), LISTENING)
        fingerprint = None
        if url is not None and tls:
            fingerprint = _value(process.stdout.readline(), FINGERPRINT)
        if url is None or (tls and fingerprint is None):
            process.kill()
            process.wait()
            process.stdout.close()
            raise ServerStartError(f"the server on {data_dir} did not start")
        return cls(process, url, fingerprint)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rpartition(":")[2])

    def stop(self) -> int:
        """Ask it to end, and wait; return its exit code."""
        self._process.terminate()
        return self._wait()

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        self._process.kill()
        self._wait()

    def _wait(self) -> int:
        try:
            code = self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        return code


def _environment() -> dict[str, str]:
    """Return an environment in which Python finds this package, installed or not."""
    root = str(Path(backup.__file__).resolve().parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _value(line: str, prefix: str) -> str | None:
    return line.strip().removeprefix(prefix) if line.startswith(prefix) else None
