# SPDX-License-Identifier: Apache-2.0
"""What people read is a sentence: no text shows an error of the system with its number."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("backup", "fsdrivers", "imagebuilder", "rebuild", "vm")
OF_THE_SYSTEM = {"OSError", "PermissionError", "FileNotFoundError", "BlockingIOError"}


def shown_errors(tree: ast.AST) -> list[int]:
    """Return the lines where a text holds an error of the system as Python prints it."""
    found = []
    for handler in ast.walk(tree):
        if not isinstance(handler, ast.ExceptHandler) or handler.type is None:
            continue
        caught = {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)}
        if not caught & OF_THE_SYSTEM:
            continue
        found += [
            node.lineno
            for node in ast.walk(handler)
            if isinstance(node, ast.FormattedValue)
            and isinstance(node.value, ast.Name)
            and node.value.id == handler.name
        ]
    return found


@pytest.mark.parametrize("package", OURS)
def test_errors_of_the_system_are_told_in_words(package: str) -> None:
    """Python prints them as "[Errno 5] Input/output error"; `reason_of` gives the words."""
    found = {
        f"{path.relative_to(ROOT)}:{line}"
        for path in (ROOT / package).rglob("*.py")
        for line in shown_errors(ast.parse(path.read_text()))
    }

    assert found == set()
