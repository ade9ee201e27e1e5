# SPDX-License-Identifier: Apache-2.0
"""Dependencies point one way: the table of docs/architecture.md, read and enforced."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("backup", "fsdrivers", "imagebuilder", "rebuild", "templates", "vm")
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
# _typeshed: types of the standard library that only the type checker sees.
STANDARD_LIBRARY = {*sys.stdlib_module_names, "_typeshed"}


def read_table() -> dict[str, list[str]]:
    """Return the rows of the document: package, and what it may import besides itself."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| `([\w.]+)` \|[^|]*\|([^|]*)\|$", text, re.MULTILINE)
    return {package: re.findall(r"`([\w.]+)`", names) for package, names in rows}


def module_of(path: Path) -> str:
    """Return the dotted name of a module."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_of(path): path for name in OURS for path in sorted((ROOT / name).rglob("*.py"))}
TABLE = read_table()


@cache
def imports_of(module: str) -> frozenset[str]:
    """Return what a module imports: in functions, for type checking, and by name, too."""
    return frozenset(_iter_imports(module))


def _iter_imports(module: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(SOURCES[module].read_text())):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom():
                assert node.level == 0, f"{module}: relative import"
                assert node.module
                for alias in node.names:
                    name = f"{node.module}.{alias.name}"
                    yield name if name in SOURCES else node.module
            case ast.Call(
                func=ast.Attribute(attr="find_spec" | "import_module")
                | ast.Name(id="find_spec" | "import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield name


def row_of(module: str) -> str:
    """Return the row that a module of ours falls under, or the top package of a foreign one."""
    rows = [row for row in TABLE if f"{module}.".startswith(f"{row}.")]
    return max(rows, key=len, default=module.partition(".")[0])


def needs_of(module: str) -> set[str]:
    """Return what the row of a module has to name for its imports."""
    needed = {row_of(name) for name in imports_of(module)}
    return needed - STANDARD_LIBRARY - {row_of(module)}


def test_the_table_is_read() -> None:
    """Every module of the product falls under a row, and every row has modules."""
    assert {row_of(module) for module in SOURCES} == set(TABLE)


def test_the_drawing_shows_the_table() -> None:
    """The drawing has an arrow for each of our packages that a row names; that of the command,
    which stands above all others, shows some of them only."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    names = dict(re.findall(r"^ *(\w+)\[\"<b>([\w.]+)</b>", page, re.MULTILINE))
    arrows = re.findall(r"^ *(\w+) --> (.*)$", page.partition("```\n")[0], re.MULTILINE)

    drawn = {names[left]: {names[right] for right in rest.split(" & ")} for left, rest in arrows}

    assert set(names.values()) == TABLE.keys()
    *rows, top = TABLE
    assert drawn.pop(top) < set(TABLE[top])
    assert drawn == {row: ours for row in rows if (ours := TABLE.keys() & TABLE[row])}


def test_no_row_runs_up() -> None:
    """Of our own packages a row names only those above it."""
    above: list[str] = []
    for package, names in TABLE.items():
        assert [name for name in names if name in TABLE and name not in above] == []
        above.append(package)


@pytest.mark.parametrize("module", SOURCES)
def test_imports_follow_the_table(module: str) -> None:
    """A module imports only what its package's row of the table names."""
    assert needs_of(module) <= set(TABLE[row_of(module)])


def test_the_table_names_nothing_that_is_not_needed() -> None:
    """What a row names, a module of its package imports."""
    needed: dict[str, set[str]] = {row: set() for row in TABLE}
    for module in SOURCES:
        needed[row_of(module)] |= needs_of(module)
    assert {row: set(names) for row, names in TABLE.items()} == needed


def test_no_modules_import_each_other() -> None:
    """There is no circle of imports, those inside functions and for type checking included."""
    graph = {
        module: {name for name in imports_of(module) if name in SOURCES and name != module}
        for module in SOURCES
    }
    circle: list[str] = []
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle = error.args[1]
    assert circle == []


def test_parts_of_a_driver_stand_side_by_side() -> None:
    """What makes, changes and checks volumes of a driver does not import one another."""

    def part_of(name: str) -> tuple[str, str] | None:
        found = re.match(r"fsdrivers\.(\w+)\.(mkfs|edit|check)\b", name)
        return (found[1], found[2]) if found else None

    crossing = [
        (module, name)
        for module in SOURCES
        if (part := part_of(module))
        for name in imports_of(module)
        if (other := part_of(name)) and other != part
    ]
    assert crossing == []


@pytest.mark.parametrize("module", SOURCES)
def test_no_inner_function_calls_itself(module: str) -> None:
    """It would be a cycle with all it refers to, and the collector is off where there is much."""
    inner = [
        node
        for outer in ast.walk(ast.parse(SOURCES[module].read_text()))
        if isinstance(outer, ast.FunctionDef)
        for node in ast.walk(outer)
        if isinstance(node, ast.FunctionDef) and node is not outer
    ]
    names = {
        function.name: {n.id for n in ast.walk(function) if isinstance(n, ast.Name)}
        for function in inner
    }
    assert [name for name, used in names.items() if name in used] == []


def test_helpers_of_tests_stand_in_modules_of_their_own() -> None:
    """No test module is imported: what two of them share is where one looks for it."""
    pattern = re.compile(r"^ *(?:from|import) tests\.[\w.]*\btest_\w+", re.MULTILINE)

    wrong = [path for path in (ROOT / "tests").rglob("*.py") if pattern.search(path.read_text())]

    assert wrong == []


def test_what_is_imported_is_required() -> None:
    """The distribution of everything foreign that is imported is a dependency."""
    project = SETTINGS["project"]
    declared = project["dependencies"] + project["optional-dependencies"]["image"]
    required = {re.split(r"[^\w.-]", line)[0].lower() for line in declared}
    foreign = {name for names in TABLE.values() for name in names if name not in TABLE}
    found = packages_distributions()
    assert [name for name in foreign if not required & {d.lower() for d in found[name]}] == []


def test_every_package_is_shipped() -> None:
    """A package of the tree is in the distribution, and the other way round."""
    found = {module for module, path in SOURCES.items() if path.name == "__init__.py"}
    assert set(SETTINGS["tool"]["setuptools"]["packages"]) == found
