# SPDX-License-Identifier: Apache-2.0
"""Commands of the backup side: backup, snapshots."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backup.shared.text import (
    missing_text,
    plural,
    second_text,
    size_text,
)
from imagebuilder.cli.commands import Command, Group, command, flag, option
from imagebuilder.cli.common import (
    StatusLine,
    UsageError,
    json_flag,
    machine_option,
    policy_of,
    print_json,
    report_error,
)
from imagebuilder.cli.session import MachinePlace, Session, open_session
from imagebuilder.cli.targets import refuse_repeated
from imagebuilder.cli.unattended import make_missing_store
from rebuild.exit_codes import ExitCode

if TYPE_CHECKING:
    from backup.agent.hooks import Hooks
    from backup.agent.sources import Source
    from backup.retention import Policy

# What every backup uses; the drivers of ext are those most machines need.
AGENT_MODULES = (
    "backup.agent.backup",
    "backup.agent.sources",
    "fsdrivers.ext.volume",
    "fsdrivers.ext.mkfs.plan",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup(MachinePlace):
    machine: str | None = machine_option(
        "name of the machine in the backups; --credential says it by itself", setting="machine"
    )
    disk: tuple[Path, ...] = option("--disk PATH", "disk or image; may be repeated", (), type=Path)
    allow_raw: bool = flag("--allow-raw", "keep unknown partitions as compressed raw images")
    exclude: tuple[str, ...] = option(
        "--exclude PATTERN", "leave out what matches, such as '/var/cache/*'; may be repeated", ()
    )
    snapshot: str = option(
        "--snapshot WHEN",
        "freeze mounted filesystems for a moment: auto when files keep changing while they are "
        "read, always, or never (default: auto)",
        "auto",
        choices=("auto", "always", "never"),
    )
    before: tuple[str, ...] = option(
        "--before COMMAND", "run this before the machine is read; may be repeated", ()
    )
    after: tuple[str, ...] = option(
        "--after COMMAND", "run this when the machine is read, or that failed; may be repeated", ()
    )
    dump: tuple[str, ...] = option(
        "--dump DATABASE",
        "have a database dumped to /var/backups/rebuildkit before the machine is read: postgresql, "
        "mariadb or sqlite:FILE; may be repeated",
        (),
    )
    stop_unit: tuple[str, ...] = option(
        "--stop-unit UNIT",
        "stop this unit of systemd while the machine is read; may be repeated",
        (),
    )
    hook_limit: float = option(
        "--hook-limit SECONDS",
        "how long each of these commands may take (default: 300)",
        300.0,
        type=float,
    )
    keep: int | None = option(
        "--keep N", "old form of `policy set --machine NAME --keep-last N`, done first", type=int
    )
    json: bool = json_flag()


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshots(MachinePlace):
    machine: str | None = machine_option("only those of this machine")
    deleted: bool = flag("--deleted", "only what is deleted and can be brought back")
    json: bool = json_flag()


def run_backup(options: Backup) -> int:
    """Back up a machine or its disks. Without --disk it backs up this machine."""
    if options.machine is None and options.credential is None:
        raise UsageError("say which machine it is with --machine")
    refuse_repeated(options.disk, "disk")
    status = StatusLine()
    sources: list[Source] = []

    def prepare(is_waiting: Callable[[], bool]) -> None:
        from backup.agent.sources import DiskSource
        from backup.shared.collector import paused_collector

        sources.extend(_sources_of(options))
        with paused_collector():
            for source in sources:
                if isinstance(source, DiskSource):
                    source.prepare(allow_raw=options.allow_raw, is_waiting=is_waiting)

    made = make_missing_store(options)
    with open_session(options, needed=AGENT_MODULES, prepare=prepare) as session:
        from backup.agent.backup import run_backup as back_up
        from backup.agent.result import BackupOptions, Snapshot
        from backup.client.remembered import alone
        from imagebuilder.cli.progress import BackupProgress

        wanted = BackupOptions(
            allow_raw=options.allow_raw,
            exclude=tuple(map(os.fsencode, options.exclude)),
            snapshot=Snapshot(options.snapshot),
            hooks=_hooks_of(options),
        )
        machine = options.machine or session.repository.machines()[0]
        session.check_newest(machine)
        if options.keep is not None:
            _set_policy(session, machine, policy_of(last=options.keep))
        try:
            with alone(session.place, session.repository.user, machine):
                result = back_up(
                    session.repository,
                    session.key,
                    machine,
                    sources or _sources_of(options),
                    wanted,
                    BackupProgress(status),
                )
        finally:
            status.clear()
        session.check_newest(machine)
    if options.json:
        print_json(result.to_dict())
    else:
        assert result.data_set is not None
        print(
            f"{result.objects:,} objects: {result.new:,} new, {result.changed:,} changed, "
            f"{result.unchanged:,} unchanged, {result.removed:,} removed"
        )
        print(
            f"{size_text(result.bytes_read)} read, {size_text(result.bytes_sent)} sent in "
            f"{result.duration_s:.1f} s"
        )
        without = f", without {missing_text(result.missing)}" if result.missing else ""
        info = result.data_set
        print(f"data set {info.id}, number {info.generation} of {info.machine}{without}")
    for note in (*[made] * bool(made), *result.notes):
        print(f"note: {note}", file=sys.stderr)
    for warning in result.warnings:
        report_error(f"warning: {warning}")
    return ExitCode.PARTIAL if result.is_partial else ExitCode.DONE


def _set_policy(session: Session, machine: str, policy: Policy) -> None:
    """Set a machine's policy, as `policy set` does, unless it is the one that it has."""
    repository = session.repository
    if repository.policies().machines.get(machine) != policy:
        repository.set_policy(machine, policy)


