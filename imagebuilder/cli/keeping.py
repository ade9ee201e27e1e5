# SPDX-License-Identifier: Apache-2.0
"""Commands that say what is kept, delete, and let machines in.

They are policy, forget, delete, undelete, enroll and credentials.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backup.shared.text import plural, second_text
from imagebuilder.cli.commands import Command, Group, command, flag, option
from imagebuilder.cli.common import (
    RefusedError,
    UsageError,
    confirm,
    json_flag,
    machine_option,
    policy_of,
    print_json,
)
from imagebuilder.cli.session import Place, canonical_fingerprint, choose_by_id, open_session
from rebuild.exit_codes import ExitCode

if TYPE_CHECKING:
    from backup.repository import DataSetInfo, Repository
    from backup.retention import Policy, Verdict

_RULES = ("last", "hourly", "daily", "weekly", "monthly", "yearly", "within")


def _count(text: str) -> int:
    """Return the number of a rule, for argparse."""
    from backup.retention import UNLIMITED

    if text == "unlimited":
        return UNLIMITED
    try:
        count = int(text)
    except ValueError:
        count = 0
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be 1 or more, or unlimited")
    return count


def _periods(usage: str, period: str) -> int | None:
    """Return the option of a rule by periods."""
    found: int | None = option(
        usage, f"keep the newest of each of the last N {period} that have one", type=_count
    )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyShow(Place):
    json: bool = json_flag()


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySet(Place):
    machine: str | None = machine_option(
        "of this machine alone (default: of all that have none of their own)"
    )
    last: int | None = option(
        "--keep-last N", "keep the N newest; 1 is what the patent does", type=_count
    )
    hourly: int | None = _periods("--keep-hourly N", "hours")
    daily: int | None = _periods("--keep-daily N", "days")
    weekly: int | None = _periods("--keep-weekly N", "weeks")
    monthly: int | None = _periods("--keep-monthly N", "months")
    yearly: int | None = _periods("--keep-yearly N", "years")
    within: str | None = option(
        "--keep-within TIME", "keep all that are no older, such as 1y5m7d2h, than the newest"
    )
    unset: bool = flag("--unset", "as if none had ever been set")


@dataclass(frozen=True, slots=True, kw_only=True)
class Forget(Place):
    machine: str | None = machine_option("only data sets of this machine")
    dry_run: bool = flag("-n --dry-run", "print what would be deleted, and delete nothing")
    yes: bool = flag("--yes", "do not ask")
    json: bool = json_flag()
    data_set: tuple[str, ...] = option(
        "DATA_SET",
        "delete these, by the beginning of their ids, whatever the policy",
        (),
        nargs="*",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteMachine(Place):
    yes: bool = flag("--yes", "do not ask")
    name: str = machine_option("name of the machine", "NAME")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteId(Place):
    yes: bool = flag("--yes", "do not ask")


@dataclass(frozen=True, slots=True, kw_only=True)
class Undelete(Place):
    machine: str | None = machine_option("all that is deleted of this machine")
    data_set: tuple[str, ...] = option(
        "DATA_SET", "what `snapshots --deleted` lists, by the beginning of its id", (), nargs="*"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Enroll(Place):
    machine: str = machine_option("name of the machine in the backups", required=True)
    output: Path = option(
        "--output FILE", "where to write the credential; no other file is replaced", type=Path,
        required=True,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialsList(Place):
    json: bool = json_flag()


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoke(Place):
    number: int = option("NUMBER", "as `credentials list` shows it", type=int)


def run_policy_show(options: PolicyShow) -> int:
    """Show which data sets stay."""
    from backup.retention import DEFAULT_POLICY

    with open_session(options) as session:
        policies = session.repository.policies()
    if options.json:
        default = policies.default or DEFAULT_POLICY
        own = {machine: policy.fields() for machine, policy in policies.machines.items()}
        print_json({"policy": default.fields(), "machines": own})
        return ExitCode.DONE
    if policies.default is None:
        print(f"all machines: {DEFAULT_POLICY.text} (nothing is set)")
    else:
        print(f"all machines: {policies.default.text}")
    for machine, policy in sorted(policies.machines.items()):
        print(f"{machine}: {policy.text}")
    return ExitCode.DONE


def run_policy_set(options: PolicySet) -> int:
    """Set which data sets stay, from the next backup on. All rules are given anew."""
    given = {name: getattr(options, name) for name in _RULES}
    rules = {name: value for name, value in given.items() if value is not None}
    if bool(rules) == options.unset:
        raise UsageError("give --keep-... rules, or --unset")
    policy: Policy | None = None if options.unset else policy_of(**rules)
    with open_session(options) as session:
        session.repository.set_policy(options.machine, policy)
    whose = options.machine or "all machines without a policy of their own"
    print(f"Set for {whose}: {policy.text if policy else 'no policy'}.")
    print("`rebuildkit forget --dry-run` shows what it does not keep of what is here now.")
    return ExitCode.DONE


def run_forget(options: Forget) -> int:
    """Delete data sets that the policy does not keep, or those that are named.

    They can be brought back with `rebuildkit undelete` for a while.
    """
    with open_session(options) as session:
        repository = session.repository
        verdicts = _plan(repository, options.machine, options.data_set)
        going = [verdict.data_set for verdict in verdicts if not verdict.stays]
        if options.json:
            print_json([_planned(verdict) for verdict in verdicts])
        else:
            print("\n".join(map(_line, verdicts)) or "There are no data sets.")
        if not going or options.dry_run:
            return ExitCode.DONE
        _ask(f"Delete {plural(len(going), 'data set')}?", options.yes)
        _delete(repository, going)
    if not options.json:
        print(f"Deleted {plural(len(going), 'data set')}. `rebuildkit undelete` brings them back.")
    return ExitCode.DONE


def run_delete_machine(options: DeleteMachine) -> int:
    """Delete all data sets of a machine, and revoke its credentials."""
    from backup.client.remembered import forget

    with open_session(options) as session:
        found = session.repository.data_sets(options.name)
        print("\n".join(_info_line(info) for info in found) or "It has no data sets.")
        _ask(
            f"Delete the machine {options.name} with {plural(len(found), 'data set')}?", options.yes
        )
        session.repository.delete_machine(options.name)
        forget(session.place, session.repository.user, options.name)
    print("Deleted. `rebuildkit undelete --machine NAME` brings it back for a while.")
    return ExitCode.DONE


def run_delete_id(options: DeleteId) -> int:
    """Delete everything of the id, and then the id itself."""
    with open_session(options) as session:
        found = session.repository.data_sets()
        print("\n".join(_info_line(info) for info in found) or "It has no data sets.")
        question = f"Delete the id {options.user} with {plural(len(found), 'data set')}?"
        _ask(question, options.yes)
        session.repository.delete_user()
    print("Deleted. `rebuildkit undelete` brings data sets back for a while, and the id with them.")
    return ExitCode.DONE


def run_undelete(options: Undelete) -> int:
    """Bring back what was deleted; no policy deletes it again."""
    if bool(options.data_set) == bool(options.machine):
        raise UsageError("name data sets, or a machine with --machine")
    with open_session(options) as session:
        deleted = [item.info for item in session.repository.deleted_data_sets()]
        if options.machine:
            found = [info for info in deleted if info.machine == options.machine]
        else:
            found = [choose_by_id(deleted, text) for text in options.data_set]
        _bring_back(session.repository, found, options.machine)
    print("\n".join(_info_line(info) for info in found))
    print(f"Brought back {plural(len(found), 'data set')}.")
    return ExitCode.DONE


def run_enroll(options: Enroll) -> int:
    """Let a machine back up without the password, and read nothing but its own backups."""
    from imagebuilder.cli.machine_file import MachineFile, write

    with open_session(options) as session:
        key = session.master.new_machine_key(options.machine)
        file = MachineFile(
            user=session.repository.user,
            machine=options.machine,
            server=options.server,
            fingerprint=canonical_fingerprint(options.fingerprint),
            store=None if options.store is None else str(options.store.resolve()),
            credential=os.urandom(32),
            key_id=key.id,
            key=key.secret,
        )
        with write(options.output, file):
            session.repository.enroll(options.machine, file.credential, key.id)
    print(f"Enrolled {options.machine}. On it, this backs up without the password:")
    print(f"    rebuildkit backup --credential {options.output}")
    print("Keep the file readable for root alone. Its first backup sends everything once.")
    return ExitCode.DONE


def run_credentials_list(options: CredentialsList) -> int:
    """List which machines back up without the password."""
    with open_session(options) as session:
        found = session.repository.credentials()
    if options.json:
        rows = [
            {"number": c.id, "machine": c.machine, "key": c.key_id, "created_ns": c.created_ns}
            for c in found
        ]
        print_json(rows)
        return ExitCode.DONE
    print(f"{'number':>6} {'machine':<20} {'enrolled':<20} {'key':<10}")
    for c in found:
        enrolled = second_text(c.created_ns // 10**9)
        print(f"{c.id:>6} {c.machine:<20} {enrolled:<20} {c.key_id.hex()[:10]:<10}")
    return ExitCode.DONE


def run_credentials_revoke(options: Revoke) -> int:
    """Make a machine's credential void, such as that of a stolen machine."""
    with open_session(options) as session:
        known = {credential.id: credential for credential in session.repository.credentials()}
        if options.number not in known:
            raise UsageError(f"there is no credential {options.number}: see `credentials list`")
        session.repository.revoke(options.number)
    print(f"Revoked a credential of {known[options.number].machine}.")
    print("`rebuildkit enroll` gives the machine a new one, with a new key.")
    return ExitCode.DONE


