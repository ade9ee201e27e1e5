# SPDX-License-Identifier: Apache-2.0
"""Names that are the same in directories that fold case."""

from __future__ import annotations

import pytest

from fsdrivers.errors import UnsupportedError
from fsdrivers.ext.folding import folded, hashed_name


@pytest.mark.parametrize(
    ("one", "other"),
    [("Name", "nAME"), ("Stra\u00dfe", "STRASSE"), ("\u00dc", "u\u0308"), ("a\u00adb", "AB")],
    ids=["ASCII", "sharp s", "decomposed", "ignorable"],
)
def test_same_names(one: str, other: str) -> None:
    """Case, composition and ignorable characters make no difference."""
    assert folded(one.encode()) == folded(other.encode())


def test_different_names() -> None:
    """Other letters do, and what is not UTF-8 is only the same as itself."""
    assert folded(b"a") != folded(b"b")
    assert folded("\u00e4".encode()) != folded(b"a")
    assert folded(b"\xffA") == b"\xffA" != folded(b"\xffa")


def test_what_is_hashed() -> None:
    """ASCII is hashed in lower case; other names are refused rather than hashed wrongly."""
    assert hashed_name(b"README.Md") == b"readme.md"
    with pytest.raises(UnsupportedError, match="ASCII"):
        hashed_name("\u00dc".encode())
