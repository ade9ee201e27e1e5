# SPDX-License-Identifier: Apache-2.0
"""CPython, the packages it needs and our own code, as files of the boot environment.

The interpreter and its standard library come from Debian's packages, the third-party packages
from the environment this builder itself runs in, so both must have the same minor version.
Every source file is compiled here: reading sources would double the time to the prompt.
Nothing that gives a user a Python prompt is taken along: no `code`, `pdb`, `site`.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.util
import marshal
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from imagebuilder.environment.initramfs import Archive
from imagebuilder.errors import BuildHostError
from rebuild.boot import first_stage

PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
MULTIARCH = "x86_64-linux-gnu"
LIBRARY = f"usr/lib/{PYTHON}"
SITE = first_stage.SITE.strip(
    "/"
)  # third-party packages and ours; the init script adds it to sys.path
INTERPRETER = f"usr/bin/{PYTHON}"

PYTHON_PACKAGES = (f"{PYTHON}-minimal", f"lib{PYTHON}-minimal", f"lib{PYTHON}-stdlib")

# Debian package -> shared libraries that the interpreter or a wheel loads.
SHARED_LIBRARIES: Mapping[str, tuple[str, ...]] = {
    "libc6": ("libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1"),
    "zlib1g": ("libz.so.1",),
    "libexpat1": ("libexpat.so.1",),
    "libffi8": ("libffi.so.8",),
    "libgcc-s1": ("libgcc_s.so.1",),
}
LOADER = "ld-linux-x86-64.so.2"

EXTENSION_MODULES = (
    "_contextvars",
    "_ctypes",
    "_decimal",
    "_json",
    "_queue",
    "_typing",
    "mmap",
    "resource",
    "termios",
)
# Top names of the standard library that stay behind: whole subsystems nothing here uses, and
# everything that is or opens a Python prompt.
_LEFT_OUT_NAMES = """
    __hello__ __phello__ __pycache__ _aix_support _bootsubprocess _distutils_system_mod
    _osx_support _pydecimal _pyio _sysconfigdata__linux_x86_64-linux-gnu
    _sysconfigdata__x86_64-linux-gnu aifc antigravity asynchat asyncio asyncore audioop bdb
    cProfile cgi cgitb chunk cmd code codeop colorsys compileall crypt curses dbm distutils
    doctest email ensurepip fileinput ftplib html http idlelib imaplib imghdr imp lib-dynload
    lib2to3 mailbox mailcap mimetypes modulefinder msilib multiprocessing netrc nntplib
    nturl2path optparse pickletools pipes plistlib poplib profile pstats pty py_compile
    pyclbr pydoc pydoc_data quopri rlcompleter sched shelve site sitecustomize smtpd smtplib
    sndhdr socketserver sqlite3 ssl statistics sunau symtable tabnanny tarfile telnetlib test
    this timeit tkinter tomllib trace turtle turtledemo unittest uu venv wave webbrowser wsgiref
    xdrlib xml xmlrpc zipapp zoneinfo
"""
STANDARD_LIBRARY_LEFT_OUT = frozenset(_LEFT_OUT_NAMES.split())
_ENCODING_NAMES = """
    __init__ aliases ascii charmap cp437 cp850 cp1252 idna latin_1 raw_unicode_escape
    unicode_escape utf_8 utf_8_sig utf_16 utf_16_be utf_16_le utf_32 utf_32_be utf_32_le