def _plan(
    repository: Repository, machine: str | None, wanted: Sequence[str]
) -> list[Verdict[DataSetInfo]]:
    """Return what becomes of the data sets; with `wanted`, of those that are named."""
    from backup.retention import Verdict, judge

    found = repository.data_sets(machine)
    if wanted:
        return [Verdict(_checked(choose_by_id(found, text), found), ()) for text in wanted]
    policies = repository.policies()
    now_ns = time.time_ns()
    verdicts = []
    for name in sorted({info.machine for info in found}):
        mine = [info for info in found if info.machine == name]
        # By the clock of the store: a computer whose own is behind contradicts nothing.
        latest_ns = max(now_ns, mine[-1].created_ns)
        verdicts += judge(mine, policies.of(name), latest_ns, policies.held)
    return verdicts


def _checked(info: DataSetInfo, found: Sequence[DataSetInfo]) -> DataSetInfo:
    """Return a data set that can be deleted by itself.

    Raises:
        ConflictError: it is the newest of its machine, the last one in `found`.
    """
    from backup.repository import ConflictError

    if info == [other for other in found if other.machine == info.machine][-1]:
        raise ConflictError(
            f"{info.id[:10]} is the newest data set of {info.machine} and goes with the machine "
            f"only: `rebuildkit delete machine {info.machine}`"
        )
    return info


