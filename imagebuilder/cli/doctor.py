# SPDX-License-Identifier: Apache-2.0
"""Commands that tell how things stand: doctor, status."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from backup.shared.text import missing_text, plural, second_text, size_text
from imagebuilder.cli.commands import Command, Group, command, option
from imagebuilder.cli.common import json_flag, machine_option, print_json, seconds_of_text
from imagebuilder.cli.session import MachinePlace, Session, open_session
from rebuild.exit_codes import ExitCode

if TYPE_CHECKING:
    from backup.client.discs import KnownDisc
    from backup.objects.table import Summary
    from backup.repository import DataSetInfo

DAY_S = 86_400.0
# Of findings, the gravest last.
GRAVITY = (ExitCode.PARTIAL, ExitCode.NO_DATA_SET, ExitCode.LAYOUT, ExitCode.FAILED)
OLD_MEDIUM_S = 3 * 365 * DAY_S  # of a written disc or stick, after which it is worth a new one


@dataclass(frozen=True, slots=True, kw_only=True)
class About(MachinePlace):
    machine: str | None = machine_option(
        "name of the machine in the backups; --credential says it by itself", setting="machine"
    )
    max_age: float = option(
        "--max-age TIME",
        "how old the newest backup may be, such as 36h or 8d (default: 2d)",
        2 * DAY_S,
        type=seconds_of_text,
    )
    json: bool = json_flag()


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to see to, and what to do."""

    code: ExitCode
    text: str
    advice: str


@dataclass(frozen=True, slots=True)
class State:
    """How things stand with one machine."""

    machine: str
    data_sets: Sequence[DataSetInfo]  # the newest last
    newest: Summary | None  # what is sealed in the newest
    discs: Sequence[KnownDisc]  # built on this computer, the newest last
    on_disc: Summary | None  # what is on the newest of them, if the repository still has it
    age_s: float  # of the newest data set


def unrecoverable_parts() -> list[str]:
    """Return what of this machine a backup would refuse, each in a sentence; needs root.

    Raises:
        AgentError: it cannot be looked at.
    """
    from backup.agent.live.source import LiveSource

    with closing(LiveSource()) as source:
        return [f"{item.device}: {item.reason}" for item in source.inspect(allow_raw=False)]


def findings_on_hardware(root: bytes = b"/") -> Iterator[Finding]:
    """Yield what this machine cannot start without and another computer does not have."""
    from backup.agent.live.source import hardware_names_on
    from backup.shared.hardware_names import FSTAB

    for name in hardware_names_on(root):
        if name.is_needed:
            at_restore = "; a restore says so, too" if name.path != FSTAB else "; a restore does it"
            yield Finding(
                ExitCode.PARTIAL,
                f"On another computer this machine may not start: {name.what()}",
                name.advice + at_restore,
            )


def run_doctor(options: About) -> int:
    """Say whether this machine can be recovered, and what to do about it. Made for people and for
    monitoring: the exit code is that of the gravest finding, and 0 if there is none."""
    with open_session(options) as session:
        state = _state_of(session, options.machine)
        rollbacks = session.rollbacks(state.machine)
    findings = [*_of_backups(state, options.max_age), *_of_discs(state), *_of_this_machine()]
    findings += findings_on_hardware()
    findings += [
        Finding(ExitCode.FAILED, str(error), "ask who runs the server what happened")
        for error in rollbacks.values()
    ]
    code = max((item.code for item in findings), key=GRAVITY.index, default=ExitCode.DONE)
    if options.json:
        print_json(
            {
                "version": 1,
                "machine": state.machine,
                "is_well": not findings,
                "findings": [{**asdict(item), "code": int(item.code)} for item in findings],
                **_facts(state),
            }
        )
        return code
    print("\n".join(_status_lines(state)))
    for finding in findings:
        print(f"! {finding.text}")
        print(f"  To do: {finding.advice}")
    if not findings:
        print("All is well.")
    return code


def run_status(options: About) -> int:
    """Say where this machine's backups are, how many there are, and when the last one was made."""
    with open_session(options) as session:
        state = _state_of(session, options.machine)
        place = options.server or options.store or session.place
    if options.json:
        print_json({"version": 1, "machine": state.machine, "place": str(place), **_facts(state)})
        return ExitCode.DONE
    print(f"{state.machine} is backed up to {place} as {options.user or session.repository.user}.")
    print("\n".join(_status_lines(state)))
    print("`rebuildkit doctor` says what there is to do; `rebuildkit snapshots` lists all backups.")
    return ExitCode.DONE


