# SPDX-License-Identifier: Apache-2.0
"""Outside its drivers the product asks what a filesystem can do, never which one it is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsdrivers import signatures
from fsdrivers.registry import DRIVERS, EMPTY, UNKNOWN

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("backup", "imagebuilder", "rebuild", "templates", "vm")
TYPES = {kind for driver in DRIVERS for kind in driver.types}
FAMILIES = {re.sub(r"\d+$", "", kind) for kind in TYPES if not kind.startswith("iso")}
KNOWN = {row.type for row in signatures.ALL}
NAMES = TYPES | FAMILIES | KNOWN | {EMPTY, UNKNOWN}
# Where a name is no question: how a data set says "none".
ALLOWED = {("backup/objects/model.py", "empty")}


def names_in(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of what a module says of filesystems: their names, and `hasattr`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and node.value in NAMES:
            yield node.lineno, node.value
        elif isinstance(node, ast.Name) and node.id == "hasattr":
            yield node.lineno, node.id


@pytest.mark.parametrize(
    "line",
    [
        'if volume.type == "ntfs": pass',
        'is_ext = type in ("ext2", "ext3", "ext4")',
        'is_fat = kind.startswith("fat")',
        'REASONS = {"luks": "it is encrypted"}',
        'GROWABLE = frozenset(["xfs"])',
        'if kind not in ("raw", "empty"): pass',
        'match type:\n case "swap": pass',
        'if hasattr(volume, "read_stream"): pass',
    ],
)
def test_what_is_found(line: str) -> None:
    """Comparisons, starts, tables and cases are all found."""
    assert list(names_in(line))


def test_no_filesystem_is_named_outside_its_driver() -> None:
    """No string outside `fsdrivers` is the type of a volume, so none is compared with one."""
    found = {
        (str(path.relative_to(ROOT)), text)
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for _, text in names_in(path.read_text())
    }

    assert found == ALLOWED
