# SPDX-License-Identifier: Apache-2.0
"""The commands as a user runs them: server, register, backup, disc, restore, rehearsal.

Used by the tests and by `make demo`, so that what is shown is what is tested.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

USER = "anna"
PASSWORD = "correct horse battery staple"
SERVER_START_TIMEOUT_S = 30.0
# What a server says at its start: where it is, and its certificate's fingerprint.
SERVER_WORDS = re.compile(rb"(https://\S+)[\s\S]*?((?:[0-9A-Fa-f]{2}:){31}[0-9A-Fa-f]{2})")


@dataclass(slots=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str
    elapsed_s: float

    @property
    def json(self) -> Any:
        """The output as JSON."""
        return json.loads(self.out)


def rebuildkit(*arguments: str | Path, timeout_s: float = 1800.0) -> Outcome:
    """Run the `rebuildkit` command of this environment."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "imagebuilder.cli", *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=timeout_s,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return Outcome(done.returncode, done.stdout, done.stderr, time.monotonic() - started)


class ServerDidNotStartError(Exception):
    """A server ended before it said where it listens."""


class Server:
    """A real server process over HTTPS on a free port; a context manager."""

    def __init__(self, data: Path, host: str = "127.0.0.1") -> None:
        self._data = data
        self.log = data.with_suffix(".log")
        self._address = f"{host}:0"
        self.url = self.fingerprint = ""
        self.start()

    def restart(self, environment: dict[str, str] | None = None) -> None:
        """End it and start it on the same port, in another environment."""
        self.close()
        self.start(environment)

    def start(self, environment: dict[str, str] | None = None) -> None:
        """Start it; once more on the same port after it was killed."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "imagebuilder.cli",
                    "server",
                    "--data",
                    str(self._data),
                    "--listen",
                    self._address,
                ],
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        said = b""
        deadline = time.monotonic() + SERVER_START_TIMEOUT_S
        while not (found := SERVER_WORDS.search(said)):
            line = self._process.stdout.readline()
            if not line or time.monotonic() > deadline:
                self.close()
                raise ServerDidNotStartError(f"the server did not start: {said!r}")
            said += line
        self.url = found[1].decode().rstrip("/.,;")
        self.fingerprint = found[2].decode()
        self._address = self.url.removeprefix("https://")

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def kill(self) -> None:
        """Kill the process as a power cut would."""
        self._process.kill()
        self.close()

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.terminate()
        self._process.wait(20)
        if self._process.stdout is not None:
            self._process.stdout.close()


@dataclass(slots=True)
class Scenario:
    """One user of one server, with the files that the commands need below `directory`."""

    directory: Path
    server: Server

    @property
    def password_file(self) -> Path:
        """File with the user's password."""
        path = self.directory / "password"
        if not path.exists():
            path.write_text(PASSWORD + "\n")
        return path

    @property
    def credentials(self) -> tuple[str, ...]:
        """Options for id and password."""
        return ("--user", USER, "--password-file", str(self.password_file))

    @property
    def repository(self) -> tuple[str, ...]:
        """Options for the server, with id and password."""
        place = ("--server", self.server.url, "--fingerprint", self.server.fingerprint)
        return (*place, *self.credentials)

    def register(self) -> Outcome:
        """Register the user."""
        return rebuildkit("register", *self.repository)

    def backup(self, machine: str, *disks: Path, options: Sequence[str] = ()) -> Outcome:
        """Back up disks as `machine`."""
        named = [word for disk in disks for word in ("--disk", str(disk))]
        return rebuildkit(
            "backup", *self.repository, "--machine", machine, *named, "--json", *options
        )

    def build(self, machine: str, disc: Path, *options: str) -> Outcome:
        """Build the disc of the newest data set of `machine`."""
        return rebuildkit(
            "image",
            "build",
            *self.repository,
            "--machine",
            machine,
            "-o",
            disc,
            "--fast",
            "--json",
            *options,
        )

    def rehearse(self, disc: Path, *options: str | Path) -> Outcome:
        """Rehearse a disc."""
        return rebuildkit("rehearse", disc, *self.credentials, "--json", *options)


class Store:
    """A directory that disks are backed up to and restored from."""

    def __init__(self, directory: Path) -> None:
        password = directory / "password"
        password.write_text(PASSWORD)
        self.place = directory / "store"
        self.credentials = ("--user", USER, "--password-file", password)
        must(rebuildkit("register", "--store", self.place, *self.credentials))

    def backup(self, disk: Path) -> None:
        """Back up a disk as a machine of its name."""
        named = ("--machine", disk.stem, "--disk", disk)
        must(rebuildkit("backup", "--store", self.place, *self.credentials, *named))

    def restore(self, disk: Path, image: Path, *options: str) -> Path:
        """Restore that machine to a new image."""
        source = ("--from", self.place, *self.credentials, "--machine", disk.stem)
        must(rebuildkit("restore", *source, "--disk", image, "--yes", "--verify", *options))
        return image


def must(outcome: Outcome) -> Outcome:
    """Return an outcome that went well, or fail with what the command said."""
    assert outcome.code == 0, f"exit {outcome.code}\n{outcome.out}\n{outcome.err}"
    return outcome
