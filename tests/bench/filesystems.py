# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.bench fs`: filling and reading volumes, beside the peers, in turn."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from functools import partial
from pathlib import Path

from tests.bench.data import DataSet, make_data_set
from tests.bench.fs_contestants import KINDS, OURS, Place
from tests.bench.measure import CommandFailedError, Cost, apart, head_lines, measure, settle, warm
from tests.bench.report import (
    FILESYSTEMS,
    Goal,
    Results,
    best,
    find_runs,
    table_lines,
    update_page,
)

GOALS = (
    Goal("populate-ext4", "mke2fs -d", 2.0, "SM"),
    Goal("populate-ext4", "mke2fs, mount", 3.0, "SM"),
    Goal("populate-ext4", "partclone", 3.0, "SM"),
    Goal("populate-ext4", "mke2fs -d", 1.0, "L"),
    Goal("populate-ext4", "mke2fs, mount", 1.0, "L"),
    Goal("populate-ext4", "partclone", 1.0, "L"),
    Goal("populate-fat32", "mkfs.fat, mcopy", 5.0, "M"),
    Goal("populate-ntfs", "mkntfs, wimapply", 1.5, "SML"),
    Goal("populate-ntfs", "mkntfs, ntfs-3g", 3.0, "SML"),
    Goal("read-ext4", "debugfs", 1.0, "SML"),
    Goal("read-ext4", "tsk_recover", 1.0, "SML"),
    Goal("read-ext4", "dissect", 1.0, "SML"),
    Goal("read-ext4", "no volume", 0.9, "L"),
    Goal("read-ntfs", "ntfs-3g", 1.0, "SML"),
    Goal("read-ntfs", "tsk_recover", 1.0, "SML"),
    Goal("read-ntfs", "dissect", 1.0, "SML"),
)
VERSIONS = (
    (["mke2fs", "-V"], r"mke2fs \S+"),
    (["tar", "--version"], r"tar \(GNU tar\) \S+"),
    (["partclone.ext4", "-v"], r"v\d\S+"),
    (["mcopy", "--version"], r"mtools\) \S+"),
    (["wimapply", "--version"], r"wimlib-imagex \S+"),
    (["ntfs-3g", "--version"], r"ntfs-3g \S+"),
    (["tsk_recover", "-V"], r"ver \S+"),
)
_HASH = re.compile(rb"(?:^| )([0-9a-f]{64}) ", re.MULTILINE)

Measured = dict[str, dict[str, dict[str, list[Cost]]]]


def run(args: argparse.Namespace) -> int:
    """Measure, and print the tables."""
    rounds = args.rounds or 3
    sets = [make_data_set(name, args.scratch, is_quick=args.quick) for name in args.data]
    kinds = args.kinds or list(KINDS)
    results: Measured = {kind: {} for kind in kinds}
    for number in range(rounds):
        for kind in kinds:
            for data in sets:
                if data.name in KINDS[kind][1]:
                    _measure_kind(kind, data, args, results[kind], is_checked=not number)
    command = f"fs --data {args.data} --rounds {rounds}"
    titles = {kind: title for kind, (title, _, _) in KINDS.items()}
    lines = [*head_lines(sets, command, VERSIONS), "", *table_lines(results, titles)]
    lines += goal_lines(results, titles)
    print("\n".join(lines))
    if args.json:
        args.json.write_text(json.dumps(results, default=asdict, indent=2))
    if args.update:
        update_page(args.update, lines, FILESYSTEMS)
    return 0


def goal_lines(results: Results, titles: dict[str, str]) -> list[str]:
    """Return the goals, with the ratio reached in wall and in processor time."""
    lines = [
        "### Goals",
        "",
        "| | goal | wall time | processor time | reached |",
        "| --- | --- | --- | --- | --- |",
    ]
    for goal in GOALS:
        rows = results.get(goal.kind, {})
        for name in goal.data:
            ours, peers = find_runs(rows, OURS, name), find_runs(rows, goal.peer, name)
            if not ours or not peers:
                continue
            wall = best(peers).wall_s / best(ours).wall_s
            cpu = min(run.cpu_s for run in peers) / min(run.cpu_s for run in ours)
            verdict = "yes" if wall >= goal.ratio else "**not yet**"
            about = f"{titles[goal.kind]}, {name}, against {goal.peer}"
            lines.append(
                f"| {about} | {goal.ratio:.1f} x | {wall:.2f} x | {cpu:.2f} x | {verdict} |"
            )
    return lines


