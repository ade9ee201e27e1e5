# SPDX-License-Identifier: Apache-2.0
"""The boot environment: kernel, initial root filesystem and boot loaders, built once.

It is the same for every user and every disc.  What differs from disc to disc (configuration of
the boot loaders, data) is added when the disc is mastered.  It is kept in a cache under a
key made of everything that goes into it, and built again only when one of these changes: the
Debian packages, the third-party packages, the choice of modules; and, in a second step that
takes a second, our own code.

Source: EP1168174A1 [0058].
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import stat
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from imagebuilder.environment import modules, python_runtime
from imagebuilder.environment.cache import Lease, appearing, lease, locked, remove_unused
from imagebuilder.environment.initramfs import Archive, Compression, compress
from imagebuilder.environment.packages import Package, find_packages, unpacked_packages
from imagebuilder.errors import BuildHostError
from rebuild.boot import first_stage

Progress = Callable[[str], None]

KERNEL_PACKAGE = "linux-image-amd64"  # depends on the release's current signed kernel
# Package -> files of it that the disc carries, under the names they have in the cache.
LOADER_FILES: Mapping[str, Mapping[str, str]] = {
    "shim-signed": {"shimx64.efi": "usr/lib/shim/shimx64.efi.signed"},
    "grub-efi-amd64-signed": {
        "gcdx64.efi": "usr/lib/grub/x86_64-efi-signed/gcdx64.efi.signed",
    },
    "isolinux": {
        "isolinux.bin": "usr/lib/ISOLINUX/isolinux.bin",
        "isohdpfx.bin": "usr/lib/ISOLINUX/isohdpfx.bin",
    },
    "syslinux-common": {"ldlinux.c32": "usr/lib/syslinux/modules/bios/ldlinux.c32"},
}
ABOUT = "about.json"  # written last: a directory without it is not whole
BASE = "base.zst"
FIRST = "first.img"
FIRST_SUMS = "first.sums"
RECIPE = 4  # raise it when this builder makes something else of the same inputs
_MODULE_LEVELS: Mapping[Compression, int] = {"zstd-fast": 15}
_BEST_MODULE_LEVEL = 19

# PID 1.  A start that fails must leave its reason on the screen: a kernel panic would not.
INIT = f"""#!/{python_runtime.INTERPRETER} -ISs
import sys
sys.path.append("{first_stage.DIRECTORY}")
try:
    import first_stage
    first_stage.main()
    sys.path[-1] = "/{python_runtime.SITE}"
    from rebuild.__main__ import main
    main()
except BaseException as error:
    import time
    text = f"This recovery disc is damaged: {{type(error).__name__}}: {{error}}."
    for console in ("/dev/tty1", "/dev/ttyS0"):
        with open(console, "wb", 0) as file:
            file.write(f"\\r\\n{{text}} Use another copy of it.\\r\\n".encode())
    while True:
        time.sleep(3600)
"""


@dataclass(frozen=True, slots=True)
class BootEnvironment:
    """A built boot environment: files in the cache that many discs share."""

    directory: Path
    kernel_release: str
    versions: Mapping[str, str]  # Debian package -> version
    # On the directory in the cache: nobody removes it while this object is there.
    lease: Lease | None = field(default=None, compare=False, repr=False)

    @property
    def kernel(self) -> Path:
        """Return the signed kernel."""
        return self.directory / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """Return the compressed initial root filesystem."""
        return self.directory / "initrd.img"

    @property
    def size(self) -> int:
        """Return the bytes of all its files."""
        return sum(file.stat().st_size for file in self.directory.iterdir())

    def loader(self, name: str) -> Path:
        """Return a boot loader's file by its name in `LOADER_FILES`."""
        return self.directory / name


def cache_directory() -> Path:
    """Return where built environments and packages are kept.

    `REBUILDKIT_CACHE`, else `rebuildkit` below `XDG_CACHE_HOME`, else below ~/.cache.
    """
    own = os.environ.get("REBUILDKIT_CACHE")
    if own:
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "rebuildkit"


