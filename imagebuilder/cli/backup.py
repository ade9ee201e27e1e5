# SPDX-License-Identifier: Apache-2.0
"""Commands of the backup side: server, register, backup, snapshots, ls, key."""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imagebuilder.cli.common import (
    DONE,
    PARTIAL,
    StatusLine,
    UsageError,
    add_repository,
    choose_data_set,
    open_session,
    print_json,
    read_new_password,
    read_password,
    report_error,
)

if TYPE_CHECKING:
    from backup.agent.sources import Source
    from backup.objects.model import NodeObject

# What every backup uses; the drivers of ext are those most machines need.
AGENT_MODULES = (
    "backup.agent.backup",
    "backup.agent.sources",
    "fsdrivers.ext.volume",
    "fsdrivers.ext.mkfs.plan",
)


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parsers of this module's commands."""
    _add_server(commands)
    _add_register(commands)
    _add_backup(commands)
    snapshots = commands.add_parser("snapshots", help="list data sets")
    add_repository(snapshots)
    snapshots.add_argument("--machine", metavar="NAME", help="only this machine's")
    snapshots.add_argument("--json", action="store_true", help="print JSON")
    snapshots.set_defaults(run=run_snapshots)
    listing = commands.add_parser("ls", help="list what is in a data set")
    add_repository(listing)
    listing.add_argument("--machine", metavar="NAME")
    listing.add_argument("--data-set", metavar="ID", help="another than the newest")
    listing.add_argument("--json", action="store_true", help="print one JSON object per line")
    listing.add_argument("path", nargs="?", default="/", help="only what is at or below this path")
    listing.set_defaults(run=run_ls)
    _add_key(commands)


def _add_server(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("server", help="serve a directory to agents and image builders")
    parser.add_argument("--data", metavar="DIR", type=Path, required=True)
    parser.add_argument("--listen", metavar="HOST:PORT", default="127.0.0.1:8443")
    parser.add_argument(
        "--no-tls", action="store_true", help="plain HTTP, for a proxy on the same machine"
    )
    parser.add_argument("--log-requests", action="store_true", help="one line for every request")
    parser.set_defaults(run=run_server)


def _add_register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("register", help="make an id on a server")
    add_repository(parser)
    parser.set_defaults(run=run_register)


def _add_backup(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "backup", help="back a machine or its disks up", description="Without --disk: this machine."
    )
    add_repository(parser)
    parser.add_argument("--machine", metavar="NAME", required=True)
    parser.add_argument(
        "--disk", metavar="PATH", type=Path, action="append", default=[], help="a disk or an image"
    )
    parser.add_argument(
        "--allow-raw",
        action="store_true",
        help="keep partitions that no driver knows as compressed raw images",
    )
    parser.add_argument("--exclude", metavar="PATTERN", action="append", default=[])
    parser.add_argument("--keep", metavar="N", type=int, help="data sets that stay; default 7")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=run_backup)


