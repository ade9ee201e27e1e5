# SPDX-License-Identifier: Apache-2.0
"""Debian packages: which version this machine's release offers, its download, its files.

The kernel, the boot loaders and CPython of the boot environment come unchanged from Debian's
own signed packages.  apt checks the signatures; the digest apt knows is part of every cache
key.  Packages are only unpacked (`dpkg-deb -x`), never installed: no root is needed.

Source: apt-cache(8), apt-get(8) `download`, deb-control(5).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from imagebuilder.environment.cache import Lease, appearing, lease, locked
from imagebuilder.errors import BuildHostError

TOOLS = ("apt-get", "apt-cache", "dpkg-deb")


@dataclass(frozen=True, slots=True)
class Package:
    """One version of a Debian package, as the release's signed index lists it."""

    name: str
    version: str
    sha256: str  # of the .deb file, hexadecimal
    depends: tuple[str, ...]  # names, alternatives left out

    @property
    def file_name(self) -> str:
        """Return a name unique to this content, safe in any directory."""
        return f"{self.name}-{self.sha256[:16]}"


def find_packages(names: Sequence[str]) -> list[Package]:
    """Return what apt would install now for each of `names`, in their order.

    Raises:
        BuildHostError: apt is missing, or knows no such package.
    """
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        raise BuildHostError(
            f"building a disc needs Debian's package tools; not found: {', '.join(missing)}"
        )
    stanzas = _output("apt-cache", "show", "--no-all-versions", *names).strip().split("\n\n")
    found = {package.name: package for package in map(parse_stanza, filter(None, stanzas))}
    unknown = [name for name in names if name not in found]
    if unknown:
        raise BuildHostError(
            f"apt does not know the package {', '.join(unknown)}; run apt-get update"
        )
    return [found[name] for name in names]


def parse_stanza(text: str) -> Package:
    """Parse one stanza of `apt-cache show`.

    Raises:
        BuildHostError: a needed field is absent.
    """
    fields = dict(re.findall(r"^([A-Za-z0-9-]+): *(.*)$", text, re.MULTILINE))
    try:
        return Package(
            name=fields["Package"],
            version=fields["Version"],
            sha256=fields["SHA256"],
            depends=tuple(
                clause.split("|")[0].split()[0].split(":")[0]
                for clause in fields.get("Depends", "").split(",")
                if clause.strip()
            ),
        )
    except KeyError as error:
        raise BuildHostError(
            f"apt's index lacks {error} of {fields.get('Package', 'a package')}"
        ) from error


@contextmanager
def unpacked_packages(
    packages: Sequence[Package],
    directory: Path,
    progress: Callable[[str], None] = lambda _line: None,
) -> Iterator[dict[str, Path]]:
    """Give the unpacked trees of `packages` by name, fetching what is absent.

    They lie below `directory`, which many processes may use at the same time, and stay as long as
    the block runs.

    Raises:
        BuildHostError: a download failed or its digest is not the listed one.
    """
    with ExitStack() as stack:
        trees = {}
        for package in packages:
            progress(f"package {package.name} {package.version}")
            trees[package.name] = directory / package.file_name
            stack.enter_context(_leased(package, trees[package.name]))
        yield trees


def _leased(package: Package, entry: Path) -> Lease:
    """Return a lease on the unpacked tree of a package."""
    taken = lease(entry)
    while taken is None:
        with locked(entry.parent):
            if not entry.is_dir():
                _unpack(package, entry)
            taken = lease(entry)
    return taken


def _unpack(package: Package, entry: Path) -> None:
    """Fetch a package and unpack it; the tree appears under its name only when it is whole."""
    with tempfile.TemporaryDirectory(prefix=".new-", dir=entry.parent) as work:
        _run("apt-get", "download", "-q", f"{package.name}={package.version}", directory=Path(work))
        archives = list(Path(work).glob("*.deb"))
        if len(archives) != 1:
            raise BuildHostError(f"apt-get download did not fetch {package.name}")
        digest = hashlib.sha256(archives[0].read_bytes()).hexdigest()
        if digest != package.sha256:
            raise BuildHostError(
                f"{package.name} {package.version} has sha256 {digest}, "
                f"the package index says {package.sha256}"
            )
        with appearing(entry) as tree:
            _run("dpkg-deb", "-x", str(archives[0]), str(tree))


def _output(*command: str) -> str:
    """Return what a tool prints, whether or not it was content."""
    return _start(command, None).stdout


def _run(*command: str, directory: Path | None = None) -> None:
    """Run a tool; its complaint becomes the error.

    Raises:
        BuildHostError: it failed.
    """
    result = _start(command, directory)
    if result.returncode:
        complaint = (result.stderr.strip() or result.stdout.strip()).splitlines()
        reason = complaint[-1] if complaint else f"exit status {result.returncode}"
        raise BuildHostError(f"{' '.join(command[:2])} failed: {reason}")


def _start(command: Sequence[str], directory: Path | None) -> subprocess.CompletedProcess[str]:
    """Run a tool to its end."""
    return subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
