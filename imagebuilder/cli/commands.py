# SPDX-License-Identifier: Apache-2.0
"""Commands as rows of a table, and their options as frozen dataclasses.

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Remove(Volume):
        paths: tuple[str, ...] = option("PATH", "what to remove", nargs="+")
        recursive: bool = flag("-r --recursive", "remove directories and all below them")

One line makes an option of the parser, its help and the typed value; one row makes a command.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = TypeVar("Options", bound="DataclassInstance")


def option(usage: str, help: str, default: object = None, group: str = "", **settings: Any) -> Any:
    """Return a field that is an option.

    Args:
        usage: as help shows it: "-o --output FILE", or "FILE" for a positional argument.
        help: what it does.
        default: a tuple where the option may be repeated.
        group: of the options with the same one, only one may be given; with a "!" behind, one must.
        settings: more of `argparse.ArgumentParser.add_argument`.
    """
    *names, last = usage.split()
    if last.startswith("-"):
        names.append(last)
    else:
        settings["metavar"] = last
    if names and isinstance(default, tuple):
        settings["action"] = "append"
    metadata = {"names": names, "group": group, "help": help, **settings}
    return field(default=default, metadata=metadata)


def flag(usage: str, help: str) -> Any:
    """Return a field that is an option without a value."""
    return option(usage, help, False, action="store_true")


@dataclass(frozen=True, slots=True)
class Command:
    """A row of a table of commands."""

    name: str
    help: str  # a sentence without capital letter and full stop
    options: type[DataclassInstance]
    run: Callable[[argparse.Namespace], int]
    about: str = ""  # more for the command's own help


@dataclass(frozen=True, slots=True)
class Group:
    """A row for a command whose actions are commands of their own."""

    name: str
    help: str
    commands: Sequence[Command]
    epilog: str = ""
    parser_class: type[argparse.ArgumentParser] = argparse.ArgumentParser


def command(
    name: str, help: str, options: type[Options], run: Callable[[Options], int], about: str = ""
) -> Command:
    """Return the row of a command; `run` takes its options and returns the exit code."""

    def run_parsed(args: argparse.Namespace) -> int:
        values = {item.name: getattr(args, item.name) for item in fields(options)}
        listed = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return run(options(**(values | listed)))

    return Command(name, help, options, run_parsed, about)


def add_commands(
    parser: argparse.ArgumentParser,
    rows: Sequence[Command | Group],
    metavar: str = "ACTION",
    parser_class: type[argparse.ArgumentParser] = argparse.ArgumentParser,
) -> None:
    """Add a parser for each row; what it parses has `run`, and `parser` to report errors with."""
    actions = parser.add_subparsers(metavar=metavar, required=True, parser_class=parser_class)
    for row in rows:
        about = f"{row.help[0].upper()}{row.help[1:]}."
        if isinstance(row, Group):
            made = actions.add_parser(
                row.name, help=row.help, description=about, epilog=row.epilog or None
            )
            add_commands(made, row.commands, parser_class=row.parser_class)
            continue
        made = actions.add_parser(row.name, help=row.help, description=f"{about} {row.about}")
        _add_options(made, row.options)
        made.set_defaults(run=row.run, parser=made)


def _add_options(parser: argparse.ArgumentParser, options: type[DataclassInstance]) -> None:
    groups: dict[str, argparse._MutuallyExclusiveGroup] = {}
    for item in fields(options):
        settings = dict(item.metadata)
        names, group = settings.pop("names"), settings.pop("group")
        if group and group not in groups:
            groups[group] = parser.add_mutually_exclusive_group(required=group.endswith("!"))
        default = [] if item.default == () else item.default
        if names:
            settings["dest"] = item.name
        place = groups[group] if group else parser
        place.add_argument(*(names or (item.name,)), default=default, **settings)
