# SPDX-License-Identifier: Apache-2.0
"""Commands for what opens the backups: register, key."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from imagebuilder.cli.commands import Command, Group, command, flag, option
from imagebuilder.cli.common import (
    RefusedError,
    check_new_password,
    confirm,
    read_new_password,
    read_password,
)
from imagebuilder.cli.session import Place, open_host, open_session
from rebuild.exit_codes import ExitCode


@dataclass(frozen=True, slots=True, kw_only=True)
class Register(Place):
    invitation: str | None = option(
        "--invitation TOKEN", "what the server's operator gave you, if registration is closed"
    )
    recovery_key: bool = flag(
        "--recovery-key", "make a recovery key as well and print it; on a terminal it is asked"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPassword(Place):
    new_password_file: str | None = option(
        "--new-password-file FILE", "its first line is the new one"
    )


def run_register(options: Register) -> int:
    """Make an id on a server or in a store, with a new master key. A store is made if need be."""
    from backup.objects.keys import add_recovery_key, create_key_file

    password = read_password(options, is_new=True)
    check_new_password(password, options.user)
    made = create_key_file(options.user, password)
    data, text = made.data, ""
    if options.recovery_key or _wants_recovery_key():
        data, text = add_recovery_key(data, made.master)
    host = open_host(options, create=True)
    try:
        host.register(options.user, data, made.login_secret, options.invitation)
    finally:
        host.close()
    print(f"Registered {options.user}. Nobody, not even the server, can read the backups without")
    print("the password or a recovery key.")
    if text:
        print()
        _print_recovery_key(text)
    else:
        print(
            "`rebuildkit key export` makes a recovery key, for the day the password is forgotten."
        )
    return ExitCode.DONE


def _wants_recovery_key() -> bool:
    if not sys.stdin.isatty():
        return False
    print("If the password is ever forgotten, only a recovery key opens the backups: 40 characters")
    print("to print, and to keep away from this machine and from the discs.")
    return confirm("Make one now?")


def _print_recovery_key(text: str) -> None:
    """Print a recovery key, and say where its place is."""
    print("Recovery key. Whoever has it can open the backups and every disc built from now on.")
    print("Print it, keep it in a safe place, and do not keep it on this machine.")
    print()
    print(f"    {text}")


def run_key_export(options: Place) -> int:
    """Print a new recovery key, which opens what the password opens."""
    from backup.objects.keys import add_recovery_key

    with open_session(options) as session:
        old = session.repository.key_file()
        data, text = add_recovery_key(old, session.master)
        session.repository.replace_key_file(data, expected=old)
    _print_recovery_key(text)
    return ExitCode.DONE


def run_key_passwd(options: NewPassword) -> int:
    """Change the password, with it or a recovery key; existing discs keep the old one."""
    from backup.objects.keys import change_password

    with open_session(options) as session:
        old = session.repository.key_file()
        password = read_new_password(options.new_password_file, options.user)
        data, login_secret = change_password(old, session.master, options.user, password)
        session.repository.replace_key_file(data, new_login_secret=login_secret, expected=old)
    print("The password is changed. Existing discs still open with the old one.")
    return ExitCode.DONE


def run_key_revoke(options: Place) -> int:
    """Make all recovery keys void, for the repository and for new discs."""
    from backup.objects.keys import remove_recovery_keys

    with open_session(options) as session:
        if session.is_recovered:
            raise RefusedError(
                "nothing was changed: this needs the password, for without it and without a "
                "recovery key nobody could open the backups; `rebuildkit key passwd` sets a new one"
            )
        old = session.repository.key_file()
        session.repository.replace_key_file(remove_recovery_keys(old, session.master), expected=old)
    print("The old recovery keys open neither the backups nor new discs. Existing discs still open")
    print("with them.")
    return ExitCode.DONE


COMMANDS: Sequence[Command | Group] = (
    command("register", Register, run_register),
    Group(
        "key",
        "Manage recovery keys and passwords.",
        (
            command("export", Place, run_key_export, is_listing=True),
            command("passwd", NewPassword, run_key_passwd),
            command("revoke", Place, run_key_revoke),
        ),
    ),
)
