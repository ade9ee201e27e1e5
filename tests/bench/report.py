# SPDX-License-Identifier: Apache-2.0
"""The results as text: one table for each kind of run, then the goals with their ratios."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.bench.measure import Cost

KINDS = {
    "first": "First backup",
    "unchanged": "Second backup, nothing changed",
    "restore": "Restore onto an empty ext4 image, flushed",
}
MACHINES, FILESYSTEMS = "measured", "filesystems"  # the parts of the page that are replaced

# kind -> contestant -> data set -> runs
Results = Mapping[str, Mapping[str, Mapping[str, list[Cost]]]]


@dataclass(frozen=True, slots=True)
class Goal:
    """`ratio` times faster than `peer` in `kind`, on these data sets."""

    kind: str
    peer: str
    ratio: float
    data: str


GOALS = (
    Goal("first", "restic", 2.0, "SM"),
    Goal("first", "borg", 2.0, "SM"),
    Goal("first", "restic", 1.0, "L"),
    Goal("first", "borg", 1.0, "L"),
    Goal("unchanged", "restic", 2.0, "SML"),
    Goal("unchanged", "borg", 2.0, "SML"),
    Goal("restore", "mke2fs -d", 1.5, "M"),
    Goal("restore", "restic", 4.0, "M"),
    Goal("restore", "mke2fs -d", 1.0, "SL"),
)
OURS = "rebuildkit, HTTPS"
OURS_LOCAL = "rebuildkit, local"


def best(runs: list[Cost]) -> Cost:
    """Return the run of the least wall time: the one that others disturbed least."""
    return min(runs, key=lambda run: run.wall_s)


def lines_of(results: Results) -> list[str]:
    """Return everything as Markdown."""
    lines = table_lines(results, KINDS)
    lines += [
        "### Goals",
        "",
        "| | goal | over HTTPS | local store | reached over HTTPS |",
        "| --- | --- | --- | --- | --- |",
    ]
    for goal in GOALS:
        for name in goal.data:
            lines += _goal(results, goal, name)
    return lines


def table_lines(results: Results, titles: Mapping[str, str]) -> list[str]:
    """Return a table for each kind of run that was measured."""
    lines: list[str] = []
    for kind, title in titles.items():
        rows = results.get(kind, {})
        names = sorted({name for row in rows.values() for name in row}, key="SML".find)
        if not rows:
            continue
        lines += [f"### {title}", "", "| | " + " | ".join(names) + " |"]
        lines.append("| --- |" + " --- |" * len(names))
        for contestant, row in rows.items():
            cells = [_cell(row[name]) if name in row else "" for name in names]
            lines.append(f"| {contestant} | " + " | ".join(cells) + " |")
        lines.append("")
    return lines


def _cell(runs: list[Cost]) -> str:
    run = best(runs)
    rss = run.rss_bytes >> 20
    return f"**{run.wall_s:.2f} s** ({run.cpu_s:.2f} CPU s, {rss} MiB; {run.foreign:.1f})"


def _goal(results: Results, goal: Goal, name: str) -> list[str]:
    rows = results.get(goal.kind, {})
    ours = find_runs(rows, OURS, name)
    local = find_runs(rows, OURS_LOCAL, name)
    peers = find_runs(rows, goal.peer, name)
    if not ours or not local or not peers:
        return []
    ratio = best(peers).wall_s / best(ours).wall_s
    ratio_local = best(peers).wall_s / best(local).wall_s
    verdict = "yes" if ratio >= goal.ratio else "**not yet**"
    about = f"{KINDS[goal.kind]}, {name}, against {goal.peer}"
    return [f"| {about} | {goal.ratio:.1f} x | {ratio:.2f} x | {ratio_local:.2f} x | {verdict} |"]


def find_runs(
    rows: Mapping[str, Mapping[str, list[Cost]]], prefix: str, name: str
) -> list[Cost] | None:
    """Return the runs on data set `name` of the first contestant whose name begins so."""
    for contestant, row in rows.items():
        if contestant.startswith(prefix):
            return row.get(name)
    return None


def marks_of(part: str) -> tuple[str, str]:
    """Return the lines between which a measured part of the page stands."""
    return f"<!-- {part}: begin -->", f"<!-- {part}: end -->"


def update_page(path: Path, lines: list[str], part: str = MACHINES) -> None:
    """Replace a measured part of a page."""
    begin, end = marks_of(part)
    head, _, rest = path.read_text().partition(begin)
    _, _, tail = rest.partition(end)
    path.write_text(head + begin + "\n" + "\n".join(lines) + "\n" + end + tail)
