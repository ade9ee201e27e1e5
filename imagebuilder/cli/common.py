# SPDX-License-Identifier: Apache-2.0
"""What the commands share: errors and exit codes, values of options, passwords, progress, JSON."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backup.shared.text import missing_text, printable
from imagebuilder.cli.commands import flag, option
from rebuild.exit_codes import ExitCode

if TYPE_CHECKING:
    from backup.retention import Policy

SIZE = re.compile(
    r"(\d+|\d{1,3}(?:,\d{3})+)(\.\d+)?\s*(?:([KMGT]?)(?:iB|B)?|bytes?)", re.IGNORECASE
)
SIZE_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
MAXIMUM_SIZE = (1 << 63) - 1  # bytes: off_t
MAXIMUM_SIZE_LENGTH = 40  # characters
DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)", re.IGNORECASE)
DURATION_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
LONGEST_S = 36_525 * 86400.0  # 100 years: longer times do not fit into the store's nanoseconds
STATUS_INTERVAL_S = 0.2
OWN_PACKAGES = ("backup", "fsdrivers", "imagebuilder", "rebuild", "templates", "vm")


class UsageError(Exception):
    """The command cannot be carried out as it was given."""


class RefusedError(Exception):
    """Nobody confirmed what cannot be done without."""


def exit_code_of(error: BaseException) -> ExitCode:
    """Return the documented exit code of an error; 1 for one without a code of its own."""
    from backup.agent.errors import NotRecoverableError
    from backup.repository import (
        DamagedDataSetError,
        NoSuchDataSetError,
        NotAuthorisedError,
        NotPermittedError,
    )
    from imagebuilder.cli.machine_file import MachineFileError
    from imagebuilder.cli.settings import ProfileError
    from imagebuilder.errors import DiscPlanError
    from rebuild.restore import EXIT_CODES

    table: dict[type[BaseException], ExitCode] = {
        UsageError: ExitCode.USAGE,
        EOFError: ExitCode.USAGE,
        MachineFileError: ExitCode.USAGE,
        ProfileError: ExitCode.USAGE,
        RefusedError: ExitCode.UNSAFE,
        NotPermittedError: ExitCode.UNSAFE,
        DiscPlanError: ExitCode.USAGE,
        NotRecoverableError: ExitCode.LAYOUT,
        DamagedDataSetError: ExitCode.DAMAGED,
        NoSuchDataSetError: ExitCode.NO_DATA_SET,
        NotAuthorisedError: ExitCode.WRONG_PASSWORD,
        **EXIT_CODES,
    }
    codes = (code for kind, code in table.items() if isinstance(error, kind))
    return next(codes, ExitCode.FAILED)


def sentence_of(error: BaseException) -> str:
    """Return an error as one sentence for a person; with its kind if nobody foresaw it."""
    if isinstance(error, EOFError):
        return "a question was not answered: the input has ended"
    if isinstance(error, OSError) and error.strerror:
        if error.filename is None:
            return error.strerror
        name = os.fsdecode(error.filename) if not isinstance(error.filename, int) else "file"
        return f"{name}: {error.strerror}"
    text, kind = " ".join(str(error).split()), type(error)
    if exit_code_of(error) == ExitCode.WRONG_PASSWORD:
        text = "; ".join((text, *(f"perhaps {note}" for note in getattr(error, "__notes__", ()))))
    is_foreseen = isinstance(error, OSError) or kind.__module__.partition(".")[0] in OWN_PACKAGES
    if not text or is_foreseen:
        return text or kind.__name__
    return f"unforeseen {kind.__name__}: {text}"


def report_error(text: str) -> None:
    """Write one line to standard error."""
    print(f"rebuildkit: {text}", file=sys.stderr)


def print_json(value: object) -> None:
    """Write a result as JSON; bytes of a name that are not UTF-8 as \\udcNN."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, default=_plain)
    print(text.encode("utf-8", "backslashreplace").decode())


