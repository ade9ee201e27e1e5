# SPDX-License-Identifier: Apache-2.0
"""The command check: whether everything that a restore needs is there and whole."""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from backup.shared.text import plural, printable, size_text
from imagebuilder.cli.commands import Command, Group, command, flag, option
from imagebuilder.cli.common import (
    Credentials,
    StatusLine,
    UsageError,
    exit_code_of,
    json_flag,
    machine_option,
    name_of_text,
    print_json,
    read_password,
    report_error,
    sentence_of,
)
from imagebuilder.cli.session import Place, import_during, open_session, retry_option
from rebuild.exit_codes import ExitCode

if TYPE_CHECKING:
    from backup.checking.check import Finding, Report
    from backup.checking.subset import Subset
    from backup.objects.manifest import ManifestFile
    from backup.repository import DataSetInfo, Repository
    from backup.store.repository import StoredRepository
    from imagebuilder.cli.session import Session
    from rebuild.medium import FileMedium

SHOWN_PATHS = 20
TABLES_AT_ONCE = 4  # read by a server before it answers


def _subset(text: str) -> Subset:
    """Return a part of all packs, for argparse."""
    from backup.checking.subset import parse_subset

    try:
        return parse_subset(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    sources: tuple[str, ...] = option(
        "DISC|URL|DIR",
        "a disc's image or drive, a server, a store, or a mounted disc; several discs if you like",
        nargs="+",
    )
    user: str | None = option(
        "--user ID",
        "the id; without it, discs and stores are checked without a key",
        type=name_of_text,
    )
    password_file: str | None = option(
        "--password-file FILE",
        "its first line is the password; else REBUILDKIT_PASSWORD_FILE, "
        "REBUILDKIT_PASSWORD_COMMAND, or a prompt",
    )
    fingerprint: str | None = option(
        "--fingerprint FP", "fingerprint of the server's certificate, as the server prints it"
    )
    retry_for: float | None = retry_option()
    machine: str | None = machine_option("only data sets of this machine")
    data_set: str | None = option("--data-set ID", "only this data set")
    read_data_subset: Subset | None = option(
        "--read-data-subset PART",
        "read a part of the packs only: 10%% of them, drawn at random, or 1/7, the first of seven "
        "parts that are everything together",
        type=_subset,
    )
    read_data: bool = flag(
        "--read-data", "read packs here, through the network, instead of having the server do it"
    )
    json: bool = json_flag()

    @property
    def subset(self) -> Subset:
        """The part of the packs that is read."""
        from backup.checking.subset import Subset

        return self.read_data_subset or Subset()


def run_check(options: Check) -> int:
    """Check that what a restore needs is there and whole. With an id and its password it names
    the files that are lost. What a store or a server finds damaged, the next backup sends again."""
    status = StatusLine()
    rows: dict[str, dict[str, object]] = {}
    codes = [ExitCode.DONE]
    for source in options.sources:
        try:
            report = _check(source, options, status)
        except Exception as error:
            if len(options.sources) == 1:
                raise
            # The others are checked all the same.
            status.clear()
            report_error(f"{source}: {sentence_of(error)}")
            rows[source] = {"error": sentence_of(error), "is_sound": False}
            codes.append(exit_code_of(error))
            continue
        finally:
            status.clear()
        rows[source] = {**asdict(report), "is_sound": report.is_sound}
        if not options.json:
            print("\n".join(_lines(source, report, options)), flush=True)
        codes.append(ExitCode.DONE if report.is_sound else ExitCode.DAMAGED)
    if options.json:
        print_json(rows)
    return max(codes)


def _check(source: str, options: Check, status: StatusLine) -> Report:
    """Check what lies in one place."""
    is_server = source.startswith(("https://", "http://"))
    if is_server and options.user is None:
        raise UsageError("a server is checked by its users: say who you are with --user")
    is_image = not is_server and not os.path.isdir(source)
    is_disc = is_image or os.path.exists(os.path.join(source, "hash.dat"))
    if is_disc and (options.machine or options.data_set):
        raise UsageError(
            f"{source} is a disc and has one data set: leave out --machine and --data-set"
        )
    if is_image:
        return _check_disc(source, options, status)
    if is_disc:
        return _check_directory(source, options, status)
    if options.user is None:
        return _check_store(Path(source), options, status)
    return _check_repository(source, options, status, is_server=is_server)


def _shown(status: StatusLine, what: str, done: int, whole: int) -> None:
    """Show progress."""
    percent = f"{100 * done // whole:>3}% " if whole else ""
    status.show(f"{percent}{what}")


def _lines(source: str, report: Report, options: Check) -> Iterator[str]:
    """Yield a report in words."""
    packs = plural(report.listed_packs, "pack")
    if report.packs != report.listed_packs:
        packs = f"{report.packs:,} of {packs}"
    counts = [plural(report.data_sets, "data set")] if report.data_sets else []
    if report.listed_packs:
        counts.append(f"{packs} ({size_text(report.size)})")
    if report.files:
        counts.append(plural(report.files, "file"))
    yield f"{source}: checked {', '.join(counts) or 'nothing: there is no data set'}"
    for finding in report.findings:
        yield f"damaged: {finding.kind} {finding.name}: {finding.reason}"
    for loss in report.losses:
        name = loss.name
        data_set = f"data set {name.data_set[:10]} (number {name.generation} of {name.machine})"
        if loss.is_everything:
            yield f"lost: all of {data_set}: {loss.reason}"
        elif options.user is None:
            yield f"lost: what lies in {plural(loss.packs, 'pack')} of {data_set}"
        elif loss.paths:
            yield f"lost: {plural(len(loss.paths), 'object')} of {data_set}"
        else:
            yield f"lost: nothing of {data_set}: the damage is beside its content"
        yield from (f"  {printable(path)}" for path in loss.paths[:SHOWN_PATHS])
        if len(loss.paths) > SHOWN_PATHS:
            yield f"  and {len(loss.paths) - SHOWN_PATHS:,} more; --json names all"
    if report.is_sound:
        yield "nothing is damaged"


def _check_repository(
    source: str, options: Check, status: StatusLine, *, is_server: bool
) -> Report:
    """Check a server, or a store with the key."""
    from backup.checking.check import Report

    assert options.user is not None, "the caller has asked"
    place = Place(
        server=source if is_server else None,
        store=None if is_server else Path(source),
        fingerprint=options.fingerprint,
        user=options.user,
        password_file=options.password_file,
        retry_for=options.retry_for,
    )
    if is_server:
        with open_session(place, needed=("backup.checking.opened",)) as session:
            return _check_session(session, source, options, status)
    report = Report()
    with _catalogue_may_be_damaged(Path(source), report):
        report.findings += _differences(Path(source), options.user)
        with open_session(place, needed=("backup.checking.opened",)) as session:
            report.absorb(_check_session(session, source, options, status))
    return report


def _check_session(session: Session, source: str, options: Check, status: StatusLine) -> Report:
    from backup.checking.check import DataSetName, Finding, check_data_sets
    from backup.checking.opened import OpenedDataSet
    from backup.objects.table import Summary
    from backup.repository import check_sealed
    from imagebuilder.repository_medium import RepositoryMedium

    repository = session.repository
    infos = _chosen(repository.data_sets(options.machine), options)

    def confirm(info: DataSetInfo, summary: Summary) -> None:
        check_sealed(info, summary.data_set_id, summary.machine, summary.generation)

    sets = [
        OpenedDataSet(
            RepositoryMedium(repository, session.master, info.id, source),
            session.master,
            DataSetName(repository.user, info.machine, info.id, info.generation),
            partial(confirm, info),
            partial(_is_there, repository, info.id),
        )
        for info in infos
    ]

    def read_packs(packs: Sequence[tuple[bytes, int]]) -> Iterable[bytes]:
        digests = [digest for digest, _ in packs]
        if not options.read_data:
            return repository.check(digests, ()).packs
        damaged = _read_here(session, packs)
        if damaged:
            repository.check(damaged, ())  # so that the next backup heals them
        return damaged

    report = check_data_sets(
        sets, read_packs, options.subset, partial(_shown, status), random.SystemRandom()
    )
    report.findings += [
        Finding("machine", name, str(error))
        for name, error in session.rollbacks(options.machine).items()
    ]
    known = {finding.name for finding in report.findings}
    for start in range(0, len(infos), TABLES_AT_ONCE):
        there = {info.id for info in repository.data_sets()}
        tables = [info.id for info in infos[start : start + TABLES_AT_ONCE] if info.id in there]
        report.findings += [
            Finding("table", table, "is missing or not what it was")
            for table in repository.check((), tables).tables
            if table not in known
        ]
    return report


def _is_there(repository: Repository, data_set: str) -> bool:
    return any(info.id == data_set for info in repository.data_sets())


def _read_here(session: Session, packs: Sequence[tuple[bytes, int]]) -> list[bytes]:
    """Read packs through the network; return those that are not what they were."""
    import hashlib

    from backup.repository import InvalidRequestError, NoSuchPackError, StoreDamagedError

    damaged = []
    for digest, size in packs:
        try:
            data = session.repository.read_pack(digest, 0, size)
        except (InvalidRequestError, NoSuchPackError, StoreDamagedError):
            data = b""
        if hashlib.sha256(data).digest() != digest:
            damaged.append(digest)
    return damaged


def _chosen(infos: Sequence[DataSetInfo], options: Check) -> list[DataSetInfo]:
    """Return the data sets that the options name.

    Raises:
        NoSuchDataSetError: there are none.
    """
    from backup.repository import NoSuchDataSetError

    wanted = (options.data_set or "").lower()
    found = [
        info
        for info in infos
        if info.id.startswith(wanted) and options.machine in (None, info.machine)
    ]
    if not found and (options.machine or options.data_set):
        raise NoSuchDataSetError("cannot find the data set that is to be checked")
    return found


@contextmanager
def _catalogue_may_be_damaged(directory: Path, report: Report) -> Iterator[None]:
    """Look at catalogue and records first; what cannot be checked because of them is no error."""
    from backup.checking.check import Finding
    from backup.repository import StoreDamagedError
    from backup.store.local import CATALOGUE, has_backups

    if not (directory / CATALOGUE).exists() and not has_backups(directory):
        raise UsageError(f"{directory} is not a store, nor a mounted disc")
    report.findings += _store_findings(directory)
    try:
        yield
    except StoreDamagedError as error:
        report.findings.append(Finding("catalogue", CATALOGUE, str(error)))


def _store_findings(directory: Path) -> list[Finding]:
    """Look at a store's catalogue and records before opening it puts them in order."""
    from backup.checking.check import Finding
    from backup.store.engines import is_whole_sqlite
    from backup.store.local import CATALOGUE
    from backup.store.repair import unreadable_records

    found = [
        Finding("record", path, "is not what it was; it is written anew from the catalogue")
        for path in unreadable_records(directory)
    ]
    if (directory / CATALOGUE).exists() and not is_whole_sqlite(directory / CATALOGUE):
        advice = f"`rebuildkit server repair --data {directory}` rebuilds it"
        found.append(Finding("catalogue", CATALOGUE, f"is damaged: {advice}"))
    return found


def _differences(directory: Path, user: str | None = None) -> list[Finding]:
    """Compare catalogue and records of an opened store, and mend the records."""
    from backup.checking.check import Finding
    from backup.objects.key_file import is_intact
    from backup.repository import StoreDamagedError, StoreFullError
    from backup.store.local import CATALOGUE, open_store

    found = []
    advice = f"`rebuildkit server repair --data {directory}` takes the record's word"
    with open_store(directory) as store:
        for repository in store.repositories():
            if user is not None and repository.user != user:
                continue
            found += [
                Finding("catalogue", CATALOGUE, f"differs from the record {name}: {advice}")
                for name in repository.differing_records()
            ]
            if not is_intact(repository.key_file()):
                reason = "is damaged; a disc of the same id holds another copy"
                found.append(Finding("key file", f"of {repository.user}", reason))
            # Nothing can be mended where nothing can be written, and all can be read.
            with suppress(StoreDamagedError, StoreFullError):
                repository.mend_records()
    return found


def _check_store(directory: Path, options: Check, status: StatusLine) -> Report:
    """Check a store without any key, of all its users."""
    from backup.checking.check import Report, check_data_sets
    from backup.store.local import open_store

    whole = Report()
    with _catalogue_may_be_damaged(directory, whole):
        whole.findings += _differences(directory)
        with open_store(directory) as store:
            for repository in store.repositories():
                report = check_data_sets(
                    _listed(repository, options),
                    partial(_read_stored, repository),
                    options.subset,
                    partial(_shown, status),
                    random.SystemRandom(),
                )
                whole.absorb(report)
    return whole


def _read_stored(
    repository: StoredRepository, packs: Sequence[tuple[bytes, int]]
) -> Iterable[bytes]:
    return repository.check([digest for digest, _ in packs], ()).packs


def _listed(repository: StoredRepository, options: Check) -> list[_ListedDataSet]:
    """Return a user's data sets as the catalogue lists them."""
    infos = repository.data_sets()
    wanted = _chosen(infos, options) if options.machine or options.data_set else infos
    return [_ListedDataSet(repository, info) for info in wanted]


class _ListedDataSet:
    """A data set of a store for who has no key; see `backup.checking.check.DataSetToCheck`."""

    def __init__(self, repository: StoredRepository, info: DataSetInfo) -> None:
        from backup.checking.check import DataSetName

        self.name = DataSetName(repository.user, info.machine, info.id, info.generation)
        self._repository = repository

    def read(self) -> Mapping[bytes, int]:
        """Have the store read the table; return what the catalogue says of its packs."""
        from backup.checking.check import UnreadableError
        from backup.repository import NoSuchDataSetError

        try:
            is_damaged = bool(self._repository.check((), (self.name.data_set,)))
        except NoSuchDataSetError as error:  # dropped meanwhile
            raise UnreadableError(str(error)) from error
        if is_damaged:
            raise UnreadableError("its table is missing or not what it was")
        return self._repository.listed_packs(self.name.data_set)

    def lost_paths(self, packs: set[bytes]) -> Sequence[str]:
        """Return nothing: names are sealed."""
        return ()

    def is_there(self) -> bool:
        """Tell whether it was not dropped meanwhile."""
        return _is_there(self._repository, self.name.data_set)


def _check_disc(source: str, options: Check, status: StatusLine) -> Report:
    """Check the image of a disc."""
    from backup.checking.check import Finding, Report
    from rebuild.disc_image import IsoMedium, verify_disc

    noise = random.SystemRandom()
    has_key = options.user is not None

    def choose(files: Sequence[ManifestFile]) -> Sequence[ManifestFile]:
        packs = {file.sha256: file.size for file in files if file.path.startswith("objects/")}
        chosen = set() if has_key else {*options.subset.choose(packs, noise)}
        if not has_key:
            report.packs, report.listed_packs = len(chosen), len(packs)
            report.size = sum(packs[digest] for digest in chosen)
        rest = [file for file in files if file.sha256 not in packs or file.sha256 in chosen]
        report.files = len(rest) - len(chosen)
        return rest

    report = Report()
    wrong, _ = verify_disc(source, status.show, choose)
    report.findings += [Finding("file", name, "is missing or not what it was") for name in wrong]
    if has_key:
        with IsoMedium.open(Path(source)) as medium:
            report.absorb(_check_medium(medium, options, status))
    return report


def _check_directory(source: str, options: Check, status: StatusLine) -> Report:
    """Check a mounted disc."""
    from rebuild.medium import DirectoryMedium

    if options.user is None:
        raise UsageError("a mounted disc is checked with its key: give --user, or name the drive")
    with DirectoryMedium(source) as medium:
        return _check_medium(medium, options, status)


def _check_medium(medium: FileMedium, options: Check, status: StatusLine) -> Report:
    """Check what lies on a disc, with the key."""
    from backup.checking.check import DataSetName, check_data_sets
    from backup.checking.opened import OpenedDataSet, reading_packs
    from backup.objects.keys import verify_binding
    from backup.objects.table import Summary
    from rebuild.restore import open_master

    assert options.user is not None, "the caller has asked"
    credentials = Credentials(user=options.user, password_file=options.password_file)
    password = read_password(credentials)
    user = options.user
    master = import_during(lambda: open_master(medium, user, password), ("backup.checking.opened",))

    def confirm(summary: Summary) -> None:
        verify_binding(medium.read_key_file(), master, summary.data_set_id)

    data_set = OpenedDataSet(medium, master, DataSetName(user, "", "", 0), confirm)
    return check_data_sets(
        [data_set],
        reading_packs(medium, data_set.places),
        options.subset,
        partial(_shown, status),
        random.SystemRandom(),
    )


COMMANDS: Sequence[Command | Group] = (command("check", Check, run_check),)
