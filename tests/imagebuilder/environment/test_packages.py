# SPDX-License-Identifier: Apache-2.0
"""Debian packages as apt describes them."""

from __future__ import annotations

import pytest

from imagebuilder.environment.packages import Package, find_packages, parse_stanza
from imagebuilder.errors import BuildHostError

STANZA = """Package: linux-image-amd64
Version: 6.1.192-2
Depends: linux-image-6.1.0-56-amd64 (= 6.1.192-2), a:any | b, c
Description-en: Linux for 64-bit PCs
 more: text
SHA256: 45457bcf
"""


def test_stanza() -> None:
    """Name, version, digest and the first alternative of each dependency are read."""
    assert parse_stanza(STANZA) == Package(
        "linux-image-amd64",
        "6.1.192-2",
        "45457bcf",
        ("linux-image-6.1.0-56-amd64", "a", "c"),
    )


def test_stanza_without_digest_is_refused() -> None:
    """A package that cannot be checked is not used."""
    with pytest.raises(BuildHostError, match="SHA256"):
        parse_stanza("Package: x\nVersion: 1\n")


@pytest.mark.tools
def test_unknown_package_is_named() -> None:
    """What apt does not know is an error that names it."""
    with pytest.raises(BuildHostError, match="no-such-package-here"):
        find_packages(["libc6", "no-such-package-here"])