"""
ENCODINGS = frozenset(_ENCODING_NAMES.split())
# Sources used in place of the real ones.  construct imports the debugger, which it never starts
# here; crc32c reads its own version out of package metadata, half a second under emulation.
REPLACED_SOURCES: Mapping[str, str] = {
    f"{LIBRARY}/pdb.py": "",
    f"{SITE}/crc32c/__init__.py": (
        "from crc32c._crc32c import big_endian, crc32, crc32c, hardware_based\n"
    ),
}

THIRD_PARTY = (
    "_cffi_backend",  # cryptography's binding module does not load without it
    "blake3",
    "construct",
    "crc32c",
    "cryptography",
    "msgpack",
    "pytz",  # regipy loads it; without its tables of zones
    "regipy",
    "zstandard",
)
THIRD_PARTY_LEFT_OUT = (
    "cryptography/x509/verification.py",
    "zstandard/_cffi",
    "zstandard/backend_cffi.py",
    "crc32c/_cli.py",
    "crc32c/_crc32hash.py",
    "crc32c/benchmark.py",
    "regipy/cli",
    "regipy/constants.py",
    "regipy/plugins",
    "regipy/recovery.py",
    "regipy/regdiff.py",
    "regipy/registry_rs.py",
)
OWN_PACKAGES = ("fsdrivers", "backup/objects", "backup/shared", "rebuild")
OWN_FILES = ("backup/__init__.py",)

# Files of the first stage: beside them, the encodings, without which Python does not start.
_FIRST_LIBRARIES = (*SHARED_LIBRARIES["libc6"], "libz.so.1", "libexpat.so.1")
FIRST = (
    INTERPRETER,
    f"lib64/{LOADER}",
    f"{LIBRARY}/os.pyc",  # Python finds its library by it
    f"{LIBRARY}/__future__.pyc",
    *(f"lib/{MULTIARCH}/{name}" for name in _FIRST_LIBRARIES),
)
_BACKEND = f"{first_stage.ZSTANDARD.strip('/')}/backend_c."


def find_third_party() -> dict[str, Path]:
    """Return path below `SITE` -> file, of all third-party code to take along.

    Raises:
        BuildHostError: a package is not installed beside this builder, or was changed.
    """
    found: dict[str, Path] = {}
    for name in THIRD_PARTY:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise BuildHostError(f"Python package {name} is not installed")
        origin = Path(spec.origin)
        if spec.submodule_search_locations is None:
            found[origin.name] = origin
        else:
            found.update(_tree(origin.parent, name))
    left_out = {path for path in found if path.startswith(THIRD_PARTY_LEFT_OUT)}
    taken = {path: found[path] for path in sorted(found.keys() - left_out)}
    check_installed(taken)
    return taken


def check_installed(files: Mapping[str, Path]) -> None:
    """Refuse packages that are not as their installer wrote them: they would go on every disc.

    The installer checked them against requirements.lock, or whatever it was given.

    Raises:
        BuildHostError: a file differs from the record of its package.
    """
    distributions = importlib.metadata.packages_distributions()
    for name in THIRD_PARTY:
        for distribution in {*distributions.get(name, ())}:
            for file in importlib.metadata.files(distribution) or ():
                path = files.get(str(file))
                if path is None or file.hash is None or file.hash.mode != "sha256":
                    continue
                digest = hashlib.sha256(path.read_bytes()).digest()
                if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
                    raise BuildHostError(
                        f"{path} of the Python package {distribution} was changed after it was "
                        "installed: install it again"
                    )


def find_own_code() -> dict[str, Path]:
    """Return path below `SITE` -> file, of our own code to take along."""
    project = Path(__file__).resolve().parents[2]
    found = {path: project / path for path in OWN_FILES}
    for package in OWN_PACKAGES:
        found.update(_tree(project / package, package))
    return dict(sorted(found.items()))


def _tree(directory: Path, name: str) -> Iterator[tuple[str, Path]]:
    """Yield (path, file) of the code and data tables below a package's directory."""
    for file in sorted(directory.rglob("*")):
        if file.suffix in (".py", ".so", ".json") and "__pycache__" not in file.parts:
            yield f"{name}/{file.relative_to(directory)}", file


def add_interpreter(archive: Archive, trees: Mapping[str, Path]) -> None:
    """Add the interpreter, its shared libraries and its standard library.

    `trees`: Debian package name -> unpacked tree, of `PYTHON_PACKAGES` and `SHARED_LIBRARIES`.
    """
    binary = trees[f"{PYTHON}-minimal"] / INTERPRETER
    archive.add_file(INTERPRETER, binary.read_bytes(), is_executable=True)
    loader = _find_library(trees["libc6"], LOADER)
    archive.add_file(f"lib64/{LOADER}", loader.read_bytes(), is_executable=True)
    for package, names in SHARED_LIBRARIES.items():
        for name in names:
            data = strip_symbols(_find_library(trees[package], name).read_bytes())
            archive.add_file(f"lib/{MULTIARCH}/{name}", data)
    for name in EXTENSION_MODULES:
        path = f"{LIBRARY}/lib-dynload/{name}.cpython-{PYTHON[6:].replace('.', '')}-{MULTIARCH}.so"
        data = strip_symbols((trees[f"lib{PYTHON}-stdlib"] / path).read_bytes())
        archive.add_file(path, data)
    for package in (f"lib{PYTHON}-minimal", f"lib{PYTHON}-stdlib"):
        root = trees[package] / LIBRARY
        for file in sorted(root.rglob("*.py")):
            place = file.relative_to(root)
            if _is_wanted(place) and file.is_file():
                path = f"{LIBRARY}/{place}"
                _add_compiled(archive, path, _source_of(path, file))


