# SPDX-License-Identifier: Apache-2.0
"""Commands for recovery discs: image build, image verify, image environment."""

from __future__ import annotations

import argparse
from pathlib import Path

from imagebuilder.cli.common import (
    DAMAGED,
    DONE,
    StatusLine,
    UsageError,
    add_repository,
    choose_data_set,
    open_session,
    print_json,
)


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parsers of this module's commands."""
    image = commands.add_parser("image", help="build and check recovery discs")
    actions = image.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = actions.add_parser("build", help="build the recovery disc of a data set")
    add_repository(build)
    build.add_argument("--machine", metavar="NAME")
    build.add_argument("--data-set", metavar="ID", help="another than the newest")
    build.add_argument("-o", "--output", metavar="ISO", type=Path, required=True)
    build.add_argument("--keymap", metavar="NAME", default="", help="keyboard layout offered first")
    build.add_argument("--answers", metavar="FILE", type=Path, help="answers to the dialogue, JSON")
    build.add_argument("--label", metavar="TEXT", default="", help="a line for the disc's README")
    build.add_argument(
        "--argument",
        metavar="WORD",
        action="append",
        default=[],
        help="a word for the kernel command line, such as rebuildkit.after=reboot",
    )
    _add_compression(build)
    build.add_argument("--json", action="store_true", help="print the result as JSON")
    build.set_defaults(run=run_build)
    verify = actions.add_parser("verify", help="check every file of a disc; needs no password")
    verify.add_argument("disc", metavar="ISO", type=Path)
    verify.add_argument("--json", action="store_true", help="print the result as JSON")
    verify.set_defaults(run=run_verify)
    environment = actions.add_parser(
        "environment", help="build the boot environment now, which all discs share"
    )
    _add_compression(environment)
    environment.set_defaults(run=run_environment)


def _add_compression(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fast",
        action="store_true",
        help="compress the boot environment less: quicker to make, larger on the disc",
    )


def run_build(args: argparse.Namespace) -> int:
    """Build a disc."""
    from imagebuilder.build import build_disc
    from imagebuilder.cli.progress import BuildProgress
    from imagebuilder.disc.files import DiscOptions
    from imagebuilder.environment.build import prepare_boot_environment

    status = StatusLine()
    answers = b""
    if args.answers is not None:
        try:
            answers = args.answers.read_bytes()
        except OSError as error:
            raise UsageError(f"the answer file {args.answers}: {error.strerror}") from error
    options = DiscOptions(
        keymap=args.keymap,
        answers=answers,
        label=args.label,
        kernel_arguments=tuple(args.argument),
    )
    with open_session(args) as session:
        session.check_newest(args.machine)
        info = choose_data_set(session.repository, args.machine, args.data_set)
        try:
            environment = prepare_boot_environment(
                compression="zstd-fast" if args.fast else "zstd", progress=status.show
            )
            built = build_disc(
                session.repository,
                session.master,
                info.id,
                args.output,
                environment=environment,
                options=options,
                progress=BuildProgress(status, "Writing the disc image"),
            )
        finally:
            status.clear()
    if args.json:
        print_json(
            {
                "path": str(built.path),
                "size": built.size,
                "boot_size": built.boot_size,
                "data_set": built.data_set,
                "machine": built.machine,
                "packs": built.pack_count,
            }
        )
    else:
        print(
            f"{built.path}: {built.size / (1 << 20):,.1f} MiB, of them "
            f"{built.boot_size / (1 << 20):,.1f} MiB to boot; machine {built.machine}, "
            f"data set {built.data_set[:10]}"
        )
        print(f"Prove it before you need it: rebuildkit rehearse {built.path} --user {args.user}")
    return DONE


def run_verify(args: argparse.Namespace) -> int:
    """Check a disc's files against its manifest."""
    from imagebuilder.disc.reader import verify_disc

    status = StatusLine()
    try:
        damaged, count = verify_disc(args.disc, status.show)
    finally:
        status.clear()
    if args.json:
        print_json({"files": count, "damaged": damaged})
    else:
        for name in damaged:
            print(f"damaged: {name}")
        print(f"{count} files checked, {len(damaged)} damaged")
    return DAMAGED if damaged else DONE


def run_environment(args: argparse.Namespace) -> int:
    """Build the boot environment."""
    from imagebuilder.environment.build import prepare_boot_environment

    status = StatusLine()
    try:
        environment = prepare_boot_environment(
            compression="zstd-fast" if args.fast else "zstd", progress=status.show
        )
    finally:
        status.clear()
    print(environment.directory)
    return DONE
