# SPDX-License-Identifier: Apache-2.0
"""The table of commands: every option explains itself, errors show the usage that was typed."""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagebuilder.cli.main import MODULES, main, make_parser

ROOT = Path(__file__).resolve().parents[3]


def iter_parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield a parser and those of its commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from iter_parsers(below)


PARSERS = {parser.prog: parser for parser in iter_parsers(make_parser())}


@pytest.mark.parametrize("parser", PARSERS.values(), ids=PARSERS)
def test_everything_has_help(parser: argparse.ArgumentParser) -> None:
    """Every command says what it does, and every option what it is for, in text that formats."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            listed = {choice.dest for choice in action._choices_actions if choice.help}
            assert listed == set(action.choices)
        else:
            assert action.help, action.option_strings or action.dest
    assert parser.description
    assert parser.format_help()


def test_modules_name_their_commands() -> None:
    """What the first word selects is what the modules have."""
    (actions,) = (
        action
        for action in make_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )

    assert set().union(*MODULES.values()) == set(actions.choices)


@pytest.mark.parametrize(
    ("arguments", "prog"),
    [
        (["nonsense"], "rebuildkit"),
        (["--nonsense"], "rebuildkit"),
        (["backup"], "rebuildkit backup"),
        (["image", "verify", "x.iso", "--nonsense"], "rebuildkit image verify"),
        (["image", "verify", "x.iso", "y.iso"], "rebuildkit image verify"),
        (["key"], "rebuildkit key"),
        (["key", "nonsense"], "rebuildkit key"),
        (["fs"], "rebuildkit fs"),
        (["fs", "ls", "x.img", "--nonsense"], "rebuildkit fs ls"),
        (["fs", "find", "x.img", "a", "/b", "/c"], "rebuildkit fs find"),
        (["fs", "mkfs", "x.img", "--like", "a", "--type", "ntfs"], "rebuildkit fs mkfs"),
    ],
    ids=" ".join,
)
def test_usage_errors_show_the_usage_of_what_was_typed(
    arguments: list[str], prog: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command line that cannot be right is answered with the usage of its command."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)

    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"usage: {prog} [")
    assert said.splitlines()[-1].startswith(f"{prog}: error: ")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("localhost", ("localhost", 8443)),
        ("[::1]", ("::1", 8443)),
        ("[::]:99", ("::", 99)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),
    ],
)
def test_addresses_to_listen_on(text: str, address: tuple[str, int]) -> None:
    """`server --listen` takes every form of address that the server understands."""
    args = make_parser(["server"]).parse_args(["server", "--data", "x", "--listen", text])

    assert args.listen == address


def test_an_address_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    """Anything else is a usage error."""
    with pytest.raises(SystemExit) as caught:
        main(["server", "--data", "x", "--listen", "host:port"])

    assert caught.value.code == 2
    assert "HOST:PORT" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` prints the version that the package was installed with."""
    with pytest.raises(SystemExit) as caught:
        main(["--version"])

    assert caught.value.code == 0
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert capsys.readouterr().out == f"rebuildkit {settings['project']['version']}\n"