def _measure_kind(
    kind: str,
    data: DataSet,
    args: argparse.Namespace,
    rows: dict[str, dict[str, list[Cost]]],
    *,
    is_checked: bool,
) -> None:
    """Measure one kind of run on one data set for everybody, in turn."""
    work = args.scratch / "work"
    shutil.rmtree(work, ignore_errors=True)
    (work / "mount").mkdir(parents=True)
    place = Place(data, work)
    try:
        for name, cell in KINDS[kind][2](place):
            if args.without_peers and name != OURS:
                break
            if cell.warmed is not None:
                warm(cell.warmed)
            settle()
            cost = measure(cell.script, environment=cell.environment)
            rows.setdefault(name, {}).setdefault(data.name, []).append(cost)
            print(
                f"{kind:14} {data.name} {name:32} {cost.wall_s:7.2f} s {cost.cpu_s:7.2f} CPU s "
                f"{cost.rss_bytes >> 20:5} MiB  foreign {cost.foreign:.1f}",
                file=sys.stderr,
                flush=True,
            )
            if is_checked and name == OURS:
                apart(partial(_check, kind, place))
            if cell.made is not None:
                cell.made.unlink()
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _check(kind: str, place: Place) -> None:
    """Make sure that what was made so fast is right, and that what was hashed is all.

    Raises:
        CommandFailedError: it is not.
    """
    action, _, fs_type = kind.partition("-")
    manifest = place.work / "manifest"
    if action == "populate":
        image = place.work / f"ours.{fs_type}"
        for checker in _checkers(fs_type, image):
            done = subprocess.run(checker, capture_output=True, text=True, check=False)
            if done.returncode:
                raise CommandFailedError(f"{checker}\n{done.stdout[-2000:]}{done.stderr}")
        script, environment = place.ours("manifest", image)
        measure(f"{script} > {manifest}", environment=environment)
    plain = Path(__file__).parent / "read_plain.py"
    command = [sys.executable, str(plain), str(place.data.directory)]
    wanted = subprocess.run(command, capture_output=True, check=True).stdout
    if action == "populate" and fs_type in ("fat32", "ntfs"):
        wanted = b"\n".join(_reachable(wanted.splitlines()))
    # More may be there: NTFS-3G keeps links and devices as files with content.
    if Counter(_HASH.findall(wanted)) - Counter(_HASH.findall(manifest.read_bytes())):
        raise CommandFailedError(f"{kind} {place.data.name}: other content than in the directory")


def _reachable(lines: list[bytes]) -> list[bytes]:
    """Return the lines (hash, path) whose path has no name that `mkfs --from` may leave out.

    Those are names that Windows cannot have, and those that only case tells from another.
    """
    paths = [line.partition(b" ")[2].split(b"/") for line in lines]
    seen: dict[tuple[bytes, ...], set[bytes]] = {}  # folded path of a name -> how it is written
    for path in paths:
        folded = tuple(name.lower() for name in path)
        for depth, name in enumerate(path, 1):
            seen.setdefault(folded[:depth], set()).add(name)
    kept = []
    for line, path in zip(lines, paths, strict=True):
        folded = tuple(name.lower() for name in path)
        is_alone = all(len(seen[folded[:depth]]) == 1 for depth in range(1, len(path) + 1))
        if is_alone and not re.search(rb'["*:<>?|\\]', b"/".join(path)):
            kept.append(line)
    return kept


def _checkers(kind: str, image: Path) -> list[list[str]]:
    """Return the commands that must be content with a volume."""
    ours = [sys.executable, "-m", "imagebuilder.cli", "fs", "check", str(image)]
    foreign = {
        "ext4": ["e2fsck", "-fn", str(image)],
        "fat32": ["fsck.fat", "-n", str(image)],
        "ntfs": ["ntfsfix", "-n", str(image)],
    }
    return [ours, foreign[kind]]
