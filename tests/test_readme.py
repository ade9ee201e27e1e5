# SPDX-License-Identifier: Apache-2.0
"""What the README promises is what the Makefile does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rebuild.exit_codes import ExitCode

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("variable", ["PACKAGES", "TEST_PACKAGES"])
def test_packages_are_named(variable: str) -> None:
    """Every Debian package that set-up installs is named in the README."""
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    listed = re.search(rf"^{variable} := (.*)$", makefile, re.MULTILINE)
    assert listed is not None

    named = set(re.findall(r"[a-z0-9.+-]*[a-z0-9]", (ROOT / "README.md").read_text()))

    assert set(listed[1].split()) - named == set()


def test_commands_exist() -> None:
    """Every `make` command that the README shows is a target."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    shown = set(re.findall(r"make ([a-z]+) +#|`make ([a-z]+)`", (ROOT / "README.md").read_text()))

    assert {name for pair in shown for name in pair if name} - targets == set()


def test_exit_codes_are_those_of_the_product() -> None:
    """The README's table of exit codes says what the product's own table says."""
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)

    assert rows == [(str(code.value), code.meaning) for code in ExitCode]