def _plain(value: object) -> object:
    return value.hex() if isinstance(value, bytes) else str(value)


def size_of_text(text: str) -> int:
    """Return bytes for "4G", "512MiB", "1000000", and what sizes are printed as; for argparse.

    Raises:
        argparse.ArgumentTypeError: it is not a size, it is 0, or no file can be so large.
    """
    match = SIZE.fullmatch(text.strip()) if len(text) <= MAXIMUM_SIZE_LENGTH else None
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size (expected 4G, 512M or bytes)")
    unit = SIZE_UNITS[(match[3] or "").upper()]
    size = int(match[1].replace(",", "")) * unit + int(float(match[2] or 0) * unit)
    if not size:
        raise argparse.ArgumentTypeError(f"the size must be larger than 0, not {text!r}")
    if size > MAXIMUM_SIZE:
        raise argparse.ArgumentTypeError(f"{text} is more than any disk or file can have (8 EiB)")
    return size


def name_of_text(text: str) -> str:
    """Return the name of an id or a machine in its normal form; for argparse.

    Raises:
        argparse.ArgumentTypeError: it cannot be a name.
    """
    from backup.repository import InvalidRequestError, normalise_name

    try:
        return normalise_name(text, "valid")
    except InvalidRequestError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def machine_option(text: str, usage: str = "--machine NAME", **settings: Any) -> Any:
    """Return the option that names a machine."""
    return option(usage, text, type=name_of_text, **settings)