def _add_key(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("key", help="recovery keys and passwords")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    export = actions.add_parser(
        "export", help="print a new recovery key, which opens what the password opens"
    )
    add_repository(export)
    export.set_defaults(run=run_key_export)
    passwd = actions.add_parser("passwd", help="change the password; discs keep their old one")
    add_repository(passwd)
    passwd.add_argument("--new-password-file", metavar="FILE")
    passwd.set_defaults(run=run_key_passwd)
    revoke = actions.add_parser("revoke", help="make all recovery keys void for new discs")
    add_repository(revoke)
    revoke.set_defaults(run=run_key_revoke)


def run_server(args: argparse.Namespace) -> int:
    """Serve until interrupted."""
    from backup.server.run import run

    host, _, port = args.listen.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"--listen takes HOST:PORT, not {args.listen!r}")

    def say(text: str) -> None:
        print(text, flush=True)

    def report(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    run(
        args.data,
        host.strip("[]"),
        int(port),
        not args.no_tls,
        say,
        report=report,
        logs_requests=args.log_requests,
    )
    return DONE


def run_register(args: argparse.Namespace) -> int:
    """Make a master key and register the id with its key file."""
    from backup.objects.keys import create_key_file
    from imagebuilder.cli.common import open_host

    password = read_password(args, confirm=True)
    made = create_key_file(args.user, password)
    host = open_host(args, create=True)
    try:
        host.register(args.user, made.data, made.login_secret)
    finally:
        host.close()
    print(f"Registered {args.user}. Without the password or a recovery key")
    print("(rebuildkit key export) nobody can read the backups, not even the server.")
    return DONE


def run_backup(args: argparse.Namespace) -> int:
    """Back up disks, images or the running machine."""
    status = StatusLine()
    sources: list[Source] = []

    def prepare(is_waiting: Callable[[], bool]) -> None:
        from backup.agent.sources import DiskSource
        from rebuild.collector import paused_collector

        sources.extend(_sources_of(args.disk))
        with paused_collector():
            for source in sources:
                if isinstance(source, DiskSource):
                    source.prepare(allow_raw=args.allow_raw, is_waiting=is_waiting)

    create = bool(args.store)
    with open_session(args, create=create, needed=AGENT_MODULES, prepare=prepare) as session:
        from backup.agent.backup import run_backup as back_up
        from backup.agent.result import BackupOptions
        from imagebuilder.cli.progress import BackupProgress

        keep = {} if args.keep is None else {"keep": args.keep}
        options = BackupOptions(
            allow_raw=args.allow_raw,
            exclude=tuple(pattern.encode("utf-8", "surrogateescape") for pattern in args.exclude),
            **keep,
        )
        session.check_newest(args.machine)
        try:
            result = back_up(
                session.repository,
                session.master,
                args.machine,
                sources or _sources_of(args.disk),
                options,
                BackupProgress(status),
            )
        finally:
            status.clear()
        session.check_newest(args.machine)
    if args.json:
        print_json(result.to_dict())
    else:
        assert result.data_set is not None
        print(
            f"{result.objects:,} objects: {result.new:,} new, {result.changed:,} changed, "
            f"{result.unchanged:,} unchanged, {result.removed:,} removed"
        )
        print(
            f"{result.bytes_read / (1 << 20):,.1f} MiB read, "
            f"{result.bytes_sent / (1 << 20):,.1f} MiB sent in {result.duration_s:.1f} s"
        )
        print(f"data set {result.data_set.id} of machine {args.machine}")
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    for warning in result.warnings:
        report_error(f"warning: {warning}")
    return PARTIAL if result.is_partial else DONE


def _sources_of(disks: Sequence[Path]) -> list[Source]:
    """Return the given disks as sources, or the running machine."""
    if disks:
        from backup.agent.sources import DiskSource

        return [DiskSource(path) for path in disks]
    from backup.agent.live.source import LiveSource

    return [LiveSource()]


def run_snapshots(args: argparse.Namespace) -> int:
    """List data sets, with what their sealed summaries say."""
    from backup.objects.table import read_summary
    from backup.repository import NoSuchDataSetError

    rows = []
    with open_session(args) as session:
        for info in session.repository.data_sets(args.machine):
            with session.repository.open_table(info.id) as stream:
                summary = read_summary(session.master, stream)
            rows.append(
                {
                    "id": info.id,
                    "machine": info.machine,
                    "created_ns": summary.created_ns,
                    "created": _time_text(summary.created_ns),
                    "generation": info.generation,
                    "objects": summary.object_count,
                    "content_size": summary.content_bytes,
                    "stored_size": info.size + info.table_size,
                    "system": summary.system,
                }
            )
    if args.machine and not rows:
        raise NoSuchDataSetError(f"there is no data set of machine {args.machine}")
    if args.json:
        print_json(rows)
        return DONE
    print(
        f"{'id':<10} {'machine':<20} {'created':<20} {'objects':>10} {'files':>12} {'stored':>12}"
    )
    for row in rows:
        print(
            f"{str(row['id'])[:10]:<10} {str(row['machine'])[:20]:<20} {row['created']:<20} "
            f"{row['objects']:>10,} {_mib(row['content_size']):>12} {_mib(row['stored_size']):>12}"
        )
    return DONE


def run_ls(args: argparse.Namespace) -> int:
    """List the objects of a data set."""
    import json

    from backup.objects.model import NodeObject, ObjectKind, VolumeObject
    from backup.objects.table import TableReader

    prefix = "/" + args.path.strip("/")
    volumes: dict[int, VolumeObject] = {}
    paths: dict[int, bytes] = {}
    found = False
    with open_session(args) as session:
        info = choose_data_set(session.repository, args.machine, args.data_set)
        with session.repository.open_table(info.id) as stream:
            for item in TableReader(session.master, stream):
                if isinstance(item, VolumeObject):
                    volumes[item.number] = item
                if not isinstance(item, NodeObject):
                    continue
                parent = paths.get(item.parent, b"")
                path = parent.rstrip(b"/") + b"/" + item.name if item.parent else b"/"
                if item.kind == ObjectKind.DIRECTORY:
                    paths[item.number] = path
                text = path.decode("utf-8", "surrogateescape")
                if prefix != "/" and text != prefix and not text.startswith(prefix + "/"):
                    continue
                found = True
                volume = volumes[item.volume]
                if args.json:
                    shown = path.decode("utf-8", "backslashreplace")
                    print(json.dumps(_listed(item, shown, volume.partition), ensure_ascii=False))
                else:
                    print(_ls_line(item, path, volume.partition))
    if not found and prefix != "/":
        raise FileNotFoundError(2, "not in the data set", args.path)
    return DONE


def run_key_export(args: argparse.Namespace) -> int:
    """Add a recovery slot to the key file and print its key."""
    from backup.objects.keys import add_recovery_key

    with open_session(args) as session:
        old = session.repository.key_file()
        data, text = add_recovery_key(old, session.master)
        session.repository.replace_key_file(data, expected=old)
    print("Recovery key. Whoever has it can open the backups and every disc built from now on.")
    print("Print it, keep it in a safe place, and do not keep it on this machine.")
    print()
    print(f"    {text}")
    return DONE


def run_key_passwd(args: argparse.Namespace) -> int:
    """Change the password."""
    from backup.objects.keys import change_password

    with open_session(args) as session:
        old = session.repository.key_file()
        password = read_new_password(args.new_password_file)
        data, login_secret = change_password(old, session.master, args.user, password)
        session.repository.replace_key_file(data, new_login_secret=login_secret, expected=old)
    print("The password is changed. Discs that exist still open with the old one.")
    return DONE


def run_key_revoke(args: argparse.Namespace) -> int:
    """Remove every recovery slot from the key file."""
    from backup.objects.keys import remove_recovery_keys

    with open_session(args) as session:
        old = session.repository.key_file()
        session.repository.replace_key_file(remove_recovery_keys(old, session.master), expected=old)
    print("Recovery keys are void for new discs. Discs that exist still open with them.")
    return DONE


def _time_text(time_ns: int) -> str:
    moment = datetime.datetime.fromtimestamp(time_ns / 1e9, datetime.UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def _mib(size: object) -> str:
    assert isinstance(size, int)
    return f"{size / (1 << 20):,.1f} MiB"


def _listed(item: NodeObject, path: str, partition: int) -> dict[str, object]:
    return {
        "path": path,
        "partition": partition,
        "type": item.kind.name.lower(),
        "size": item.size,
        "mode": item.mode,
        "uid": item.uid,
        "gid": item.gid,
        "modified_ns": item.modified_ns,
        "signature": item.signature.hex(),
    }


def _ls_line(item: NodeObject, path: bytes, partition: int) -> str:
    from rebuild.text import printable

    letter = {1: "d", 3: "l", 4: "c", 5: "b", 6: "p", 7: "s", 8: "h"}.get(item.kind, "-")
    name = printable(path.decode("utf-8", "backslashreplace"))
    if item.target:
        name += " -> " + printable(item.target.decode("utf-8", "backslashreplace"))
    return (
        f"{partition}: {letter}{item.mode:04o} {item.uid:>6} {item.gid:>6} {item.size:>12} "
        f"{_time_text(item.modified_ns)} {name}"
    )
