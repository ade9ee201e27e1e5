# SPDX-License-Identifier: Apache-2.0
"""The boot environment: what is in it, its cache, and Python inside it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from imagebuilder.environment import python_runtime
from imagebuilder.environment.build import (
    BootEnvironment,
    cache_directory,
    environment_key,
    prepare_boot_environment,
)
from imagebuilder.environment.initramfs import Member
from imagebuilder.environment.packages import Package
from imagebuilder.errors import BuildHostError
from rebuild.__main__ import HEAVY_IMPORTS
from rebuild.boot import first_stage
from tests.imagebuilder.environment.newc import read_archive

PACKAGE = Package("a", "1", "ab" * 32, ())


@pytest.fixture(scope="module")
def environment() -> BootEnvironment:
    """Return the real environment, compressed fast."""
    return prepare_boot_environment(compression="zstd-fast")


@pytest.fixture(scope="module")
def members(environment: BootEnvironment) -> dict[str, Member]:
    """Return the members of the initial root filesystem, once the first stage has run."""
    data = environment.initrd.read_bytes()
    found = {member.path: member for member in read_archive(data)}
    end = data.index(b"TRAILER!!!\0") + len(b"TRAILER!!!\0")
    found.update({member.path: member for member in read_archive(data[end:].lstrip(b"\0"))})
    for name in first_stage.ARCHIVES:
        blob = found.pop(f"{first_stage.DIRECTORY.strip('/')}/{name}").data
        unpacked = zstandard.ZstdDecompressor().decompress(blob)
        found.update({member.path: member for member in read_archive(unpacked)})
    return found


def test_cache_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is where the environment says, else where XDG says, else below home."""
    monkeypatch.setenv("REBUILDKIT_CACHE", "/own")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_directory() == Path("/own")
    monkeypatch.delenv("REBUILDKIT_CACHE")
    assert cache_directory() == Path("/xdg/rebuildkit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == Path.home() / ".cache/rebuildkit"


def test_key_covers_its_inputs(tmp_path: Path) -> None:
    """Another package, another file or another compression give another key."""
    file = tmp_path / "m.py"
    file.write_text("x = 1\n")
    base = environment_key([PACKAGE], {"m.py": file}, "zstd")
    others = [
        environment_key([], {"m.py": file}, "zstd"),
        environment_key([PACKAGE], {"n.py": file}, "zstd"),
        environment_key([PACKAGE], {"m.py": file}, "zstd-fast"),
    ]
    assert environment_key([PACKAGE], {"m.py": file}, "zstd") == base
    file.write_text("x = 2\n")
    others.append(environment_key([PACKAGE], {"m.py": file}, "zstd"))

    assert len({base, *others}) == 5


def test_changed_packages_are_refused(tmp_path: Path) -> None:
    """A file that is not as its package's record says is named, and no disc is built with it."""
    files = python_runtime.find_third_party()
    path = "msgpack/fallback.py"
    changed = tmp_path / "fallback.py"
    changed.write_bytes(files[path].read_bytes() + b"\n")

    python_runtime.check_installed(files)
    with pytest.raises(BuildHostError, match=r"fallback\.py of the Python package msgpack"):
        python_runtime.check_installed({**files, path: changed})


def test_own_code_is_what_the_disc_needs() -> None:
    """Restore engine, drivers and objects are taken along; builder, agent and server are not."""
    found = set(python_runtime.find_own_code())

    assert {"rebuild/__main__.py", "fsdrivers/device.py", "backup/objects/keys.py"} <= found
    assert "backup/__init__.py" in found
    assert not [path for path in found if path.startswith(("imagebuilder", "vm", "backup/agent"))]


@pytest.mark.tools
@pytest.mark.slow
def test_second_call_builds_nothing(environment: BootEnvironment) -> None:
    """An environment that is there is used again, without a word."""
    lines: list[str] = []

    again = prepare_boot_environment(compression="zstd-fast", progress=lines.append)

    assert (again, lines) == (environment, [])


@pytest.mark.tools
@pytest.mark.slow
def test_nothing_but_python_can_be_executed(members: dict[str, Member]) -> None:
    """The only programs are the interpreter, its loader and the init script."""
    programs = {
        path
        for path, member in members.items()
        if stat.S_ISREG(member.mode) and member.mode & 0o111
    }

    assert programs == {
        "init",
        python_runtime.INTERPRETER,
        f"lib64/{python_runtime.LOADER}",
    }


@pytest.mark.tools
@pytest.mark.slow
def test_no_way_to_a_python_prompt_is_on_the_disc(members: dict[str, Member]) -> None:
    """No module that reads and runs statements, no debugger, no sources, no test code."""
    paths = set(members)

    for name in ("code", "codeop", "bdb", "cmd", "site", "pydoc", "idlelib/__init__"):
        assert f"{python_runtime.LIBRARY}/{name}.pyc" not in paths
    assert not [path for path in paths if path.endswith(".py")]
    assert not [path for path in paths if "/test/" in path or "/tests/" in path]


@pytest.mark.tools
@pytest.mark.slow
@pytest.mark.root
def test_everything_needed_can_be_imported_inside(
    members: dict[str, Member], tmp_path: Path
) -> None:
    """In the unpacked root filesystem, Python imports the whole restore engine."""
    for path, member in sorted(members.items()):
        target = tmp_path / path
        if stat.S_ISDIR(member.mode):
            target.mkdir(exist_ok=True)
        elif stat.S_ISREG(member.mode):
            target.write_bytes(member.data)
            target.chmod(stat.S_IMODE(member.mode))
        elif stat.S_ISCHR(member.mode):
            os.mknod(target, member.mode, os.makedev(*member.device))
    names = [
        path.removeprefix(f"{python_runtime.SITE}/").removesuffix(".pyc").replace("/", ".")
        for path in members
        if path.startswith(
            tuple(f"{python_runtime.SITE}/{name}/" for name in python_runtime.OWN_PACKAGES)
        )
        and path.endswith(".pyc")
    ]
    names = [name.removesuffix(".__init__") for name in names]
    code = f"""
import sys
sys.path.append("/{python_runtime.SITE}")
import importlib, hashlib
for name in {sorted({*names, *HEAVY_IMPORTS, "zstandard", "json", "socket", "termios"})!r}:
    importlib.import_module(name)
import crc32c, zstandard
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
assert crc32c.crc32c(b"123456789") == 0xE3069283
assert zstandard.backend == "cext"
AESGCM(bytes(32)).encrypt(bytes(12), b"x", b"")
Argon2id(salt=bytes(16), length=32, iterations=1, lanes=1, memory_cost=64).derive(b"x")
"host".encode("idna")
print("imported", sys.version_info[:2])
"""
    done = subprocess.run(
        ["chroot", tmp_path, f"/{python_runtime.INTERPRETER}", "-IS", "-c", code],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout == f"imported {sys.version_info[:2]}\n"
