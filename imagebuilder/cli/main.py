# SPDX-License-Identifier: Apache-2.0
"""The `rebuildkit` command; its exit codes are those of `rebuild.exit_codes`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from imagebuilder.cli.commands import add_commands
from imagebuilder.cli.common import exit_code_of, report_error, sentence_of
from imagebuilder.cli.streams import flush_output, is_reader_gone, mark_result, open_streams
from rebuild.exit_codes import ExitCode, describe

# Which module has which commands, so that only those are imported that are needed.
MODULES = {
    "imagebuilder.cli.init": {"init"},
    "imagebuilder.cli.doctor": {"doctor", "status"},
    "imagebuilder.cli.server": {"server"},
    "imagebuilder.cli.keys": {"register", "key"},
    "imagebuilder.cli.backup": {"backup", "snapshots"},
    "imagebuilder.cli.listing": {"ls", "find"},
    "imagebuilder.cli.files": {"dump"},
    "imagebuilder.cli.diff": {"diff"},
    "imagebuilder.cli.check": {"check"},
    "imagebuilder.cli.keeping": {
        "policy",
        "forget",
        "delete",
        "undelete",
        "enroll",
        "credentials",
    },
    "imagebuilder.cli.image": {"image"},
    "imagebuilder.cli.restore": {"restore", "compare", "rehearse"},
    "imagebuilder.cli.fs.main": {"fs"},
}


class _Version(argparse.Action):
    """Prints the version, which takes long to find, only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from imagebuilder.version import version

        print(f"rebuildkit {version()}")
        parser.exit()


def make_parser(typed: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Return the parser of the whole command, or of what the words that were typed need."""
    parser = argparse.ArgumentParser(
        prog="rebuildkit", description="Bare-metal recovery from one disc.", epilog=describe()
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, help="print the version of this release"
    )
    known = [module for module, names in MODULES.items() if names.intersection(typed[:1])]
    modules = map(importlib.import_module, known or MODULES)
    add_commands(parser, [row for module in modules for row in module.COMMANDS], typed, "COMMAND")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    open_streams()
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        code = _run(arguments)
        lost = flush_output()
    except KeyboardInterrupt:
        report_error("interrupted")
        return ExitCode.INTERRUPTED
    except Exception as error:  # every failure ends as one sentence and a code
        if os.environ.get("REBUILDKIT_DEBUG"):
            raise
        if not is_reader_gone(error):
            report_error(sentence_of(error))
        return exit_code_of(error)
    if lost is not None and not is_reader_gone(lost):
        report_error(f"warning: what this command says is lost: {sentence_of(lost)}")
    return code


def _run(arguments: Sequence[str]) -> int:
    try:
        args, unknown = make_parser(arguments).parse_known_args(arguments)
        if unknown:
            args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    except SystemExit:  # after a usage error, or after help, which is a result
        mark_result()
        flush_output()
        raise
    code: int = args.run(args)
    return code
