# SPDX-License-Identifier: Apache-2.0
"""Patterns for names and paths, as shells have them: *, ? and [...].  Pure."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

T = TypeVar("T")

_WILDCARDS: Final = frozenset(b"*?[")


def has_wildcards(text: bytes) -> bool:
    """Tell whether a path may be a pattern."""
    return not _WILDCARDS.isdisjoint(text)


def is_found(pattern: bytes, path: bytes) -> bool:
    """Tell whether `find` finds a path: by its name, or if the pattern has a slash as a whole.

    Wildcards stand for slashes, too.
    """
    subject = path if b"/" in pattern else path.rsplit(b"/", 1)[-1]
    return fnmatch.fnmatchcase(subject, pattern)


def iter_matching(
    pattern: bytes,
    root: T,
    names_in: Callable[[T], Sequence[tuple[bytes, T]]],
    *,
    ignores_case: bool,
) -> Iterator[tuple[bytes, T]]:
    """Yield (path, object) of what a path with wildcards means, sorted by path.

    Wildcards stand for no slash, but ** for any text.

    Args:
        pattern: from the root, with or without a slash in front.
        root: the object at the root.
        names_in: gives what is in an object; nothing for one that is no directory.
        ignores_case: names that differ by case alone are one name.
    """

    def fold(name: bytes) -> bytes:
        return name.lower() if ignores_case else name

    wanted = b"/" + fold(pattern).strip(b"/")
    parts = wanted.split(b"/")[1:]
    is_deep = b"**" in wanted
    pending = [(b"", root)]
    while pending:
        above, found = pending.pop()
        depth = above.count(b"/")
        below = sorted(names_in(found), key=lambda item: item[0], reverse=True)
        for name, item in below if is_deep or depth < len(parts) else ():
            path = above + b"/" + name
            if is_deep or fnmatch.fnmatchcase(fold(name), parts[depth]):
                pending.append((path, item))
        is_wanted = fnmatch.fnmatchcase(fold(above), wanted) if is_deep else depth == len(parts)
        if above and is_wanted:
            yield above, found
