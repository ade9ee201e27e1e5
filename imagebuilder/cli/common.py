# SPDX-License-Identifier: Apache-2.0
"""What the commands share: credentials, repositories, progress, exit codes, JSON."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from backup.shared.text import missing_text, printable
from imagebuilder.cli.commands import flag, option
from rebuild.exit_codes import ExitCode

if TYPE_CHECKING:
    from backup.client.patience import Patience
    from backup.objects.data_keys import DataKey
    from backup.objects.keys import MasterKey
    from backup.objects.table import Summary
    from backup.repository import DataSetInfo, Repository, RepositoryHost, RolledBackError
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
PATIENCE_S = 3600.0  # with a server that is away, when nobody waits
PATIENCE_AT_TERMINAL_S = 300.0
OTHER_DATA_SET = "use this data set instead of the newest"
STATUS_INTERVAL_S = 0.2
OWN_PACKAGES = ("backup", "fsdrivers", "imagebuilder", "rebuild", "templates", "vm")
_T = TypeVar("_T")


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
    from imagebuilder.errors import DiscPlanError
    from rebuild.restore import EXIT_CODES

    table: dict[type[BaseException], ExitCode] = {
        UsageError: ExitCode.USAGE,
        MachineFileError: ExitCode.USAGE,
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


def retry_option() -> Any:
    """Return the option that every command has that talks to a server."""
    return option(
        "--retry-for TIME",
        "how long to keep trying when the server is away, such as 30s, 5m or 2h (default: 5m on a "
        "terminal, 1h elsewhere, and only if the server was reached before)",
        type=seconds_of_text,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Options for id and password; a recovery key does all that the password does."""

    user: str = option("--user ID", "the id", type=name_of_text, required=True)
    password_file: str | None = option(
        "--password-file FILE",
        "its first line is the password or a recovery key; else REBUILDKIT_PASSWORD_FILE, "
        "REBUILDKIT_PASSWORD_COMMAND, or a prompt",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Place(Credentials):
    """Options that say where data sets are."""

    server: str | None = option("--server URL", "a server: https://host:8443", group="place!")
    store: Path | None = option(
        "--store DIR", "a store's directory in place of a server", type=Path, group="place!"
    )
    fingerprint: str | None = option(
        "--fingerprint FP", "fingerprint of the server's certificate, as the server prints it"
    )
    retry_for: float | None = retry_option()


@dataclass(frozen=True, slots=True, kw_only=True)
class MachinePlace(Place):
    """Likewise, of commands that an enrolled machine can give too."""

    user: str = option(
        "--user ID",
        "the id, where there is no --credential",
        "",
        type=lambda text: text and name_of_text(text),
    )
    credential: Path | None = option(
        "--credential FILE",
        "what `rebuildkit enroll` has written: it says where, who and which machine",
        type=Path,
        group="place!",
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

        done = subprocess.run(
            command, shell=True, stdout=subprocess.PIPE, encoding="utf-8", check=False
        )
        if done.returncode:
            raise UsageError(f"REBUILDKIT_PASSWORD_COMMAND ended with exit code {done.returncode}")
        return done.stdout.splitlines()[0] if done.stdout else ""
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
        with open(path, encoding="utf-8-sig") as file:  # editors write byte order marks
            return file.readline().rstrip("\r\n")
    except OSError as error:
        raise UsageError(f"cannot read the password file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"cannot read the password file {path}: it is not UTF-8") from error


def _ask_password(prompt: str, *, is_new: bool) -> str:
    if not sys.stdin.isatty():
        raise UsageError("the password is missing: use --password-file, or run this on a terminal")
    import getpass

    password = getpass.getpass(prompt)
    if is_new and getpass.getpass("Again: ") != password:
        raise UsageError("the two passwords differ")
    return password


@dataclass(slots=True)
class Session:
    """An opened repository and the key to what it holds."""

    repository: Repository
    key: DataKey  # the master key, or that of an enrolled machine
    host: RepositoryHost
    place: str  # which repository, for what this computer remembers of it
    is_recovered: bool = False  # opened with a recovery key

    @property
    def master(self) -> MasterKey:
        """The master key.

        Raises:
            UsageError: this is an enrolled machine's session.
        """
        from backup.objects.keys import MasterKey

        if not isinstance(self.key, MasterKey):
            raise UsageError("an enrolled machine cannot do this: it needs the password")
        return self.key

    def check_newest(self, machine: str | None = None) -> None:
        """Raise RolledBackError if a machine's newest data set is older than one seen before."""
        for rollback in self.rollbacks(machine).values():
            raise rollback

    def rollbacks(self, machine: str | None = None) -> dict[str, RolledBackError]:
        """Return the machines whose newest data set is older than one seen before."""
        from backup.client.remembered import check_and_remember
        from backup.repository import RolledBackError

        found = {}
        newest = {info.machine: info for info in self.repository.data_sets(machine)}
        for info in newest.values():
            try:
                check_and_remember(self.place, self.repository.user, info)
            except RolledBackError as error:
                found[info.machine] = error
        return found

    def choose(self, machine: str | None = None, data_set: str | None = None) -> DataSetInfo:
        """Return the data set asked for, by id or the newest of the machine, once it is proven.

        Raises:
            NoSuchDataSetError: none fits.
            RolledBackError: a newer one has been seen, or it is not the one it is listed as.
            UsageError: no machine was named and there are several.
        """
        self.check_newest(machine)
        info = choose_data_set(self.repository, machine, data_set)
        self.summary_of(info)
        return info

    def summary_of(self, info: DataSetInfo) -> Summary:
        """Return what is sealed in the table of a data set.

        Raises:
            RolledBackError: it is not the table of the data set that `info` names.
        """
        from backup.objects.table import read_summary
        from backup.repository import check_sealed

        with self.repository.open_table(info.id) as stream:
            summary = read_summary(self.key, stream)
        check_sealed(info, summary.data_set_id, summary.machine, summary.generation)
        return summary

    def close(self) -> None:
        """Give everything back."""
        self.repository.close()
        self.host.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def canonical_fingerprint(fingerprint: str | None) -> str | None:
    """Return a fingerprint as the server prints it, however it was typed."""
    from backup.wire import format_fingerprint, parse_fingerprint

    return None if fingerprint is None else format_fingerprint(parse_fingerprint(fingerprint))


def open_host(place: Place, *, create: bool = False) -> RepositoryHost:
    """Open the server or store directory that the options name."""
    if place.server:
        from backup.client.repository import HttpServer

        return HttpServer(place.server, place.fingerprint, patience=_patience(place.retry_for))
    from backup.store.local import open_store

    assert place.store is not None, "one of the two is required"
    if not create and not place.store.is_dir():
        raise UsageError(f"{place.store} is not a store (`rebuildkit register --store` makes one)")
    return open_store(place.store, create=create)


def _patience(retry_for_s: float | None) -> Patience:
    """Return how long to go on when a server is away, and have outages shown."""
    from backup.client.patience import Outage, Patience

    is_terminal = sys.stderr.isatty()
    if retry_for_s is None:
        usual_s = PATIENCE_AT_TERMINAL_S if is_terminal or sys.stdin.isatty() else PATIENCE_S
        return Patience(usual_s, outage=Outage(_show_outage))
    return Patience(retry_for_s, is_stubborn=True, outage=Outage(_show_outage))


def _show_outage(text: str) -> None:
    """Say that a server is away or back; on a terminal in the place of the status line."""
    line = f"rebuildkit: {text}"
    if sys.stderr.isatty():
        line = "\r" + line.ljust(os.get_terminal_size(sys.stderr.fileno()).columns - 1)
    print(line, file=sys.stderr, flush=True)


def open_session(
    options: Place,
    *,
    needed: Sequence[str] = (),
    prepare: Callable[[Callable[[], bool]], None] | None = None,
) -> Session:
    """Log in and unlock, with one run of the password hash.

    Args:
        options: say where, and who.
        needed: modules that the command uses; imported while the password is hashed.
        prepare: called then, with what tells whether there is still time.

    Raises:
        NotAuthorisedError, WrongPasswordError: the id or the password is wrong.
    """
    from backup.objects.errors import WrongPasswordError
    from backup.objects.keys import password_keys, unlock_with
    from backup.objects.recovery import is_recovery_key, typing_error
    from backup.repository import NotAuthorisedError

    if isinstance(options, MachinePlace):
        if options.credential is not None:
            return _open_machine_session(options, options.credential, needed, prepare)
        if not options.user:
            raise UsageError("say which id with --user, or which machine with --credential")
    password = read_password(options)
    host = open_host(options)
    place = _place_of(options)
    try:
        _check_registered(host, options)
        if is_recovery_key(password):
            from imagebuilder.cli.recovered import open_recovered

            recovered = import_during(
                lambda: open_recovered(host, options.user, password), needed, prepare
            )
            return Session(*recovered, host, place, is_recovered=True)
        parameters = host.login_parameters(options.user)
        keys = import_during(
            lambda: password_keys(parameters, options.user, password), needed, prepare
        )
        repository = host.login(options.user, keys.login_secret)
        return Session(repository, unlock_with(repository.key_file(), keys), host, place)
    except BaseException as error:
        host.close()
        if isinstance(error, NotAuthorisedError | WrongPasswordError) and (
            hint := typing_error(password)
        ):
            error.add_note(hint)
        raise


def _open_machine_session(
    options: MachinePlace,
    path: Path,
    needed: Sequence[str],
    prepare: Callable[[Callable[[], bool]], None] | None,
) -> Session:
    """Log an enrolled machine in."""
    from backup.objects.data_keys import MachineKey
    from imagebuilder.cli.machine_file import read

    if options.user or options.password_file:
        raise UsageError("--credential says who it is: leave out --user and --password-file")
    file = read(path)
    where = Place(
        server=file.server,
        store=None if file.store is None else Path(file.store),
        user=file.user,
        fingerprint=options.fingerprint or file.fingerprint,
        retry_for=options.retry_for,
    )
    host = open_host(where)
    try:
        repository = import_during(lambda: host.login_machine(file.credential), needed, prepare)
        return Session(repository, MachineKey(file.key, file.key_id), host, _place_of(where))
    except BaseException:
        host.close()
        raise


def _place_of(options: Place) -> str:
    """Return what this computer remembers a repository by."""
    return (
        canonical_fingerprint(options.fingerprint)
        or options.server
        or str((options.store or Path()).resolve())
    )


def _check_registered(host: RepositoryHost, options: Place) -> None:
    """Refuse an id that a local store does not know; a server does not tell.

    Raises:
        NotAuthorisedError: it does not know it.
    """
    from backup.repository import NotAuthorisedError
    from backup.store.store import Store

    if isinstance(host, Store) and not host.is_registered(options.user):
        raise NotAuthorisedError(
            f"the store {options.store} does not know the id {options.user}: check how it is "
            f"spelt, or make it with `rebuildkit register --store {options.store} "
            f"--user {options.user}`"
        )


def import_during(
    work: Callable[[], _T],
    modules: Sequence[str],
    prepare: Callable[[Callable[[], bool]], None] | None = None,
) -> _T:
    """Return what `work` returns; import `modules` meanwhile, then call `prepare`.

    `prepare` is given what tells whether `work` is still at work.

    Measured: the password hash and the modules of a backup take 0.15 s of processor time each,
    which is most of what a backup of an unchanged machine takes.
    """
    results: list[_T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # raised again where it is waited for
            errors.append(error)

    thread = threading.Thread(target=run, name="meanwhile")
    thread.start()
    try:
        for name in modules:
            importlib.import_module(name)
        if prepare is not None:
            prepare(thread.is_alive)
    finally:
        thread.join()
    if errors:
        raise errors[0]
    return results[0]


def choose_data_set(
    repository: Repository, machine: str | None, data_set: str | None = None
) -> DataSetInfo:
    """Return the data set asked for: by id, or the newest of the machine.

    Raises:
        NoSuchDataSetError: none fits.
        UsageError: no machine was named and there are several, or several ids begin so.
    """
    from backup.repository import NoSuchDataSetError

    found = repository.data_sets(machine)
    about = f"of machine {machine}" if machine else f"of {repository.user}"
    if data_set:
        return choose_by_id(found, data_set, about)
    if not found:
        raise NoSuchDataSetError(f"cannot find a data set {about}")
    machines = {info.machine for info in found}
    if len(machines) > 1:
        raise UsageError(f"choose a machine with --machine: {', '.join(sorted(machines))}")
    return found[-1]


def choose_by_id(found: Sequence[DataSetInfo], text: str, about: str = "") -> DataSetInfo:
    """Return the one data set whose id begins with `text`.

    Args:
        found: the data sets to choose from.
        text: the beginning of an id, as every command prints it.
        about: of what they are, for the message: "of machine desk".

    Raises:
        NoSuchDataSetError: there is none.
        UsageError: there are several.
    """
    from backup.repository import NoSuchDataSetError

    fitting = [info for info in found if info.id.startswith(text.strip().lower())]
    if not fitting:
        raise NoSuchDataSetError(f"cannot find data set {text} {about}".rstrip())
    if len(fitting) > 1:
        raise UsageError(f"{text} is the beginning of {len(fitting)} ids: type more of it")
    return fitting[0]


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