def add_sources(archive: Archive, sources: Mapping[str, Path]) -> None:
    """Add third-party or own code: Python files compiled, libraries stripped."""
    for path, file in sources.items():
        data = _source_of(f"{SITE}/{path}", file)
        if file.suffix == ".py":
            _add_compiled(archive, f"{SITE}/{path}", data)
        elif file.suffix == ".so":
            archive.add_file(f"{SITE}/{path}", strip_symbols(data))
        else:
            archive.add_file(f"{SITE}/{path}", data)


def take_first_stage(archive: Archive) -> Archive:
    """Move what Python needs to start, and to unpack the rest, out of an archive; return it."""
    first = Archive()
    first.add_directory(f"{LIBRARY}/lib-dynload")  # Python complains at start if it is not there
    for path in list(archive.members):
        member = archive.members[path]
        if stat.S_ISCHR(member.mode):
            first.add_directory(path.rpartition("/")[0])
            first.members[path] = archive.members.pop(path)
        elif stat.S_ISDIR(member.mode):
            first.add_directory("" if "/" in path else path)
        elif path in FIRST or path.startswith((f"{LIBRARY}/encodings/", _BACKEND)):
            first.add_directory(path.rpartition("/")[0])
            first.members[path] = archive.members.pop(path)
    return first


def add_first_stage(archive: Archive, own: Mapping[str, Path]) -> None:
    """Add the code of the first stage, where it runs from."""
    path = f"{first_stage.DIRECTORY.strip('/')}/first_stage.py"
    _add_compiled(archive, path, own["rebuild/boot/first_stage.py"].read_bytes())


def _source_of(path: str, file: Path) -> bytes:
    """Return the content of a file, or what is used in its place."""
    replaced = REPLACED_SOURCES.get(path)
    return file.read_bytes() if replaced is None else replaced.encode()


def _is_wanted(path: Path) -> bool:
    """Tell whether a file of the standard library is taken along."""
    top = path.parts[0].removesuffix(".py")
    if top in STANDARD_LIBRARY_LEFT_OUT or "test" in path.parts:
        return False
    return top != "encodings" or path.stem in ENCODINGS


def _find_library(tree: Path, name: str) -> Path:
    """Return the file of a shared library in an unpacked package, symbolic links resolved."""
    for directory in ("lib", "usr/lib"):
        path = tree / directory / MULTIARCH / name
        if path.exists():
            return path
    raise BuildHostError(f"{tree.name} does not contain {name}")


def _add_compiled(archive: Archive, path: str, source: bytes) -> None:
    """Add a Python file as bytecode that is never checked against a source."""
    code = compile(source, path, "exec", dont_inherit=True)
    data = (
        importlib.util.MAGIC_NUMBER
        + (1).to_bytes(4, "little")  # hash-based, not checked: PEP 552
        + importlib.util.source_hash(source)
        + marshal.dumps(code)
    )
    archive.add_file(f"{path}c", data)


def strip_symbols(data: bytes) -> bytes:
    """Return a shared library without its symbol and debug tables, where `strip` exists."""
    if shutil.which("strip") is None:
        return data
    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        file.write(data)
        file.flush()
        done = subprocess.run(
            ["strip", "--strip-unneeded", file.name],
            env={**os.environ, "LC_ALL": "C"},
            capture_output=True,
            check=False,
        )
        # strip replaces the file under its name, so the open descriptor may show the old one.
        return Path(file.name).read_bytes() if done.returncode == 0 else data