def prepare_boot_environment(
    cache: Path | None = None,
    *,
    compression: Compression = "zstd",
    progress: Progress = lambda _line: None,
) -> BootEnvironment:
    """Return the boot environment of this machine's Debian release, building it when needed.

    Concurrent builders wait for each other; an interrupted build leaves nothing behind that
    counts.

    Args:
        cache: where to keep it; default: `cache_directory()`.
        compression: "zstd" for discs that are given away, "zstd-fast" for tests.
        progress: told in words what is being done.

    Raises:
        BuildHostError: this machine cannot build one; says why.
    """
    if platform.machine() != "x86_64":
        raise BuildHostError(
            f"discs are built on x86_64 machines; this one is {platform.machine()}"
        )
    cache = cache or cache_directory()
    packages = find_boot_packages()
    third_party = python_runtime.find_third_party()
    own = python_runtime.find_own_code()
    base_key = environment_key(packages, third_party, compression)
    key = hashlib.sha256(f"{base_key} {_digest_of_files(own)} {INIT}".encode()).hexdigest()
    base, target = cache / "base" / base_key, cache / "boot" / key[:32]
    with locked(cache):
        if not (base / ABOUT).is_file():
            with (
                unpacked_packages(packages, cache / "packages", progress) as trees,
                appearing(base) as work,
            ):
                _build_base(work, trees, packages, third_party, compression, progress)
        with _lease(base):
            if not (target / ABOUT).is_file():
                progress("adding rebuildkit's own code")
                with appearing(target) as work:
                    _build_environment(work, base, own, compression)
            about = json.loads((target / ABOUT).read_text())
            versions = about["packages"]
            environment = BootEnvironment(target, about["kernel"], versions, _lease(target))
            for directory in (base.parent, target.parent):
                remove_unused(directory)
        with locked(cache / "packages"):
            remove_unused(cache / "packages")
    return environment


def _lease(entry: Path) -> Lease:
    """Return a lease on what is there: the caller holds the lock."""
    taken = lease(entry)
    assert taken is not None, "nobody removes it meanwhile"
    return taken


def find_boot_packages() -> list[Package]:
    """Return the Debian packages the boot environment is made of, the kernel first.

    Raises:
        BuildHostError: apt lacks one, or its Python is not the one running this.
    """
    (meta,) = find_packages([KERNEL_PACKAGE])
    kernels = [name for name in meta.depends if name.startswith("linux-image-")]
    if len(kernels) != 1:
        raise BuildHostError(f"{KERNEL_PACKAGE} {meta.version} does not depend on one kernel")
    names = [
        kernels[0],
        *LOADER_FILES,
        *python_runtime.PYTHON_PACKAGES,
        *python_runtime.SHARED_LIBRARIES,
    ]
    try:
        return find_packages(names)
    except BuildHostError as error:
        raise BuildHostError(
            f"{error}; the disc's Python comes from Debian and must be "
            f"{python_runtime.PYTHON}, like the one that builds it"
        ) from error


