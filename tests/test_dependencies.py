# SPDX-License-Identifier: Apache-2.0
"""What CI and the disc install is named with hashes, and is what pyproject.toml allows."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()
EXTRAS = PROJECT["optional-dependencies"]


def locked() -> dict[str, list[str]]:
    """Return the lines of each requirement in the lock file, the first one with its version."""
    found: dict[str, list[str]] = {}
    for line in LOCK.splitlines():
        if match := re.match(r"([\w.-]+)==", line):
            found[canonicalize_name(match[1])] = lines = [line.removesuffix(" \\")]
        elif not line.strip().startswith("#"):
            lines.append(line.strip().removesuffix(" \\"))
    return found


def test_everything_is_pinned_with_hashes() -> None:
    """Each requirement has one version and a SHA-256, as pip's --require-hashes wants."""
    requirements = locked()

    assert len(requirements) > 40
    for name, (first, *hashes) in requirements.items():
        assert re.fullmatch(r"[\w.-]+==[\w.]+( ; .+)?", first), name
        assert hashes, name
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", line) for line in hashes), name


def test_no_registry_is_named() -> None:
    """Where packages come from is the business of whoever installs them."""
    assert not re.search(r"https?:|file:|--(index|extra-index|find-links|trusted)", LOCK)


def test_the_lock_is_what_the_project_allows() -> None:
    """Every dependency, for use and for development, is locked at a version that is allowed."""
    requirements = locked()
    wanted = [*PROJECT["dependencies"], *EXTRAS["image"], *EXTRAS["dev"]]

    for requirement in map(Requirement, wanted):
        if requirement.name != PROJECT["name"]:
            first, *_ = requirements[canonicalize_name(requirement.name)]
            version = first.partition("==")[2].partition(" ")[0]
            assert requirement.specifier.contains(Version(version)), first


def test_old_setuptools_are_for_the_builder_of_discs_alone() -> None:
    """An agent or a server is installed without pyfatfs and the setuptools that it needs."""
    names = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}

    assert not names & {"pyfatfs", "setuptools", "fs"}
    assert {Requirement(line).name for line in EXTRAS["image"]} == {"pyfatfs", "setuptools"}