def _state_of(session: Session, machine: str | None) -> State:
    from backup.client.discs import known_discs
    from backup.repository import NoSuchDataSetError
    from imagebuilder.cli.session import choose_data_set

    repository = session.repository
    try:
        chosen = choose_data_set(repository, machine)
    except NoSuchDataSetError:
        if machine is None:
            raise
        return State(machine, [], None, [], None, 0.0)
    found = list(repository.data_sets(chosen.machine))
    newest = session.summary_of(found[-1])
    discs = known_discs(session.place, repository.user, chosen.machine)
    kept = {info.id: info for info in found}
    on_disc = session.summary_of(kept[discs[-1].data_set]) if _is_kept(discs, kept) else None
    age_s = max(time.time() - newest.created_ns / 1e9, 0.0)
    return State(chosen.machine, found, newest, discs, on_disc, age_s)


def _is_kept(discs: Sequence[KnownDisc], kept: dict[str, DataSetInfo]) -> bool:
    return bool(discs) and discs[-1].data_set in kept


def _of_backups(state: State, max_age_s: float) -> Iterator[Finding]:
    if state.newest is None:
        yield Finding(
            ExitCode.NO_DATA_SET, f"{state.machine} was never backed up.", "rebuildkit backup"
        )
        return
    if state.age_s > max_age_s:
        yield Finding(
            ExitCode.PARTIAL,
            f"The newest backup is {_age_text(state.age_s)} old.",
            "rebuildkit backup, and look why the nightly one did not run",
        )
    if state.newest.missing:
        losses = "; ".join(state.newest.losses[:3])
        yield Finding(
            ExitCode.PARTIAL,
            f"The newest backup is without {missing_text(state.newest.missing)}: {losses}",
            "see to what it names, then rebuildkit backup",
        )


def _of_discs(state: State) -> Iterator[Finding]:
    if state.newest is None:
        return
    build = "rebuildkit image build -o rescue.iso, then rebuildkit rehearse rescue.iso"
    if not state.discs:
        yield Finding(ExitCode.PARTIAL, "No recovery disc was built on this computer.", build)
        return
    disc = state.discs[-1]
    age_s = time.time() - disc.built_s
    if age_s > OLD_MEDIUM_S:
        yield Finding(
            ExitCode.PARTIAL, f"The newest disc is {_age_text(age_s)} old, and media age.", build
        )
    if state.on_disc is None:
        yield Finding(
            ExitCode.PARTIAL,
            f"The newest disc is of backup {disc.generation}, which is not kept any more.",
            build,
        )
        return
    changed = sorted(
        name
        for name in {*state.on_disc.system, *state.newest.system}
        if state.on_disc.system.get(name) != state.newest.system.get(name)
    )
    if changed:
        yield Finding(
            ExitCode.PARTIAL,
            f"The system has changed since the newest disc was built ({', '.join(changed)}).",
            build,
        )


def _of_this_machine() -> Iterator[Finding]:
    """Yield what a backup of this machine would refuse; only root can look."""
    if os.geteuid():
        return
    from backup.agent.errors import AgentError

    try:
        problems = unrecoverable_parts()
    except AgentError as error:
        problems = [str(error)]
    for problem in problems:
        yield Finding(
            ExitCode.LAYOUT,
            f"A backup of this machine would be refused: {problem}",
            "rebuildkit backup --help names what can be left out or kept as a raw image",
        )


def _facts(state: State) -> dict[str, object]:
    newest = state.newest
    return {
        "backups": len(state.data_sets),
        "newest": None
        if newest is None
        else {
            "data_set": newest.data_set_id.hex(),
            "generation": newest.generation,
            "created_ns": newest.created_ns,
            "age_s": int(state.age_s),
            "objects": newest.object_count,
            "content_size": newest.content_bytes,
            "missing": newest.missing,
        },
        "discs": [asdict(disc) for disc in state.discs],
    }


def _status_lines(state: State) -> list[str]:
    newest = state.newest
    if newest is None:
        return [f"There is no backup of {state.machine}."]
    stored = sum(info.size + info.table_size for info in state.data_sets)
    lines = [
        f"{plural(len(state.data_sets), 'backup')}; the newest is number {newest.generation} of "
        f"{second_text(newest.created_ns // 10**9)} UTC, {_age_text(state.age_s)} ago: "
        f"{plural(newest.object_count, 'object')}, {size_text(newest.content_bytes)} of files; "
        f"at most {size_text(stored)} stored.",
    ]
    if state.discs:
        disc = state.discs[-1]
        lines.append(
            f"The newest disc built here is {disc.path}, of backup {disc.generation}, built "
            f"{second_text(disc.built_s)} UTC."
        )
    else:
        lines.append("No recovery disc was built on this computer.")
    return lines


def _age_text(seconds: float) -> str:
    """Return a length of time in the unit in which people say it."""
    for size, unit in ((365 * DAY_S, "year"), (DAY_S, "day"), (3600.0, "hour")):
        if seconds >= 2 * size:
            return plural(int(seconds // size), unit)
    minutes = int(seconds // 60)
    return plural(minutes, "minute") if minutes else "less than a minute"


COMMANDS: Sequence[Command | Group] = (
    command("doctor", About, run_doctor),
    command("status", About, run_status, is_listing=True),
)
