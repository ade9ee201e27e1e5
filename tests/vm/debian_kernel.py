# SPDX-License-Identifier: Apache-2.0
"""A newer Debian kernel than the host's release has, fetched by apt and kept.

Debian 12's kernel has no ntfs3.  apt gets lists of its own for another release of the host's
own mirror, so that nothing the host has configured changes; it checks the signatures as always.
Only what a guest needs is kept: the kernel and some modules, unpacked.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import zstandard

from imagebuilder.environment.modules import kernel_name, read_module
from tests.vm.machines import cache_directory, locked

RELEASE = "trixie"
METAPACKAGE = "linux-image-amd64"
FILESYSTEMS = ("vfat", "msdos", "isofs", "ntfs3", "hpfs", "ext4")
# What a mount asks the kernel to load, which in the guest nobody would.
CHARACTER_SETS = ("nls_cp437", "nls_cp850", "nls_ascii", "nls_utf8", "nls_iso8859_1")
CHECKSUMS = ("crc32c_generic",)  # likewise, of ext4
DEVICES = ("virtio_pci", "virtio_blk")
SOURCES = (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list"))
UNPACKERS: Mapping[str, Callable[[bytes], bytes]] = {
    ".ko": bytes,
    ".xz": lzma.decompress,
    ".zst": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data),
}


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel with the modules that a guest loads, those they need first."""

    image: Path
    modules: tuple[Path, ...]


def newer_kernel() -> Kernel:
    """Return the kernel of `RELEASE`, fetched once: 110 MB.  Needs apt and a mirror."""
    choice = repr((DEVICES, CHARACTER_SETS, CHECKSUMS, FILESYSTEMS)).encode()
    place = cache_directory() / f"kernel-{RELEASE}-{hashlib.sha256(choice).hexdigest()[:8]}"
    with locked(place):
        if not place.is_dir():
            with tempfile.TemporaryDirectory(dir=place.parent, prefix=".new-") as temporary:
                _fetch(Path(temporary))
                _choose(Path(temporary), Path(temporary, "chosen"))
                Path(temporary, "chosen").rename(place)
    return Kernel(place / "vmlinuz", tuple(sorted(place.glob("*.ko"))))


def _fetch(work: Path) -> None:
    """Unpack the kernel's package below `work`/tree."""
    (work / "lists/partial").mkdir(parents=True)
    (work / "other.sources").write_text("\n\n".join(_stanzas()) + "\n")
    options = [
        "-o",
        f"Dir::Etc::sourcelist={work}/other.sources",
        "-o",
        "Dir::Etc::sourceparts=-",
        "-o",
        f"Dir::State::lists={work}/lists",
        "-o",
        f"Dir::Cache={work}/cache",
        "-o",
        "APT::Sandbox::User=root",
    ]
    _run(work, "apt-get", *options, "-q", "update")
    about = _run(work, "apt-cache", *options, "show", "--no-all-versions", METAPACKAGE)
    found = re.search(r"^Depends: (\S+)", about, re.MULTILINE)
    assert found is not None, about
    _run(work, "apt-get", *options, "-q", "download", found[1])
    (package,) = work.glob("*.deb")
    _run(work, "dpkg-deb", "-x", str(package), str(work / "tree"))


def _stanzas() -> Iterator[str]:
    """Yield the host's own sources of packages with the other release in place of its own."""
    own = re.search(r"^VERSION_CODENAME=(\S+)", Path("/etc/os-release").read_text(), re.MULTILINE)
    assert own is not None, "/etc/os-release names no Debian release"
    for path in SOURCES:
        text = path.read_text() if path.exists() else ""
        for stanza in re.split(r"\n\s*\n", text):
            suites = re.search(r"^Suites:(.*)$", stanza, re.MULTILINE)
            if suites is not None and own[1] in suites[1].split():
                yield stanza.strip().replace(suites[0], f"Suites: {RELEASE}")
        for kind, options, uri, suite, rest in re.findall(
            r"^(deb)\s+(\[.*?\]\s+)?(\S+)\s+(\S+)\s+(.*)$", text, re.MULTILINE
        ):
            if suite == own[1]:
                yield _stanza_of(kind, options, uri, rest)


def _stanza_of(kind: str, options: str, uri: str, components: str) -> str:
    """Return a one-line source as a stanza of the other release."""
    lines = [f"Types: {kind}", f"URIs: {uri}", f"Suites: {RELEASE}", f"Components: {components}"]
    signed_by = re.search(r"signed-by=([^\]\s]+)", options)
    return "\n".join([*lines, *([f"Signed-By: {signed_by[1]}"] if signed_by else [])])


def _choose(work: Path, chosen: Path) -> None:
    """Put the kernel and the modules, numbered in the order to load, into `chosen`."""
    chosen.mkdir()
    (image,) = (work / "tree/boot").glob("vmlinuz-*")
    shutil.copyfile(image, chosen / "vmlinuz")
    files = {kernel_name(path.name.partition(".")[0]): path for path in work.rglob("*.ko*")}
    ordered: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in ordered or name not in files:
            return  # what is not there is built in
        data = UNPACKERS[files[name].suffix](files[name].read_bytes())
        for needed in read_module(name, data).depends:
            add(needed)
        ordered[name] = data

    for name in (*DEVICES, *CHARACTER_SETS, *CHECKSUMS, *FILESYSTEMS):
        add(name)
    missing = {*FILESYSTEMS, "virtio_blk"} - ordered.keys()
    assert not missing, f"Debian's kernel has no module {missing}"
    for number, (name, data) in enumerate(ordered.items()):
        (chosen / f"{number:02}-{name}.ko").write_bytes(data)


def _run(directory: Path, *command: str) -> str:
    done = subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout
