# SPDX-License-Identifier: Apache-2.0
"""Who is measured: rebuildkit and its peers, each with the commands its manual recommends.

Every contestant encrypts, compresses and deduplicates as it does by default, but mke2fs and
tar, which do nothing of the kind.  A cell is a shell script; what surrounds it (making a
repository, registering) is prepared outside the measured time.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tests.bench.data import TAR_OPTIONS, DataSet, make_image
from tests.bench.measure import CommandFailedError, quoted

USER, MACHINE = "bench", "bench"
PASSWORD = "a password nobody guesses"
# What a server says at its start: where it is, and its certificate's fingerprint.
SERVER_WORDS = r"(https://\S+)[\s\S]*?((?:[0-9A-Fa-f]{2}:){31}[0-9A-Fa-f]{2})"


@dataclass(slots=True)
class Cell:
    """One thing to measure: a script, and what it reads, which is warmed before."""

    script: str
    warmed: Path | None = None
    environment: dict[str, str] = field(default_factory=dict)
    server_pid: int | None = None
    made: Path | None = None  # an image that is looked at and removed afterwards


class Contestant(Protocol):
    """A program, or one way to use it.  None for a cell that it has not."""

    name: str

    def first(self) -> Cell | None: ...
    def unchanged(self) -> Cell | None: ...
    def restore(self) -> Cell | None: ...
    def close(self) -> None: ...


def loop_restore(image: Path, mount: Path, inner: str) -> str:
    """Return a script that makes an ext4 in an image, fills it and lets go of it."""
    return (
        f"mke2fs -q -F -t ext4 {image}; mount -o loop {image} {mount}; "
        f"{inner}; umount {mount}; sync {image}"
    )


class Server:
    """A `rebuildkit server` on a free port of this machine."""

    def __init__(self, command: list[str | Path], data: Path, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [*command, "server", "--data", data, "--listen", "127.0.0.1:0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **environment},
        )
        self.pid = self._process.pid
        assert self._process.stdout is not None, "its output is a pipe"
        said = ""
        while (found := re.search(SERVER_WORDS, said)) is None:
            line = self._process.stdout.readline()
            if not line:
                self.close()
                raise CommandFailedError(f"the server did not start: {said}")
            said += line
        self.url, self.fingerprint = found[1], found[2]

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


class Ours:
    """rebuildkit, through a server over HTTPS or on a store directory."""

    def __init__(self, data: DataSet, work: Path, *, is_served: bool) -> None:
        self.name = "rebuildkit, HTTPS server" if is_served else "rebuildkit, local store"
        self._data = data
        self._work = work
        self._password = work / "password"
        self._password.write_text(PASSWORD + "\n")
        self._store = work / ("served" if is_served else "store")
        # Compiled modules are kept, as an installation has them; not between the sources.
        self._environment = {
            "REBUILDKIT_STATE": str(work / "state"),
            "PYTHONPYCACHEPREFIX": str(work.parent / "compiled"),
            "PYTHONDONTWRITEBYTECODE": "",
        }
        self._command: list[str | Path] = [sys.executable, "-m", "imagebuilder.cli"]
        self._server = Server(self._command, self._store, self._environment) if is_served else None
        subprocess.run(
            [*self._command, "register", *self._place(), *self._credentials()],
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, **self._environment},
        )

    def _place(self) -> list[str | Path]:
        server = self._server
        if server is None:
            return ["--store", self._store]
        return ["--server", server.url, "--fingerprint", server.fingerprint]

    def _credentials(self) -> list[str | Path]:
        return ["--user", USER, "--password-file", self._password]

    def _backup(self) -> Cell:
        arguments = [*self._command, "backup", *self._place(), *self._credentials()]
        arguments += ["--machine", MACHINE, "--disk", self._data.image]
        return self._cell(arguments, self._data.image)

    def _cell(self, arguments: list[str | Path], warmed: Path, made: Path | None = None) -> Cell:
        return Cell(quoted(arguments), warmed, self._environment, self._pid(), made)

    def _pid(self) -> int | None:
        return self._server.pid if self._server else None

    def first(self) -> Cell:
        return self._backup()

    def unchanged(self) -> Cell:
        return self._backup()

    def restore(self) -> Cell:
        image = self._work / "ours.img"
        image.unlink(missing_ok=True)
        arguments: list[str | Path] = [*self._command, "restore", "--yes", *self._credentials()]
        arguments += ["--machine", MACHINE, "--disk", image]
        arguments += ["--disk-size", str(self._data.image_size)]
        server = self._server
        arguments += ["--from", server.url if server else self._store]
        if server is not None:
            arguments += ["--fingerprint", server.fingerprint]
        return self._cell(arguments, self._store, image)

    def compare(self, image: Path) -> Cell:
        """Return the cell that compares an image with what was backed up."""
        server = self._server
        arguments: list[str | Path] = [*self._command, "compare", server.url if server else "-"]
        if server is None:
            arguments[-1] = self._store
        else:
            arguments += ["--fingerprint", server.fingerprint]
        arguments += [*self._credentials(), "--machine", MACHINE, "--disk", image]
        return self._cell(arguments, image)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        shutil.rmtree(self._store, ignore_errors=True)


class Restic:
    """restic with a repository in a local directory; it has no server in Debian."""

    def __init__(self, data: DataSet, work: Path, *, is_served: bool = False) -> None:
        self.name = "restic, local repository"
        self._data, self._work = data, work
        self._repository = work / "restic"
        self._environment = {
            "RESTIC_PASSWORD": PASSWORD,
            "RESTIC_REPOSITORY": str(self._repository),
            "RESTIC_CACHE_DIR": str(work / "restic-cache"),
        }
        subprocess.run(
            ["restic", "init", "-q"],
            check=True,
            env={**os.environ, **self._environment},
            stdout=subprocess.DEVNULL,
        )

    def _cell(self, script: str, warmed: Path) -> Cell:
        return Cell(script, warmed, self._environment)

    def first(self) -> Cell:
        return self._cell(f"cd {self._data.directory}; restic backup -q .", self._data.directory)

    def unchanged(self) -> Cell:
        return self.first()

    def restore(self) -> Cell:
        image, mount = self._work / "restic.img", self._work / "mount"
        make_image(image, self._data.image_size)
        cell = self._cell(
            loop_restore(image, mount, f"restic restore -q latest --target {mount}"),
            self._repository,
        )
        cell.made = image
        return cell

    def close(self) -> None:
        shutil.rmtree(self._repository, ignore_errors=True)
        shutil.rmtree(self._work / "restic-cache", ignore_errors=True)


class Borg:
    """borg with a repository in a local directory and its default compression, lz4."""

    def __init__(self, data: DataSet, work: Path) -> None:
        self.name = "borg, local repository"
        self._data, self._work = data, work
        self._repository = work / "borg"
        self._runs = 0
        self._environment = {
            "BORG_PASSPHRASE": PASSWORD,
            "BORG_REPO": str(self._repository),
            "BORG_BASE_DIR": str(work / "borg-base"),
        }
        subprocess.run(
            ["borg", "init", "-e", "repokey"],
            check=True,
            env={**os.environ, **self._environment},
            stderr=subprocess.DEVNULL,
        )

    def _backup(self) -> Cell:
        self._runs += 1
        script = f"cd {self._data.directory}; borg create ::run{self._runs} ."
        return Cell(script, self._data.directory, self._environment)

    def first(self) -> Cell:
        return self._backup()

    def unchanged(self) -> Cell:
        return self._backup()

    def restore(self) -> Cell:
        image, mount = self._work / "borg.img", self._work / "mount"
        make_image(image, self._data.image_size)
        inner = f"(cd {mount}; borg extract ::run{self._runs})"
        script = loop_restore(image, mount, inner)
        return Cell(script, self._repository, self._environment, made=image)

    def close(self) -> None:
        shutil.rmtree(self._repository, ignore_errors=True)
        shutil.rmtree(self._work / "borg-base", ignore_errors=True)


class Mke2fs:
    """`mke2fs -d`, which fills the volume it makes from a directory, without a kernel."""

    def __init__(self, data: DataSet, work: Path) -> None:
        self.name = "mke2fs -d"
        self._data, self._work = data, work

    def first(self) -> None:
        return None

    def unchanged(self) -> None:
        return None

    def restore(self) -> Cell:
        image = self._work / "mke2fs.img"
        make_image(image, self._data.image_size)
        script = f"mke2fs -q -F -t ext4 -d {self._data.directory} {image}; sync {image}"
        return Cell(script, self._data.directory, made=image)

    def close(self) -> None:
        pass


class Tar:
    """mke2fs, a loop mount and tar, which reads an archive that is not compressed."""

    def __init__(self, data: DataSet, work: Path) -> None:
        self.name = "mke2fs, mount, tar x"
        self._data, self._work = data, work

    def first(self) -> None:
        return None

    def unchanged(self) -> None:
        return None

    def restore(self) -> Cell:
        image, mount = self._work / "tar.img", self._work / "mount"
        make_image(image, self._data.image_size)
        inner = f"tar -C {mount} {' '.join(TAR_OPTIONS)} -xpf {self._data.tar}"
        return Cell(loop_restore(image, mount, inner), self._data.tar, made=image)

    def close(self) -> None:
        pass


@contextmanager
def contestants(data: DataSet, work: Path, *, without_peers: bool) -> Iterator[list[Contestant]]:
    """Give everyone a fresh start in `work`; clean up afterwards."""
    shutil.rmtree(work, ignore_errors=True)
    (work / "mount").mkdir(parents=True)
    made: list[Contestant] = []
    try:
        made.append(Ours(data, work, is_served=True))
        made.append(Ours(data, work, is_served=False))
        if not without_peers:
            made.append(Restic(data, work))
            made.append(Borg(data, work))
            made.append(Mke2fs(data, work))
            made.append(Tar(data, work))
        yield made
    finally:
        for contestant in made:
            contestant.close()
        shutil.rmtree(work, ignore_errors=True)


VERSIONS = (
    (["restic", "version"], r"restic \S+"),
    (["borg", "--version"], r"borg \S+"),
    (["mke2fs", "-V"], r"mke2fs \S+"),
    (["tar", "--version"], r"tar \(GNU tar\) \S+"),
)