def environment_key(
    packages: Sequence[Package], third_party: Mapping[str, Path], compression: Compression
) -> str:
    """Return the hexadecimal hash of all inputs of a base: all but our own code."""
    facts = {
        "recipe": RECIPE,
        "python": sys.version_info[:2],
        "packages": [package.sha256 for package in packages],
        "compression": compression,
        "chosen": {group: list(patterns) for group, patterns in modules.CHOSEN.items()},
        "left out": list(modules.LEFT_OUT),
        "first": python_runtime.FIRST,
        "library": sorted(python_runtime.STANDARD_LIBRARY_LEFT_OUT),
        "replaced": dict(python_runtime.REPLACED_SOURCES),
        "third party": _digest_of_files(third_party),
        "stripped": shutil.which("strip") is not None,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _digest_of_files(files: Mapping[str, Path]) -> str:
    """Return the hexadecimal hash of names and contents."""
    digest = hashlib.sha256()
    for path, file in sorted(files.items()):
        digest.update(f"{path}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _build_base(
    work: Path,
    trees: Mapping[str, Path],
    packages: Sequence[Package],
    third_party: Mapping[str, Path],
    compression: Compression,
    progress: Progress,
) -> None:
    """Fill `work` with what does not depend on our own code."""
    kernel_tree = trees[packages[0].name]
    release = _kernel_release(kernel_tree)
    shutil.copyfile(kernel_tree / "boot" / f"vmlinuz-{release}", work / "vmlinuz")
    for name, files in LOADER_FILES.items():
        for cached, path in files.items():
            shutil.copyfile(trees[name] / path, work / cached)
    progress("collecting kernel modules and Python")
    archive = Archive()
    archive.add_base()
    python_runtime.add_interpreter(archive, trees)
    python_runtime.add_sources(archive, third_party)
    _add_modules(archive, kernel_tree / "lib" / "modules" / release / "kernel", compression)
    first = python_runtime.take_first_stage(archive)
    (work / FIRST).write_bytes(first.pack())
    (work / FIRST_SUMS).write_text(_sums_of(first))
    packed = archive.pack()
    progress(f"compressing {len(packed) / 1e6:.1f} MB of initial root filesystem")
    (work / BASE).write_bytes(compress(packed, compression))
    about = {
        "kernel": release,
        "packages": {package.name: package.version for package in packages},
    }
    (work / ABOUT).write_text(json.dumps(about, indent=2, sort_keys=True) + "\n")


def _add_modules(archive: Archive, module_tree: Path, compression: Compression) -> None:
    """Add the pack of kernel modules and its index."""
    level = _MODULE_LEVELS.get(compression, _BEST_MODULE_LEVEL)
    pack, index = modules.pack_modules(modules.choose_modules(module_tree), level)
    archive.add_file("lib/modules/modules.pack", pack)
    archive.add_file("lib/modules/index.json", index)


def _build_environment(
    work: Path, base: Path, own: Mapping[str, Path], compression: Compression
) -> None:
    """Fill `work` with a base and our own code.

    The kernel unpacks two archives, one after another: Python, and what it starts with.  Neither
    is compressed, so that a flipped bit costs one file of them, which the first stage then names.

    Source: linux Documentation/driver-api/early-userspace/buffer-format.rst.
    """
    for file in base.iterdir():
        if file.name not in (BASE, FIRST, FIRST_SUMS):
            _link_or_copy(file, work / file.name)
    own_archive = Archive()
    python_runtime.add_sources(own_archive, own)
    blobs = ((base / BASE).read_bytes(), compress(own_archive.pack(), compression))
    archive = Archive()
    archive.add_file("init", INIT.encode(), is_executable=True)
    python_runtime.add_first_stage(archive, own)
    for name, blob in zip(first_stage.ARCHIVES, blobs, strict=True):
        archive.add_file(f"{first_stage.DIRECTORY}/{name}", blob)
    sums = (base / FIRST_SUMS).read_text() + _sums_of(archive)
    archive.add_file(f"{first_stage.DIRECTORY}/{first_stage.SUMS}", sums.encode())
    (work / "initrd.img").write_bytes((base / FIRST).read_bytes() + archive.pack())


def _sums_of(archive: Archive) -> str:
    """Return a line for each file of an archive, as the first stage reads them."""
    return "".join(
        f"{zlib.crc32(member.data):08x} {len(member.data)} {path}\n"
        for path, member in sorted(archive.members.items())
        if stat.S_ISREG(member.mode)
    )


def _link_or_copy(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, or a copy where links are not possible."""
    if source.name == ABOUT:  # its time says when each directory was last used
        shutil.copyfile(source, target)
        return
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def _kernel_release(tree: Path) -> str:
    """Return the release string of the kernel in an unpacked package."""
    for path in (tree / "boot").glob("vmlinuz-*"):
        return path.name.removeprefix("vmlinuz-")
    raise BuildHostError(f"{tree.name} does not contain a kernel")
