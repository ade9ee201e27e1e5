# SPDX-License-Identifier: Apache-2.0
"""What the README promises is what the Makefile does."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from imagebuilder.cli.commands import Group
from imagebuilder.cli.fs.main import COMMANDS
from imagebuilder.cli.main import MODULES, make_parser
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


def test_pictures_are_small() -> None:
    """The README shows every picture of docs/pictures; they have palettes and are below 60 KB."""
    pictures = sorted((ROOT / "docs" / "pictures").glob("*.png"))
    with_palette = 3  # colour type, the tenth byte of the header's body

    assert pictures
    for path in pictures:
        assert f"docs/pictures/{path.name}" in (ROOT / "README.md").read_text()
        data = path.read_bytes()
        assert data[25] == with_palette
        assert len(data) < 60_000


def test_commands_exist() -> None:
    """Every `make` command that the README shows is a target."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    shown = set(re.findall(r"make ([a-z]+) +#|`make ([a-z]+)`", (ROOT / "README.md").read_text()))

    assert {name for pair in shown for name in pair if name} - targets == set()


def test_exit_codes_are_those_of_the_product() -> None:
    """The README's table of exit codes says what the product's own table says."""
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)

    assert rows == [(str(code.value), code.meaning) for code in ExitCode]


FENCED = re.findall(
    r"^```(\w*)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
)
SHOWN = "".join(text for language, text in FENCED if not language)


@pytest.mark.parametrize("line", re.findall(r"^rebuildkit .*$", SHOWN, re.MULTILINE))
def test_commands_are_taken(line: str) -> None:
    """Every `rebuildkit` command line that the README shows is one the command takes."""
    words = shlex.split(line, comments=True)[1:]

    assert make_parser(words[0]).parse_args(words).run


PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every link and picture of a page is a file of the tree, and its anchor a heading there."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        assert not anchor or anchor in anchors_of(path), target


def anchors_of(page: Path) -> set[str]:
    """Return what a forge calls the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_exist(page: Path) -> None:
    """Every path of the tree that a page names is there."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    tops = "backup|docs|fsdrivers|imagebuilder|rebuild|templates|tests|vm"
    for name in re.findall(rf"`((?:{tops})/[\w./-]*)`", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_tests_exist(page: Path) -> None:
    """Every test that a page names is in the file that it names with the whole path."""
    for name, _, function in re.findall(r"`([\w./-]*test_\w+\.py)(::)?(\w*)`", page.read_text()):
        path = ROOT / name
        assert path.is_file(), name
        if function:
            definition = rf"^ *(?:async )?def {function}\("
            assert re.search(definition, path.read_text(), re.MULTILINE), f"{name}::{function}"


@pytest.mark.parametrize("page", [ROOT / "docs" / "threat-model.md", ROOT / "docs" / "http-api.md"])
def test_promises_name_their_tests(page: Path) -> None:
    """Each chapter that promises something says what holds it."""
    for chapter in re.split(r"^## ", page.read_text(), flags=re.MULTILINE)[1:]:
        title = chapter.partition("\n")[0]
        assert "`tests/" in chapter or title == "Left open", title


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_commands_exist(page: Path) -> None:
    """Every command that a page names as `rebuildkit COMMAND` exists."""
    known = {name for names in MODULES.values() for name in names}

    named = set(re.findall(r"`rebuildkit ([a-z]+)", page.read_text()))

    assert named - known == set()


def test_verbs_are_listed() -> None:
    """The page of filesystems lists every verb of `rebuildkit fs`, and no other."""
    page = (ROOT / "docs" / "filesystems" / "README.md").read_text()
    table = page.partition("| verb | does |")[2].partition("\n\n")[0]
    listed = [re.findall(r"`([a-z-]+)`", row.split("|")[1]) for row in table.splitlines()[2:]]
    (group,) = COMMANDS
    assert isinstance(group, Group)

    assert {verb for row in listed for verb in row} == {row.name for row in group.commands}
