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

IsExcluded = Callable[[bytes], bool]


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
