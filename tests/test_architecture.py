# SPDX-License-Identifier: Apache-2.0
"""Dependencies point one way: the table of docs/architecture.md, enforced."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("backup", "fsdrivers", "imagebuilder", "rebuild", "templates", "vm")
# Package -> what it may import besides the standard library and itself; longest prefix decides.
ALLOWED: dict[str, tuple[str, ...]] = {
    "fsdrivers": ("construct", "crc32c"),
    "backup.objects": ("msgpack", "zstandard", "blake3", "cryptography"),
    "backup": ("backup.objects", "cryptography"),
    "backup.store": ("backup", "sqlalchemy", "alembic"),
    "backup.agent": ("backup", "fsdrivers", "blake3"),
    "backup.server": (
        "backup",
        "starlette",
        "uvicorn",
        "anyio",
        "cryptography",
    ),
    "rebuild": ("fsdrivers", "backup.objects", "regipy", "zstandard"),
    "templates": ("jinja2",),
    "imagebuilder": ("backup", "templates", "pycdlib", "pyfatfs", "jinja2", "zstandard"),
    "imagebuilder.cli": ("backup", "fsdrivers", "rebuild", "vm", "templates", "imagebuilder"),
    "vm": ("qemu",),
}
FORBIDDEN: dict[str, tuple[str, ...]] = {
    "backup": ("backup.agent", "backup.server"),
    "backup.agent": ("backup.server",),
    "backup.store": ("backup.agent", "backup.client", "backup.server"),
    "backup.server": ("backup.agent",),
    "imagebuilder": ("backup.agent", "backup.server"),
}


def sources() -> list[Path]:
    """Return every module of the product."""
    return [path for name in OURS for path in sorted((ROOT / name).rglob("*.py"))]


def module_of(path: Path) -> str:
    """Return the dotted name of a module."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[str]:
    """Yield the dotted names that a module imports at any level, type checking included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module


def covers(prefix: str, name: str) -> bool:
    """Tell whether `prefix` is `name` or a package above it."""
    return name == prefix or name.startswith(prefix + ".")


def rule_of(module: str) -> str:
    """Return the row of the table that a module falls under."""
    return max((row for row in ALLOWED if covers(row, module)), key=len)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_table(path: Path) -> None:
    """A module imports only what its package's row of the table allows."""
    row = rule_of(module_of(path))
    own = row if row != "imagebuilder.cli" else "imagebuilder"
    for name in imports_of(path):
        # _typeshed: types of the standard library that only the type checker sees.
        stdlib = {*sys.stdlib_module_names, "_typeshed"}
        if name.partition(".")[0] in stdlib or covers(own, name):
            wrong = [bad for bad in FORBIDDEN.get(row, ()) if covers(bad, name)]
            assert not wrong, f"{name} is out of bounds for {row}"
            continue
        assert any(covers(allowed, name) for allowed in ALLOWED[row]), f"{row} imports {name}"
        wrong = [bad for bad in FORBIDDEN.get(row, ()) if covers(bad, name)]
        assert not wrong, f"{name} is out of bounds for {row}"


def test_every_package_is_shipped() -> None:
    """A package of the tree is in the distribution, and the other way round."""
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    shipped = set(settings["tool"]["setuptools"]["packages"])

    found = {module_of(path) for path in sources() if path.name == "__init__.py"}
    assert shipped == found
