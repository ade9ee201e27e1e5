# SPDX-License-Identifier: Apache-2.0
"""Names and paths with wildcards."""

from __future__ import annotations

from typing import Any

import pytest

from fsdrivers.patterns import has_wildcards, is_found, iter_matching

TREE: dict[str, Any] = {
    "etc": {"a.conf": {}, "b.conf": {}, "sub": {"c.conf": {}}},
    "Etc2": {"a.conf": {}},
    "x[1]": {},
}


def matching(pattern: bytes, *, ignores_case: bool = False) -> list[str]:
    """Return the paths in the tree that fit."""

    def names_in(tree: dict[str, Any]) -> list[tuple[bytes, dict[str, Any]]]:
        return [(name.encode(), below) for name, below in tree.items()]

    found = iter_matching(pattern, TREE, names_in, ignores_case=ignores_case)
    return [path.decode() for path, _ in found]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (b"/etc/*.conf", ["/etc/a.conf", "/etc/b.conf"]),
        (b"etc/?.conf/", ["/etc/a.conf", "/etc/b.conf"]),
        (b"/*/a.conf", ["/Etc2/a.conf", "/etc/a.conf"]),
        (b"/*", ["/Etc2", "/etc", "/x[1]"]),
        (b"/**.conf", ["/Etc2/a.conf", "/etc/a.conf", "/etc/b.conf", "/etc/sub/c.conf"]),
        (b"/etc/[!a]*", ["/etc/b.conf", "/etc/sub"]),
        (b"/none*", []),
        (b"*/*/*/*", []),
    ],
)
def test_paths_that_fit(pattern: bytes, expected: list[str]) -> None:
    """A star stands for no slash, two for any text; sorted, parents first."""
    assert matching(pattern) == expected


def test_case_is_ignored_where_the_filesystem_does() -> None:
    """As DOS and Windows take names."""
    assert matching(b"/ETC*/A.CONF", ignores_case=True) == ["/Etc2/a.conf", "/etc/a.conf"]
    assert matching(b"/ETC*/A.CONF") == []


def test_find_takes_names_and_paths() -> None:
    """Without a slash the name counts, with one the whole path."""
    assert is_found(b"*.conf", b"/etc/a.conf")
    assert is_found(b"/e*f", b"/etc/a.conf")
    assert not is_found(b"/*.txt", b"/etc/a.conf")
    assert not is_found(b"etc", b"/etc/a.conf")
    assert has_wildcards(b"x[1]")
    assert not has_wildcards(b"x")
