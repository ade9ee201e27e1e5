# SPDX-License-Identifier: Apache-2.0
"""The command that sets a machine up once: init."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backup.shared.text import plural, printable, reason_of
from imagebuilder.cli.commands import Command, Group, command, flag, option
from imagebuilder.cli.common import RefusedError, UsageError, confirm, name_of_text, report_error
from imagebuilder.cli.settings import profile_path, write_profile
from rebuild.exit_codes import ExitCode

if TYPE_CHECKING:
    from imagebuilder.cli.session import Place

NEXT_STEPS = """Next:
  1. rebuildkit backup                      back this machine up, as root; then every night
  2. rebuildkit image build -o rescue.iso   make the disc that brings it back
  3. rebuildkit rehearse rescue.iso         prove the disc before you need it"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Init:
    server: str | None = option("--server URL", "a server: https://host:8443", group="place")
    store: Path | None = option(
        "--store DIR", "a store's directory in place of a server", type=Path, group="place"
    )
    fingerprint: str | None = option(
        "--fingerprint FP", "fingerprint of the server's certificate, as the server prints it"
    )
    user: str | None = option("--user ID", "the id", type=name_of_text)
    machine: str | None = option(
        "--machine NAME", "name of this machine (default: its host name)", type=name_of_text
    )
    password_file: Path | None = option(
        "--password-file FILE",
        "its first line is the password; it is remembered, so that backups run by themselves",
        type=Path,
    )
    new: bool = flag("--new", "make the id, as `rebuildkit register` does")
    invitation: str | None = option(
        "--invitation TOKEN", "what the server's operator gave you, if registration is closed"
    )
    replace: bool = flag("--replace", "replace the profile that there is")


def run_init(options: Init) -> int:
    """Set this machine up once, so that the other commands need no options. On a terminal it asks
    for what is missing."""
    from imagebuilder.cli.keys import Register, run_register
    from imagebuilder.cli.session import Place, canonical_fingerprint, open_session

    path = profile_path()
    if path.exists() and not options.replace and not confirm(f"{path} exists. Replace it?"):
        raise RefusedError(f"{path} was not changed: use --replace to replace it")
    server, store = _place(options)
    fingerprint = canonical_fingerprint(options.fingerprint)
    if server and not fingerprint:
        fingerprint = _confirmed_fingerprint(server)
    user = options.user or _ask_name("Id that the backups belong to", "--user")
    machine = options.machine or _ask_name(
        "Name of this machine in the backups", "--machine", socket.gethostname()
    )
    place = Place(
        server=server,
        store=store,
        fingerprint=fingerprint,
        user=user,
        password_file=None if options.password_file is None else str(options.password_file),
    )
    if options.new or (sys.stdin.isatty() and confirm(f"Is {user} a new id, to be made now?")):
        register = Register(
            server=server,
            store=store,
            fingerprint=fingerprint,
            user=user,
            password_file=place.password_file,
            invitation=options.invitation,
        )
        run_register(register)
    else:
        with open_session(place) as session:
            found = plural(len(session.repository.data_sets(machine)), "backup")
        print(f"The password is right; there are {found} of {machine}.")
    write_profile(path, _profile_of(place, machine))
    print(f"{path} remembers where the backups go, the id and this machine's name.")
    _say_what_cannot_be_recovered()
    if os.geteuid():
        print("It is yours alone. Backups of the running machine need root: `sudo rebuildkit init`")
        print("makes a profile for all users of this machine.")
    print(NEXT_STEPS)
    return ExitCode.DONE


def _place(options: Init) -> tuple[str | None, Path | None]:
    """Return the server or the store."""
    if options.server or options.store:
        return options.server, options.store
    answer = _ask("Where do the backups go? A server (https://host:8443) or a directory", "--store")
    if "://" in answer:
        return answer, None
    return None, Path(answer)


def _ask_name(question: str, name: str, default: str = "") -> str:
    """Return the name that a person answers, in its normal form.

    Raises:
        UsageError: as `_ask`, or it cannot be a name.
    """
    try:
        return name_of_text(_ask(question, name, default))
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"{name}: {error}") from error


def _ask(question: str, name: str, default: str = "") -> str:
    """Return what a person answers.

    Raises:
        UsageError: nobody can be asked, or there was no answer.
    """
    answer = ""
    if sys.stdin.isatty():
        answer = input(f"{question}{f' [{default}]' if default else ''}: ").strip()
    elif not default:
        raise UsageError(f"{name} is missing: give it, or run this on a terminal")
    if not (answer or default):
        raise UsageError(f"{name} is missing")
    return answer or default


def _confirmed_fingerprint(server: str) -> str | None:
    """Have a person compare the fingerprint of a server; None if authorities vouch for it.

    Raises:
        UsageError: nobody can be asked, or the server cannot be reached.
        RefusedError: it is not the right one.
    """
    from backup.client.certificate import is_vouched_for, seen_fingerprint

    try:
        if server.startswith("http://") or is_vouched_for(server):
            return None
        seen = seen_fingerprint(server)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"the server {printable(server)} cannot be reached: {reason_of(error)}"
        ) from error
    if not sys.stdin.isatty():
        raise UsageError(
            f"compare the server's fingerprint and give it: --fingerprint {seen} is what it shows"
        )
    print("The server shows a certificate with this fingerprint:")
    print(f"  {seen}")
    print("It must be the one that `rebuildkit server` printed when it started.")
    if not confirm("Is it the same?"):
        raise RefusedError("nothing was set up: this is not the server that was meant")
    return seen


def _profile_of(place: Place, machine: str) -> dict[str, str]:
    """Return the settings to remember; paths from the root, as commands run anywhere."""
    return {
        "server": place.server or "",
        "store": str(place.store.absolute()) if place.store else "",
        "fingerprint": place.fingerprint or "",
        "user": place.user,
        "machine": machine,
        "password_file": str(Path(place.password_file).absolute()) if place.password_file else "",
    }


def _say_what_cannot_be_recovered() -> None:
    """Warn of what on this machine a backup would refuse; only root can look."""
    from imagebuilder.cli.doctor import unrecoverable_parts

    if os.geteuid() == 0:
        for problem in unrecoverable_parts():
            report_error(f"warning: {problem}")


COMMANDS: Sequence[Command | Group] = (command("init", Init, run_init),)
