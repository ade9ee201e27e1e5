# SPDX-License-Identifier: Apache-2.0
"""Commands for recovery discs: image build, image verify, image environment."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backup.shared.text import printable, second_text, size_text
from imagebuilder.cli.commands import Command, Group, command, flag, option
from imagebuilder.cli.common import (
    StatusLine,
    UsageError,
    json_flag,
    machine_option,
    print_json,
    warn_of_missing,
)
from imagebuilder.cli.session import OTHER_DATA_SET, Place, open_session
from rebuild.exit_codes import ExitCode

if TYPE_CHECKING:
    from backup.repository import DataSetInfo
    from imagebuilder.build import BuiltDisc, DataSource
    from imagebuilder.cli.session import Session
    from imagebuilder.disc.files import DiscOptions
    from imagebuilder.without_lost import WithoutLost

SHOWN_LOST = 20


def _fast_flag() -> bool:
    compressed: bool = flag(
        "--fast", "compress the boot environment less: quicker to make, larger on the disc"
    )
    return compressed


@dataclass(frozen=True, slots=True, kw_only=True)
class Build(Place):
    machine: str | None = machine_option("machine that the disc restores", setting="machine")
    data_set: str | None = option("--data-set ID", OTHER_DATA_SET)
    output: Path = option("-o --output ISO", "image to write", type=Path, required=True)
    keymap: str = option("--keymap NAME", "keyboard layout offered first", "")
    answers: Path | None = option(
        "--answers FILE", "JSON file with answers to the dialogue", type=Path
    )
    label: str = option("--label TEXT", "a line for the disc's README", "")
    argument: tuple[str, ...] = option(
        "--argument WORD",
        "argument for the kernel, such as rebuildkit.after=reboot; may be repeated",
        (),
    )
    without_lost: bool = flag(
        "--without-lost", "leave out what is damaged in the repository, instead of stopping"
    )
    fast: bool = _fast_flag()
    json: bool = json_flag()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verify:
    disc: Path = option("ISO", "the disc's image, or a drive", type=Path)
    json: bool = json_flag()


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    fast: bool = _fast_flag()


def run_build(options: Build) -> int:
    """Build the recovery disc of a data set. It stops at what is damaged in the repository, unless
    it is told to leave that out; the disc then says what is missing."""
    from backup.client.discs import remember_disc
    from imagebuilder.build import build_disc
    from imagebuilder.cli.progress import BuildProgress
    from imagebuilder.environment.build import prepare_boot_environment

    status = StatusLine()
    disc = _disc_options(options)
    lost: list[str] = []
    with ExitStack() as stack:
        session = stack.enter_context(open_session(options))
        info = session.choose(options.machine, options.data_set)
        source: DataSource = session.repository
        data_set = info.id
        try:
            if options.without_lost:
                left = stack.enter_context(_without_lost(session, info, status))
                lost = left.lost
                if left.damaged_packs:
                    source, data_set = left, left.data_set
            environment = prepare_boot_environment(
                compression="zstd-fast" if options.fast else "zstd", progress=status.show
            )
            built = build_disc(
                source,
                session.master,
                data_set,
                options.output,
                environment=environment,
                options=disc,
                progress=BuildProgress(status, "Writing the disc image"),
            )
            user = session.repository.user
            path, generation = built.path, built.generation
            remember_disc(session.place, user, built.machine, path, info.id, generation)
        finally:
            status.clear()
    if options.json:
        print_json(
            {
                "path": str(built.path),
                "size": built.size,
                "boot_size": built.boot_size,
                "data_set": built.data_set,
                "machine": built.machine,
                "generation": built.generation,
                "created_ns": built.created_ns,
                "packs": built.pack_count,
                "lost": lost,
                "missing": built.missing,
            }
        )
    else:
        _print_built(built, lost, options.user)
    code = warn_of_missing(built.missing)
    return ExitCode.PARTIAL if lost else code


def _disc_options(options: Build) -> DiscOptions:
    from imagebuilder.disc.files import DiscOptions

    answers = b""
    if options.answers is not None:
        try:
            answers = options.answers.read_bytes()
        except OSError as error:
            raise UsageError(
                f"cannot read the answer file {options.answers}: {error.strerror}"
            ) from error
    return DiscOptions(
        keymap=options.keymap,
        answers=answers,
        label=options.label,
        kernel_arguments=tuple(options.argument),
    )


def _print_built(built: BuiltDisc, lost: Sequence[str], user: str) -> None:
    print(
        f"{built.path}: {size_text(built.size)}, of them "
        f"{size_text(built.boot_size)} to boot; machine {built.machine}, "
        f"backup {built.generation} of {second_text(built.created_ns // 10**9)} UTC, "
        f"data set {built.data_set[:10]}"
    )
    for name in lost[:SHOWN_LOST]:
        print(f"lost: {printable(name)}")
    if len(lost) > SHOWN_LOST:
        print(f"and {len(lost) - SHOWN_LOST:,} more; the report of a restore counts them")
    print(f"Prove it before you need it: rebuildkit rehearse {built.path} --user {user}")


def _without_lost(session: Session, info: DataSetInfo, status: StatusLine) -> WithoutLost:
    """Return what is left of a data set."""
    from imagebuilder.repository_medium import RepositoryMedium
    from imagebuilder.without_lost import WithoutLost

    def show(done: int, whole: int) -> None:
        status.show(f"{100 * done // max(whole, 1):>3}% looking for what is lost")

    medium = RepositoryMedium(session.repository, session.master, info.id, session.place)
    return WithoutLost(session.repository, medium, session.master, show)


def run_verify(options: Verify) -> int:
    """Check every file of a disc; needs no password."""
    from rebuild.disc_image import verify_disc

    status = StatusLine()
    try:
        damaged, count = verify_disc(options.disc, status.show)
    finally:
        status.clear()
    if options.json:
        print_json({"files": count, "damaged": damaged})
    else:
        for name in damaged:
            print(f"damaged: {name}")
        print(f"{count} files checked, {len(damaged)} damaged")
    return ExitCode.DAMAGED if damaged else ExitCode.DONE


def run_environment(options: Environment) -> int:
    """Build the boot environment now, which all discs share."""
    from imagebuilder.environment.build import prepare_boot_environment

    status = StatusLine()
    try:
        environment = prepare_boot_environment(
            compression="zstd-fast" if options.fast else "zstd", progress=status.show
        )
    finally:
        status.clear()
    print(environment.directory)
    return ExitCode.DONE


COMMANDS: Sequence[Command | Group] = (
    Group(
        "image",
        "Build and check recovery discs.",
        (
            command("build", Build, run_build),
            command("verify", Verify, run_verify),
            command("environment", Environment, run_environment),
        ),
    ),
)