def _delete(repository: Repository, going: Sequence[DataSetInfo]) -> None:
    from backup.wire import IDS_AT_ONCE

    for start in range(0, len(going), IDS_AT_ONCE):
        repository.delete_data_sets([info.id for info in going[start : start + IDS_AT_ONCE]])


def _bring_back(repository: Repository, found: Sequence[DataSetInfo], machine: str | None) -> None:
    from backup.repository import NoSuchDataSetError
    from backup.wire import IDS_AT_ONCE

    if not found:
        raise NoSuchDataSetError(f"nothing of machine {machine} is deleted")
    for start in range(0, len(found), IDS_AT_ONCE):
        repository.bring_back([info.id for info in found[start : start + IDS_AT_ONCE]])


def _ask(question: str, is_answered: bool) -> None:
    if not is_answered and not confirm(question):
        raise RefusedError("nothing was deleted: answer yes, or use --yes")


def _planned(verdict: Verdict[DataSetInfo]) -> dict[str, object]:
    info = verdict.data_set
    return {
        "id": info.id,
        "machine": info.machine,
        "generation": info.generation,
        "received_ns": info.created_ns,
        "stays": verdict.stays,
        "reasons": list(verdict.reasons),
    }


def _line(verdict: Verdict[DataSetInfo]) -> str:
    what = f"stays: {', '.join(verdict.reasons)}" if verdict.stays else "goes"
    return f"{_info_line(verdict.data_set)}  {what}"


def _info_line(info: DataSetInfo) -> str:
    received = second_text(info.created_ns // 10**9)
    return f"{info.id[:10]} {info.machine:<20} {info.generation:>5} {received}"


COMMANDS: Sequence[Command | Group] = (
    Group(
        "policy",
        "Show or set which data sets stay.",
        (
            command("show", PolicyShow, run_policy_show, is_listing=True),
            command("set", PolicySet, run_policy_set),
        ),
    ),
    command("forget", Forget, run_forget),
    Group(
        "delete",
        "Delete a machine, or everything.",
        (
            command("machine", DeleteMachine, run_delete_machine),
            command("id", DeleteId, run_delete_id),
        ),
    ),
    command("undelete", Undelete, run_undelete),
    command("enroll", Enroll, run_enroll),
    Group(
        "credentials",
        "List or revoke what machines log in with.",
        (
            command("list", CredentialsList, run_credentials_list, is_listing=True),
            command("revoke", Revoke, run_credentials_revoke),
        ),
    ),
)
