# SPDX-License-Identifier: Apache-2.0
"""Commands as rows of a table, and their options as frozen dataclasses.

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Remove(Volume):
        paths: tuple[str, ...] = option("PATH", "what to remove", nargs="+")
        recursive: bool = flag("-r --recursive", "remove directories and all below them")

    COMMANDS = (command("remove", Remove, remove),)

One line makes an option of the parser, its help and the typed value; one row makes a command, which
says of itself what the docstring of its function says.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

from imagebuilder.cli.settings import find_settings
from imagebuilder.cli.streams import mark_result

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = TypeVar("Options", bound="DataclassInstance")


def option(
    usage: str,
    text: str,
    default: object = None,
    group: str = "",
    setting: str = "",
    **settings: Any,
) -> Any:
    """Return a field that is an option.

    Args:
        usage: as help shows it: "-o --output FILE", or "FILE" for a positional argument.
        text: what it does.
        default: a tuple where the option may be repeated.
        group: of the options with the same one, only one may be given; with a "!" behind, one must.
        setting: where it is not typed it may come from elsewhere, see `settings`, by this name.
        settings: more of `argparse.ArgumentParser.add_argument`.
    """
    *names, last = usage.split()
    if last.startswith("-"):
        names.append(last)
    else:
        settings["metavar"] = last
    if names and isinstance(default, tuple):
        settings["action"] = "append"
    metadata = {"names": names, "group": group, "help": text, "setting": setting, **settings}
    return field(default=default, metadata=metadata)


def flag(usage: str, text: str) -> Any:
    """Return a field that is an option without a value."""
    return option(usage, text, False, action="store_true")


@dataclass(frozen=True, slots=True)
class Command:
    """A row of a table of commands."""

    name: str
    about: str  # a paragraph; its first sentence is the help in a list of commands
    options: type[DataclassInstance]
    run: Callable[[argparse.Namespace], int]


@dataclass(frozen=True, slots=True)
class Group:
    """A row for a command whose actions are commands of their own."""

    name: str
    about: str
    commands: Sequence[Command]
    epilog: str | None = None
    parser_class: type[argparse.ArgumentParser] = argparse.ArgumentParser
    plain: Command | None = None  # what the group does without an action


def command(
    name: str,
    options: type[Options],
    run: Callable[[Options], int],
    *,
    is_listing: bool = False,
) -> Command:
    """Return the row of a command.

    Args:
        name: what is typed.
        options: dataclass of its options.
        run: takes them, returns the exit code; its docstring begins with what the command does.
        is_listing: what it prints is its result, so it fails where that cannot be written.
    """

    def run_parsed(args: argparse.Namespace) -> int:
        if is_listing:
            mark_result()
        values = {item.name: getattr(args, item.name) for item in fields(options)}
        _complete(values, options, args.parser)
        listed = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return run(options(**(values | listed)))

    about = " ".join((run.__doc__ or "").partition("\n\n")[0].split())
    return Command(name, about, options, run_parsed)


def _complete(
    values: dict[str, Any], options: type[DataclassInstance], parser: argparse.ArgumentParser
) -> None:
    """Add what was not typed and is known from elsewhere; end with a usage error without it."""
    by_setting = {item.metadata["setting"]: item for item in fields(options)}
    by_setting.pop("", None)
    if not by_setting:
        return
    typed = {name: str(values[item.name]) for name, item in by_setting.items() if values[item.name]}
    for name, text in find_settings(typed, by_setting).items():
        item = by_setting[name]
        try:
            values[item.name] = item.metadata.get("type", str)(text)
        except argparse.ArgumentTypeError as error:
            parser.error(f"{name} in the environment or the profile: {error}")
    groups: dict[str, list[str]] = {}
    for item in by_setting.values():
        if item.metadata.get("required") and not values[item.name]:
            _require(parser, "the following arguments are required", item.metadata["names"])
        if item.metadata["group"].endswith("!"):
            groups.setdefault(item.metadata["group"], []).append(item.name)
    for names in groups.values():
        if not any(values[name] for name in names):
            missing = [f"--{name}" for name in names]
            _require(parser, "one of the arguments is required", missing)


def _require(parser: argparse.ArgumentParser, text: str, names: Sequence[str]) -> None:
    parser.error(f"{text}: {' '.join(names)} (`rebuildkit init` remembers it)")


def add_commands(
    parser: argparse.ArgumentParser,
    rows: Sequence[Command | Group],
    typed: Sequence[str] = (),
    metavar: str = "ACTION",
    parser_class: type[argparse.ArgumentParser] = argparse.ArgumentParser,
) -> None:
    """Add a parser for each row; what it parses has `run`, and `parser` to report errors with.

    Only the row that the first word of `typed` names is added, if it names one: describing all
    options would take a tenth of the time of a backup in which nothing changed.
    """
    is_needed = parser.get_default("run") is None
    actions = parser.add_subparsers(metavar=metavar, required=is_needed, parser_class=parser_class)
    for row in [row for row in rows if row.name in typed[:1]] or rows:
        text = row.about.partition(". ")[0].rstrip(".")
        text, epilog = text[:1].lower() + text[1:], None if isinstance(row, Command) else row.epilog
        # Where -h is for sizes, as in coreutils, help has --help alone.
        made = actions.add_parser(
            row.name, help=text, description=row.about, epilog=epilog, conflict_handler="resolve"
        )
        if isinstance(row, Group):
            if row.plain is not None and typed[1:2] not in [[c.name] for c in row.commands]:
                _add_options(made, row.plain.options)
                made.set_defaults(run=row.plain.run, parser=made)
            add_commands(made, row.commands, typed[1:], parser_class=row.parser_class)
        else:
            _add_options(made, row.options)
            made.set_defaults(run=row.run, parser=made)


def _add_options(parser: argparse.ArgumentParser, options: type[DataclassInstance]) -> None:
    groups: dict[str, argparse._MutuallyExclusiveGroup] = {}
    for item in fields(options):
        settings = dict(item.metadata)
        names, group = settings.pop("names"), settings.pop("group")
        if settings.pop("setting"):
            settings.pop("required", None)  # once it is known what the profile says
        if group and group not in groups:
            is_required = group.endswith("!") and not item.metadata["setting"]
            groups[group] = parser.add_mutually_exclusive_group(required=is_required)
        default = [] if item.default == () else item.default
        if names:
            settings["dest"] = item.name
        place = groups[group] if group else parser
        place.add_argument(*(names or (item.name,)), default=default, **settings)
