# SPDX-License-Identifier: Apache-2.0
"""The commands of who runs a server: server, and what it does beside serving."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from backup.shared.text import second_text
from imagebuilder.cli.commands import Command, Group, command, flag, option
from imagebuilder.cli.common import (
    UsageError,
    json_flag,
    name_of_text,
    print_json,
    seconds_of_text,
    size_of_text,
)
from rebuild.exit_codes import ExitCode

if TYPE_CHECKING:
    from backup.server.places import Network
    from backup.store.store import Store

MOST_USES = 1_000_000  # of an invitation


def _address(text: str) -> tuple[str, int]:
    """Return host and port to listen on, for argparse."""
    from backup.repository import InvalidRequestError
    from backup.server.run import parse_address

    try:
        return parse_address(text)
    except InvalidRequestError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _network(text: str) -> Network:
    """Return an address or a network, for argparse."""
    from backup.repository import InvalidRequestError
    from backup.server.front import parse_network

    try:
        return parse_network(text)
    except InvalidRequestError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    data: Path = option("--data DIR", "where everything is kept", type=Path, required=True)
    listen: tuple[str, int] = option(
        "--listen HOST[:PORT]",
        "address to listen on, such as 0.0.0.0:8443, localhost or [::1] (default: 127.0.0.1:8443)",
        "127.0.0.1:8443",
        type=_address,
    )
    no_tls: bool = flag("--no-tls", "plain HTTP, for a proxy on the same machine")
    trust_proxy: tuple[Network, ...] = option(
        "--trust-proxy ADDRESS",
        "believe this address, or network such as 192.0.2.0/24, when it says for whom it asks "
        "(X-Forwarded-For); may be repeated",
        type=_network,
        default=(),
    )
    max_connections: int | None = option(
        "--max-connections N",
        "how many connections to serve at once, each taking up to 1 MiB of memory (default: 512)",
        type=int,
    )
    open_registration: bool = flag(
        "--open-registration",
        "let anyone register; by default only the first id and those with an invitation can",
    )
    log_requests: bool = flag("--log-requests", "print one line for every request")


@dataclass(frozen=True, slots=True, kw_only=True)
class Invite:
    data: Path = option("--data DIR", "the server's directory", type=Path, required=True)
    uses: int = option("--uses N", "how many ids it is good for (default: 1)", 1, type=int)
    valid_for: float = option(
        "--valid-for TIME",
        "how long it can be used, such as 12h or 30d (default: 7d)",
        "7d",
        type=seconds_of_text,
    )
    quota: int | None = option(
        "--quota SIZE", "how much each may keep, such as 500G", type=size_of_text
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    data: Path = option("--data DIR", "the server's directory", type=Path, required=True)
    user: str | None = option(
        "--user ID", "set it for this id (default: for all that have none)", type=name_of_text
    )
    unset: bool = flag("--unset", "back to the default; without --user: no bound")
    json: bool = json_flag()
    size: int | None = option(
        "SIZE", "how much may be kept, such as 500G", nargs="?", type=size_of_text
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    data: Path = option(
        "--data DIR", "the directory of a server or a store", type=Path, required=True
    )
    plan: bool = flag("--plan", "print what would be in the catalogue and stop")
    json: bool = json_flag()


@dataclass(frozen=True, slots=True, kw_only=True)
class Grace:
    data: Path = option(
        "--data DIR", "the directory of a server or a store", type=Path, required=True
    )
    time: float | None = option(
        "TIME", "how long, such as 14d; 0 deletes at once", nargs="?", type=seconds_of_text
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    data: Path = option(
        "--data DIR", "the directory of a server or a store", type=Path, required=True
    )
    user: str = option("--user ID", "whose", type=name_of_text, required=True)
    put_back: int | None = option("--put-back NUMBER", "make this one the present one", type=int)


def run_server(options: Server) -> int:
    """Serve a directory to agents and image builders, until interrupted."""
    from backup.server.limits import Limits
    from backup.server.run import run

    limits = Limits()
    if options.max_connections is not None:
        limits = limits.for_connections(options.max_connections)
    run(
        options.data,
        *options.listen,
        not options.no_tls,
        partial(print, flush=True),
        report=partial(print, file=sys.stderr, flush=True),
        logs_requests=options.log_requests,
        limits=limits,
        proxies=options.trust_proxy,
        is_open=options.open_registration,
    )
    return ExitCode.DONE


def run_invite(options: Invite) -> int:
    """Print an invitation, with which an id can be registered. The server may be running."""
    if not 1 <= options.uses <= MOST_USES:
        raise UsageError(f"--uses must be 1 to {MOST_USES:,}")
    with _opened(options.data) as store:
        print(store.invite(options.uses, options.valid_for, options.quota))
    return ExitCode.DONE


def run_quota(options: Quota) -> int:
    """List how much each id keeps and may keep, or set how much it may."""
    if options.size is not None and options.unset:
        raise UsageError("give a size or --unset, not both")
    with _opened(options.data) as store:
        if options.size is not None or options.unset:
            store.set_quota(options.user, options.size)
            return ExitCode.DONE
        usages = [u for u in store.usages() if options.user in (None, u.user)]
    if options.json:
        print_json([{"user": u.user, "size": u.size, "quota": u.quota} for u in usages])
        return ExitCode.DONE
    for usage in usages:
        quota = "-" if usage.quota is None else _gib(usage.quota)
        print(f"{_gib(usage.size):>14} {quota:>14}  {usage.user}")
    return ExitCode.DONE


def run_repair(options: Repair) -> int:
    """Rebuild the catalogue of a store from the files that lie in it. Nothing else may use it."""
    from backup.store.repair import repair_store

    plan = repair_store(options.data, is_applied=not options.plan)
    if options.json:
        print_json(asdict(plan))
    else:
        print("\n".join(plan.lines()))
        if not options.plan:
            print("A catalogue that was there before is kept beside it.")
    return ExitCode.PARTIAL if plan.unreadable else ExitCode.DONE


def run_grace(options: Grace) -> int:
    """Show or set how long what is deleted can be brought back, of all ids. Default: 7 days."""
    with _opened(options.data) as store:
        if options.time is None:
            print(f"{store.grace_s() / 86400:g} days")
            return ExitCode.DONE
        store.set_grace(options.time)
        store.sweep()
    return ExitCode.DONE


def run_keys(options: Keys) -> int:
    """List the key files that an id had before, or put one back.

    With it the password of that time counts again.
    """
    with _opened(options.data) as store:
        if options.put_back is not None:
            store.put_back_key_file(options.user, options.put_back)
            print(f"The id {options.user} opens with the password of that key file again.")
            return ExitCode.DONE
        found = store.old_key_files(options.user)
    print(f"{'number':>6} replaced")
    for old in found:
        print(f"{old.id:>6} {second_text(old.replaced_ns // 10**9)}")
    return ExitCode.DONE


def _opened(directory: Path) -> Store:
    from backup.store.local import open_store

    return open_store(directory)


def _gib(size: int) -> str:
    return f"{size / (1 << 30):,.2f} GiB"


COMMANDS: tuple[Command | Group, ...] = (
    Group(
        "server",
        "Serve a directory to agents and image builders, until interrupted.",
        (
            command("invite", Invite, run_invite, is_listing=True),
            command("quota", Quota, run_quota),
            command("repair", Repair, run_repair),
            command("grace", Grace, run_grace),
            command("keys", Keys, run_keys, is_listing=True),
        ),
        plain=command("server", Server, run_server),
    ),
)