def _hooks_of(options: Backup) -> Hooks:
    """Return the commands around reading: units are stopped last and started first.

    Raises:
        UsageError: something is not known how to dump.
    """
    from backup.agent.dumps import dumping
    from backup.agent.hooks import Hooks, stopping

    units = stopping(options.stop_unit)
    try:
        dumps = dumping(options.dump)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return Hooks(
        (*dumps.before, *options.before, *units.before),
        (*units.after, *options.after, *dumps.after),
        options.hook_limit,
    )


def _sources_of(options: Backup) -> list[Source]:
    """Return the given disks as sources, or the running machine."""
    if options.disk:
        from backup.agent.sources import DiskSource

        return [DiskSource(path) for path in options.disk]
    from backup.agent.live.source import LiveSource
    from backup.agent.result import Snapshot
    from backup.client.remembered import state_directory

    left_out = {state_directory(): "what rebuildkit remembers of its backups"}
    if options.store:
        left_out[Path(options.store)] = "where these backups are kept"
    return [
        LiveSource(
            left_out=left_out,
            snapshot=Snapshot(options.snapshot),
            has_hooks=bool(options.before or options.stop_unit or options.dump),
        )
    ]


def run_snapshots(options: Snapshots) -> int:
    """List data sets."""
    from backup.objects.errors import ObjectsError, OtherKeyError
    from backup.repository import NoSuchDataSetError, RolledBackError

    if options.deleted:
        return _list_deleted(options)
    unreadable, rollback = 0, None
    rows: list[dict[str, Any]] = []
    damaged: list[dict[str, Any]] = []
    with open_session(options) as session:
        for info in session.repository.data_sets(options.machine):
            try:
                summary = session.summary_of(info)
            except OtherKeyError:
                unreadable += 1  # this machine made it before it was enrolled
                continue
            except (ObjectsError, NoSuchDataSetError) as error:
                named = {"id": info.id, "machine": info.machine, "generation": info.generation}
                damaged.append({**named, "damage": str(error)})
                continue
            rows.append(
                {
                    "id": info.id,
                    "machine": info.machine,
                    "created_ns": summary.created_ns,
                    "created": second_text(summary.created_ns // 10**9),
                    "generation": info.generation,
                    "objects": summary.object_count,
                    "content_size": summary.content_bytes,
                    "stored_size": info.size + info.table_size,
                    "system": summary.system,
                    "missing": summary.missing,
                    "frozen": summary.options.get("frozen", []),
                }
            )
        try:
            session.check_newest(options.machine)
        except RolledBackError as error:
            rollback = error  # what there is, is listed all the same
    if unreadable:
        sets = plural(unreadable, "data set")
        verbs = "opens" if unreadable == 1 else "open"
        report_error(f"not listed: {sets} of this machine {verbs} with the password only")
    if options.machine and not (rows or damaged or unreadable):
        raise NoSuchDataSetError(f"cannot find a data set of machine {options.machine}")
    if options.json:
        print_json([*rows, *damaged])
    else:
        _print_rows(rows)
        for row in damaged:
            name = f"data set {row['id'][:10]} (number {row['generation']} of {row['machine']})"
            report_error(f"{name} cannot be read: {row['damage']}")
    if rollback is not None:
        raise rollback
    return ExitCode.PARTIAL if damaged else ExitCode.DONE


def _print_rows(rows: Sequence[dict[str, Any]]) -> None:
    print(
        f"{'id':<10} {'machine':<20} {'#':>5} {'created':<20} {'objects':>10} {'files':>12} "
        f"{'stored':>12} {'missing':>9}"
    )
    for row in rows:
        files, stored = size_text(row["content_size"]), size_text(row["stored_size"])
        print(
            f"{str(row['id'])[:10]:<10} {row['machine']:<20} {row['generation']:>5} "
            f"{row['created']:<20} "
            f"{row['objects']:>10,} {files:>12} {stored:>12} {row['missing'] or '':>9}"
        )


def _list_deleted(options: Snapshots) -> int:
    with open_session(options) as session:
        deleted = session.repository.deleted_data_sets()
    if options.machine:
        deleted = [item for item in deleted if item.info.machine == options.machine]
    if options.json:
        print_json(
            [
                {
                    "id": item.info.id,
                    "machine": item.info.machine,
                    "generation": item.info.generation,
                    "received_ns": item.info.created_ns,
                    "deleted_ns": item.deleted_ns,
                    "expires_ns": item.expires_ns,
                    "reason": item.reason,
                }
                for item in deleted
            ]
        )
        return ExitCode.DONE
    print(f"{'id':<10} {'machine':<20} {'#':>5} {'deleted':<20} {'gone for good':<20} by")
    for item in deleted:
        times = (second_text(ns // 10**9) for ns in (item.deleted_ns, item.expires_ns))
        when = " ".join(f"{time:<20}" for time in times)
        info = item.info
        print(f"{info.id[:10]:<10} {info.machine:<20} {info.generation:>5} {when} {item.reason}")
    return ExitCode.DONE


COMMANDS: Sequence[Command | Group] = (
    command("backup", Backup, run_backup),
    command("snapshots", Snapshots, run_snapshots, is_listing=True),
)
