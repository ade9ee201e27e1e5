# SPDX-License-Identifier: Apache-2.0
"""Where data sets are, who asks for them, and the repository that is opened for it."""

from __future__ import annotations

import importlib
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from imagebuilder.cli.commands import option
from imagebuilder.cli.common import (
    Credentials,
    UsageError,
    name_of_text,
    read_password,
    seconds_of_text,
)

if TYPE_CHECKING:
    from backup.client.patience import Patience
    from backup.objects.data_keys import DataKey
    from backup.objects.keys import MasterKey
    from backup.objects.table import Summary
    from backup.repository import DataSetInfo, Repository, RepositoryHost, RolledBackError

PATIENCE_S = 3600.0  # with a server that is away, when nobody waits
PATIENCE_AT_TERMINAL_S = 300.0
OTHER_DATA_SET = (
    "a data set by the beginning of its id, its number such as '#2', or the newest up to a time: "
    "latest, 2026-11-30, '2026-11-30 20:24', yesterday, '2 days ago' (default: latest)"
)
_T = TypeVar("_T")


def retry_option() -> Any:
    """Return the option that every command has that talks to a server."""
    return option(
        "--retry-for TIME",
        "how long to keep trying when the server is away, such as 30s, 5m or 2h (default: 5m on a "
        "terminal, 1h elsewhere, and only if the server was reached before)",
        type=seconds_of_text,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Place(Credentials):
    """Options that say where data sets are."""

    server: str | None = option(
        "--server URL", "a server: https://host:8443", group="place!", setting="server"
    )
    store: Path | None = option(
        "--store DIR",
        "a store's directory in place of a server",
        type=Path,
        group="place!",
        setting="store",
    )
    fingerprint: str | None = option(
        "--fingerprint FP",
        "fingerprint of the server's certificate, as the server prints it",
        setting="fingerprint",
    )
    retry_for: float | None = retry_option()


@dataclass(frozen=True, slots=True, kw_only=True)
class MachinePlace(Place):
    """Likewise, of commands that an enrolled machine can give too."""

    user: str = option(
        "--user ID",
        "the id, where there is no --credential",
        "",
        setting="user",
        type=lambda text: text and name_of_text(text),
    )
    credential: Path | None = option(
        "--credential FILE",
        "what `rebuildkit enroll` has written: it says where, who and which machine",
        type=Path,
        group="place!",
        setting="credential",
    )


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
            DamagedDataSetError: its table is damaged; the message names the one before it.
            RolledBackError: a newer one has been seen, or it is not the one it is listed as.
            UsageError: no machine was named and there are several.
        """
        from backup.objects.errors import DamagedError
        from backup.repository import DamagedDataSetError

        self.check_newest(machine)
        info = choose_data_set(self.repository, machine, data_set)
        try:
            self.summary_of(info)
        except (DamagedError, DamagedDataSetError) as error:
            text = f"data set {info.id[:10]} (number {info.generation} of {info.machine})"
            earlier = [
                f"; the one before it is number {other.generation}: --data-set {other.id[:10]}"
                for other in self.repository.data_sets(info.machine)
                if other.generation < info.generation
            ]
            advice = earlier[-1] if earlier else ""
            raise DamagedDataSetError(f"{text} cannot be read: {error}{advice}") from error
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
        if not options.server:
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


def _check_registered(host: RepositoryHost, options: Place) -> None:
    """Refuse an id that a local store does not know; a server does not tell.

    Clients of a server have no database, so nothing of a store is imported for them.

    Raises:
        NotAuthorisedError: it does not know it.
    """
    from backup.repository import NotAuthorisedError
    from backup.store.store import Store

    assert isinstance(host, Store), "what is no server"
    if not host.is_registered(options.user):
        raise NotAuthorisedError(
            f"the store {options.store} does not know the id {options.user}: check how it is "
            f"spelt, or make it with `rebuildkit register --store {options.store} "
            f"--user {options.user}`"
        )


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
    """Return the data set asked for: by id, the newest of a time, or the newest of the machine.

    Raises:
        NoSuchDataSetError: none fits.
        UsageError: no machine was named and there are several, or several ids begin so.
    """
    from backup.repository import NoSuchDataSetError
    from imagebuilder.cli.when import time_of

    found = repository.data_sets(machine)
    about = f"of machine {machine}" if machine else f"of {repository.user}"
    latest_ns = time_of(data_set, time.time_ns()) if data_set else None
    if latest_ns is not None:
        found = [info for info in found if info.created_ns <= latest_ns]
        about = f"{about} from {data_set} or before"
    elif data_set:
        return choose_by_id(found, data_set, about)
    if not found:
        raise NoSuchDataSetError(f"cannot find a data set {about}")
    machines = {info.machine for info in found}
    if len(machines) > 1:
        raise UsageError(f"choose a machine with --machine: {', '.join(sorted(machines))}")
    return found[-1]


def choose_by_id(found: Sequence[DataSetInfo], text: str, about: str = "") -> DataSetInfo:
    """Return the one data set whose id begins with `text`, or whose number it is.

    Args:
        found: the data sets to choose from.
        text: the beginning of an id, as every command prints it, or #2.
        about: of what they are, for the message: "of machine desk".

    Raises:
        NoSuchDataSetError: there is none.
        UsageError: there are several.
    """
    from backup.repository import NoSuchDataSetError

    wanted = text.strip().lower()
    fitting = [
        info for info in found if info.id.startswith(wanted) or wanted == f"#{info.generation}"
    ]
    if len(fitting) > 1 and wanted.startswith("#"):
        machines = ", ".join(info.machine for info in fitting)
        raise UsageError(f"several machines have a data set {text}: {machines}; type its id")
    if not fitting:
        raise NoSuchDataSetError(f"cannot find data set {text} {about}".rstrip())
    if len(fitting) > 1:
        raise UsageError(f"{text} is the beginning of {len(fitting)} ids: type more of it")
    return fitting[0]
