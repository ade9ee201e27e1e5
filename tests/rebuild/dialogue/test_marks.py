# SPDX-License-Identifier: Apache-2.0
"""The marks of the dialogue are those of docs/formats.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def written_marks() -> Iterator[str]:
    """Yield the names of all marks that the product's source writes."""
    for path in (ROOT / "rebuild").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func).rpartition(".")[2]
            if called not in ("mark", "ask"):
                continue
            index, prefix = (0, "") if called == "mark" else (1, "ask-")
            for name in ast.walk(node.args[index]):
                if isinstance(name, ast.Constant) and not str(name.value).endswith("-"):
                    yield f"{prefix}{name.value}"


def test_marks_are_documented() -> None:
    """The table of marks names each that is written, and no other."""
    text = (ROOT / "docs" / "formats.md").read_text().partition("### Marks on the serial line")[2]
    rows = re.findall(r"^\| (`[^|]*`) \|", text.partition("\n## ")[0], re.MULTILINE)

    documented = {name for row in rows for name in re.findall("`([a-z-]+)`", row)}

    assert documented == set(written_marks())
