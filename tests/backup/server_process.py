# SPDX-License-Identifier: Apache-2.0
"""A server in a process of its own, whose limits and rules a test chooses.

As a program: that server, in this process; `ServerProcess` runs it in another.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Self

from backup.repository import InvalidRequestError, RepositoryError
from backup.server.front import parse_network
from backup.server.limits import Limits
from backup.server.run import FINGERPRINT, LISTENING, ServerStartError, parse_address, run

# How this file is run as a program; its options follow.
COMMAND = (sys.executable, "-m", "tests.backup.server_process")
ROOT = Path(__file__).resolve().parents[2]

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
            options: of this file as a program.
            limits: fields of `backup.server.limits.Limits` that differ from their defaults.

        Raises:
            ServerStartError: it ended instead.
        """
        command = [*COMMAND, "--data", str(data_dir), "--listen", listen]
        if not tls:
            command += ["--no-tls"]
        command += [f"--limit={name}={number}" for name, number in limits.items()]
        command += options
        errors = subprocess.DEVNULL if log is None else log.open("ab")
        try:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT
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


def _value(line: str, prefix: str) -> str | None:
    return line.strip().removeprefix(prefix) if line.startswith(prefix) else None


def main() -> int:
    """Run the server; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DIR", help="where everything is kept")
    add("--listen", default="127.0.0.1", metavar="HOST[:PORT]", help="default: 127.0.0.1:8443")
    add("--no-tls", action="store_true", help="for local clients only")
    add("--log-requests", action="store_true", help="print one line for every request")
    add("--trust-proxy", action="append", default=[], metavar="ADDRESS", help="believe its headers")
    add("--open-registration", action="store_true", help="let anyone register")
    add(
        "--limit",
        action="append",
        default=[],
        metavar="NAME=NUMBER",
        help="see backup/server/limits.py",
    )
    options = parser.parse_args()
    try:
        host, port = parse_address(options.listen)
        run(
            options.data,
            host,
            port,
            tls=not options.no_tls,
            show=_print_line,
            report=_report_line,
            logs_requests=options.log_requests,
            limits=_limits_of(options.limit),
            is_open=options.open_registration,
            proxies=[parse_network(text) for text in options.trust_proxy],
        )
    except RepositoryError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _limits_of(settings: Sequence[str]) -> Limits:
    """Return the limits with some of them changed, each NAME=NUMBER."""
    known = asdict(Limits())
    changed = {}
    for setting in settings:
        name, _, number = setting.partition("=")
        if name not in known:
            raise InvalidRequestError(f"there is no limit {name!r}; there are {', '.join(known)}")
        try:
            changed[name] = type(known[name])(number)
        except ValueError as error:
            raise InvalidRequestError(f"{setting!r}: the limit must be a number") from error
    return Limits(**changed)


def _print_line(line: str) -> None:
    print(line, flush=True)


def _report_line(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
