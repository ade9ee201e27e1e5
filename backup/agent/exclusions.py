# SPDX-License-Identifier: Apache-2.0
"""Which paths a backup leaves out.  Pure.

A pattern with `*`, `?` or `[` is matched against the whole path as `fnmatch` does, where `*`
matches slashes too; any other pattern names one path.  What lies below a path left out is left
out as well.  Paths are absolute on the running machine (`/var/cache`), and absolute in their
volume for a disk or image.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterable

from backup.shared.text import name_text, printable

IsExcluded = Callable[[bytes], bool]

# What no machine starts without, in lower case: of Linux, of Windows NT, and of DOS.
_NEEDED = frozenset(
    b"""
    /bin /sbin /lib /lib64 /usr /usr/bin /usr/sbin /usr/lib /usr/lib64 /etc /boot /sbin/init
    /usr/lib/systemd /usr/lib/modules /lib/modules /etc/fstab /boot/grub /boot/grub2
    /boot/extlinux /boot/efi /boot/efi/efi /efi
    /windows /windows/system32 /winnt /winnt/system32 /bootmgr /ntldr /ntdetect.com /boot.ini
    /io.sys /msdos.sys /command.com /ibmbio.com /ibmdos.com
    """.split()
)
_KERNELS = (b"/boot/vmlinuz", b"/boot/initrd", b"/boot/initramfs")
_SHOWN = 3


class Watched:
    """A test for paths that remembers what it left out of what a machine needs to start."""

    def __init__(self, is_excluded: IsExcluded) -> None:
        self._is_excluded = is_excluded
        self.needed: list[bytes] = []

    def __call__(self, path: bytes) -> bool:
        """Tell whether a path is left out."""
        if not self._is_excluded(path):
            return False
        name = path.lower()
        if name in _NEEDED or name.startswith(_KERNELS):
            self.needed.append(path)
        return True

    def note(self) -> str:
        """Return one sentence on what is missing for a start; "" if nothing is."""
        if not self.needed:
            return ""
        shown = ", ".join(printable(name_text(path)) for path in self.needed[:_SHOWN])
        more = f" and {len(self.needed) - _SHOWN} more" if len(self.needed) > _SHOWN else ""
        return (
            f"--exclude leaves out {shown}{more}: a machine that is restored from this data set "
            "will not start"
        )


def compile_exclusions(patterns: Iterable[bytes]) -> IsExcluded | None:
    """Return a test for absolute paths, None when there is no pattern."""
    exact: set[bytes] = set()
    globs: list[str] = []
    for pattern in patterns:
        stripped = pattern.rstrip(b"/")
        if any(c in stripped for c in b"*?["):
            globs.append(fnmatch.translate(os.fsdecode(stripped)))
        elif stripped:
            exact.add(stripped)
    if not globs:
        return exact.__contains__ if exact else None
    expression = re.compile("|".join(globs))
    return lambda path: path in exact or expression.match(os.fsdecode(path)) is not None