def seconds_of_text(text: str) -> float:
    """Return seconds for "90", "30s", "5m", "2h", "1d"; for argparse.

    Raises:
        argparse.ArgumentTypeError: it is not a length of time, or it is more than 100 years.
    """
    match = DURATION.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a length of time; write 90s, 5m or 2h")
    seconds = float(match[1]) * DURATION_UNITS_S[match[2].lower()]
    if seconds > LONGEST_S:
        raise argparse.ArgumentTypeError(f"{text!r} is too long: 100 years are the most")
    return seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Options for id and password; a recovery key does all that the password does."""

    user: str = option("--user ID", "the id", setting="user", type=name_of_text, required=True)
    password_file: str | None = option(
        "--password-file FILE",
        "its first line is the password or a recovery key; else REBUILDKIT_PASSWORD_FILE, "
        "REBUILDKIT_PASSWORD_COMMAND, or a prompt",
        setting="password_file",
    )


def policy_of(**rules: int | str) -> Policy:
    """Return a retention policy.

    Raises:
        UsageError: these rules cannot be meant.
    """
    from backup.retention import Policy, PolicyError

    try:
        return Policy.of(rules)
    except PolicyError as error:
        raise UsageError(str(error)) from error


def json_flag() -> bool:
    """Return the option that most commands have."""
    printed: bool = flag("--json", "print the result as JSON")
    return printed


def read_password(credentials: Credentials, *, is_new: bool = False) -> str:
    """Return the password from the first of its sources that is set.

    `is_new`: it is chosen now, so one that is typed is typed twice.

    Raises:
        UsageError: no source is set, and nobody can be asked.
    """
    path = credentials.password_file or os.environ.get("REBUILDKIT_PASSWORD_FILE")
    if path:
        return _read_password_file(path)
    command = os.environ.get("REBUILDKIT_PASSWORD_COMMAND")
    if command:
        import subprocess

        done = subprocess.run(command, shell=True, stdout=subprocess.PIPE, check=False)
        if done.returncode:
            raise UsageError(f"REBUILDKIT_PASSWORD_COMMAND ended with exit code {done.returncode}")
        return _first_line(done.stdout, "what REBUILDKIT_PASSWORD_COMMAND prints")
    prompt = "New password: " if is_new else "Password or recovery key: "
    return _ask_password(prompt, is_new=is_new)


def read_new_password(path: str | None, user: str) -> str:
    """Return a new password of `user`, from a file or typed twice.

    Raises:
        UsageError: no file is named and nobody can be asked, the two differ, or nobody can type
            it.
    """
    password = _read_password_file(path) if path else _ask_password("New password: ", is_new=True)
    check_new_password(password, user)
    return password


def check_new_password(password: str, user: str) -> None:
    """Refuse what nobody can type or is another secret; warn of what is weak or no disc can take.

    A weak one that is chosen on a terminal has to be confirmed.

    Raises:
        UsageError: it is empty, has a control character, is a recovery key, or is weak and was
            not confirmed.
    """
    from backup.objects.recovery import is_recovery_key
    from imagebuilder.cli.strength import weakness_of

    if not password:
        raise UsageError("the password is empty: choose one of at least 8 characters")
    if any(unicodedata.category(character) == "Cc" for character in password):
        raise UsageError("the password has a control character (such as a tab): nobody can type it")
    if is_recovery_key(password):
        raise UsageError("this is a recovery key: the password must be another one")
    if weakness := weakness_of(password, user):
        report_error(f"warning: {weakness}")
        if sys.stdin.isatty() and not confirm("Take it all the same?"):
            raise UsageError("nothing was changed: choose another password")
    if password != password.strip():
        report_error("warning: the password begins or ends with a blank, which is easily forgotten")
    from rebuild.boot.keymaps import layouts_for

    layouts = layouts_for(password)
    if not layouts:
        report_error(
            "warning: no keyboard layout of the recovery disc can type this password: "
            "choose another, or print a recovery key with `rebuildkit key export`"
        )
    elif "us" not in layouts:
        report_error(
            f"warning: at the recovery disc this password needs the keyboard layout "
            f"{' or '.join(layouts)}"
        )


def _read_password_file(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return _first_line(file.readline(), f"the password file {path}")
    except OSError as error:
        raise UsageError(f"cannot read the password file {path}: {error.strerror}") from error


def _first_line(data: bytes, source: str) -> str:
    """Return the first line as text, without the byte order mark that editors write.

    Raises:
        UsageError: it is not UTF-8.
    """
    try:
        return data.partition(b"\n")[0].decode("utf-8-sig").rstrip("\r")
    except UnicodeDecodeError as error:
        raise UsageError(f"cannot read {source}: it is not UTF-8") from error


def _ask_password(prompt: str, *, is_new: bool) -> str:
    if not sys.stdin.isatty():
        raise UsageError("the password is missing: use --password-file, or run this on a terminal")
    import getpass

    password = getpass.getpass(prompt)
    if is_new and getpass.getpass("Again: ") != password:
        raise UsageError("the two passwords differ")
    return password


class StatusLine:
    """One line on standard error that shows progress on a terminal, and nothing in a pipe."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._shown = 0
        self._time = 0.0

    def show(self, text: str) -> None:
        """Replace the line with `text`, at most five times a second."""
        now = time.monotonic()
        if not self._is_terminal or now - self._time < STATUS_INTERVAL_S:
            return
        self._time = now
        columns = os.get_terminal_size(sys.stderr.fileno()).columns - 1
        text = printable(text.replace("\n", " "))[: max(columns, 1)]
        sys.stderr.write("\r" + text.ljust(self._shown))
        sys.stderr.flush()
        self._shown = len(text)

    def clear(self) -> None:
        """Remove the line."""
        if self._shown:
            sys.stderr.write("\r" + " " * self._shown + "\r")
            sys.stderr.flush()
            self._shown = 0


def warn_of_missing(count: int) -> ExitCode:
    """Say that a data set is partial if it is; return the exit code of what was done with it."""
    if not count:
        return ExitCode.DONE
    report_error(f"warning: the data set is partial: without {missing_text(count)}")
    return ExitCode.PARTIAL


def confirm(question: str) -> bool:
    """Ask a yes-or-no question on the terminal; no terminal means no."""
    if not sys.stdin.isatty():
        return False
    return input(f"{question} [yes/no] ").strip().lower() == "yes"
