# SPDX-License-Identifier: Apache-2.0
"""The `rebuildkit` command.

    rebuildkit server       serve a directory to agents and image builders
    rebuildkit register     make an id on a server
    rebuildkit backup       back a machine or its disks up
    rebuildkit snapshots    list data sets
    rebuildkit ls           list what is in a data set
    rebuildkit key          recovery keys and passwords
    rebuildkit image        build and check recovery discs
    rebuildkit restore      restore onto a disk or an image, on any Linux host
    rebuildkit compare      compare a disk with a data set, object by object
    rebuildkit rehearse     boot a disc in QEMU, restore, compare, boot the result
    rebuildkit fs           look into volumes, change, format and check them

Exit codes: 0 done; 1 another failure; 2 usage; 3 partial; 10 no such data set; 12 wrong id or
password; 20 medium incomplete or wrong; 21 object damaged; 22 target too small; 23 layout not
supported; 24 refused for safety; 25 rehearsal failed; 130 interrupted.  Unknown codes mean
failure.  `rebuildkit fs` adds its own from 4 to 9.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from imagebuilder.cli.common import INTERRUPTED, exit_code_of, report_error, sentence_of

VERSION = "0.1.0"
# Which module has which commands.  Importing all of them and describing all options would take
# a tenth of the time of a backup in which nothing changed.
BACKUP_COMMANDS = ("server", "register", "backup", "snapshots", "ls", "key")
RESTORE_COMMANDS = ("restore", "compare", "rehearse")
COMMANDS = (*BACKUP_COMMANDS, "image", *RESTORE_COMMANDS, "fs")


def make_parser(command: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of the whole command, or of what is needed for one of `COMMANDS`."""
    parser = argparse.ArgumentParser(
        prog="rebuildkit",
        description="Bare-metal recovery from one disc.",
        epilog="Exit codes: 0 done, 1 failure, 2 usage, 3 partial, 10 no such data set, "
        "12 wrong id or password, 20 medium incomplete or wrong, 21 object damaged, "
        "22 target too small, 23 layout not supported, 24 refused for safety, "
        "25 rehearsal failed, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"rebuildkit {VERSION}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    if command is None or command in BACKUP_COMMANDS:
        from imagebuilder.cli import backup as cli_backup

        cli_backup.add_parsers(commands)
    if command is None or command == "image":
        from imagebuilder.cli import image as cli_image

        cli_image.add_parsers(commands)
    if command is None or command in RESTORE_COMMANDS:
        from imagebuilder.cli import restore as cli_restore

        cli_restore.add_parsers(commands)
    if command is None or command == "fs":
        from imagebuilder.cli.fs import main as cli_fs

        cli_fs.add_parser(commands).set_defaults(run=cli_fs.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = arguments[0] if arguments and arguments[0] in COMMANDS else None
    args = make_parser(command).parse_args(arguments)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        report_error("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away; nothing more can be said there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # every failure ends as one sentence and a code
        if os.environ.get("REBUILDKIT_DEBUG"):
            raise
        report_error(sentence_of(error))
        return exit_code_of(error)
    return code
