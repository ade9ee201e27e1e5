# SPDX-License-Identifier: Apache-2.0
"""Debian machines to lose, made once and kept, and where pictures of them go."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.vm.debian import FULL_KERNEL, DiskLayout, RootRecipe, disk_digest, make_disk, make_root

# What a machine of ours says of itself once it is up; see tests/vm/debian.py.
UP = r"MACHINE-FILES-OK[\s\S]*MACHINE-SWAP [\s\S]*MACHINE-UP[\s\S]*login: "


def cache_directory() -> Path:
    """Return where made machines are kept between runs, outside the checkout."""
    base = os.environ.get("REBUILDKIT_CACHE") or os.path.expanduser("~/.cache/rebuildkit")
    path = Path(base) / "machines"
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that other test processes respect."""
    with path.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


ROOTS = {
    "plain": RootRecipe(),
    "agent": RootRecipe(extra_packages=("python3",), is_small=True),
    "full": RootRecipe(kernel=FULL_KERNEL),  # starts from every kind of disk
}
UNUSED_AFTER_S = 24 * 3600.0


def debian_root(name: str = "plain") -> Path:
    """Return a Debian root filesystem as a tar, made once and kept."""
    recipe = ROOTS[name]
    path = cache_directory() / f"root-{name}-{recipe.digest()}.tar"
    with locked(path):
        if not path.exists():
            make_root(path, recipe)
            _remove_unused(f"root-{name}-*")
    return path


def debian_disk(layout: DiskLayout, root: str = "plain") -> Path:
    """Return a bootable Debian disk, made once and kept.  Never write to it."""
    name = f"{root}-{layout.scheme}-{layout.filesystem}-{layout.size_mib}"
    path = cache_directory() / f"{name}-{disk_digest(ROOTS[root], layout)}.img"
    with locked(path):
        if not path.exists():
            make_disk(debian_root(root), path, layout)
            _remove_unused(f"{name}-*")
        os.utime(path)
    return path


def _remove_unused(pattern: str) -> None:
    """Remove what an older recipe made, unless somebody may still be using it."""
    for path in cache_directory().glob(pattern):
        if time.time() - path.stat().st_mtime > UNUSED_AFTER_S:
            path.unlink(missing_ok=True)


def pictures(name: str) -> list[str]:
    """Options for screenshots, kept where REBUILDKIT_PICTURES says."""
    place = os.environ.get("REBUILDKIT_PICTURES")
    return ["--screenshots", os.path.join(place, name)] if place else []
