# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.bench`: rebuildkit and its peers on the same data, in turn, in one run.

Needs root, for loop mounts.  The first run makes the data sets (minutes, 9 GiB of disk).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from tests.bench import filesystems, million
from tests.bench.contestants import VERSIONS, Contestant, Ours, contestants
from tests.bench.data import DataSet, make_data_set
from tests.bench.fs_contestants import KINDS as KINDS_OF_FS
from tests.bench.measure import CommandFailedError, Cost, head_lines, measure, settle, warm
from tests.bench.report import KINDS, lines_of, update_page

Measured = dict[str, dict[str, dict[str, list[Cost]]]]


def main() -> int:
    """Measure, and print the tables."""
    args = _parser().parse_args()
    if os.geteuid():
        print("bench: needs root, for loop mounts", file=sys.stderr)
        return 2
    args.scratch.mkdir(parents=True, exist_ok=True)
    if args.what == "fs":
        return filesystems.run(args)
    if args.what == "million":
        return million.run(args)
    rounds = 1 if args.quick and args.rounds is None else args.rounds or 3
    scratch = args.scratch
    sets = [make_data_set(name, scratch, is_quick=args.quick) for name in args.data]
    results: Measured = {kind: {} for kind in KINDS}
    for number in range(rounds):
        for data in sets:
            work = scratch / "work"
            with contestants(data, work, without_peers=args.without_peers) as everyone:
                for kind in KINDS:
                    if kind != "first" and kind in args.skip:
                        continue
                    _measure_kind(kind, data, everyone, results, is_checked=not number)
    command = f"--data {args.data} --rounds {rounds}"
    lines = [*head_lines(sets, command, VERSIONS), "", *lines_of(results)]
    print("\n".join(lines))
    if args.json:
        args.json.write_text(json.dumps(results, default=asdict, indent=2))
    if args.update:
        update_page(args.update, lines)
    return 0


def _measure_kind(
    kind: str,
    data: DataSet,
    everyone: list[Contestant],
    results: Measured,
    *,
    is_checked: bool,
) -> None:
    """Measure one kind of run for everybody, in turn."""
    for contestant in everyone:
        cell = getattr(contestant, kind)()
        if cell is None:
            continue
        if cell.warmed is not None:
            warm(cell.warmed)
        settle()
        cost = measure(cell.script, environment=cell.environment, server_pid=cell.server_pid)
        row = results[kind].setdefault(contestant.name, {})
        row.setdefault(data.name, []).append(cost)
        print(
            f"{kind:10} {data.name} {contestant.name:26} {cost.wall_s:7.2f} s "
            f"{cost.cpu_s:7.2f} CPU s {cost.rss_bytes >> 20:5} MiB  foreign {cost.foreign:.1f}",
            file=sys.stderr,
            flush=True,
        )
        if cell.made is not None:
            if is_checked and isinstance(contestant, Ours):
                _check(contestant, cell.made)
            cell.made.unlink()


def _check(contestant: Ours, image: Path) -> None:
    """Make sure that what was restored so fast is right.

    Raises:
        CommandFailedError: it is not.
    """
    done = subprocess.run(["e2fsck", "-fn", image], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CommandFailedError(f"e2fsck -fn {image}\n{done.stdout[-2000:]}")
    cell = contestant.compare(image)
    measure(cell.script, environment=cell.environment)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    default = Path(os.environ.get("REBUILDKIT_CACHE") or Path.home() / ".cache/rebuildkit")
    parser.add_argument(
        "what",
        nargs="?",
        choices=["machines", "fs", "million"],
        default="machines",
        help="machines, filesystems, or the memory that a million files take",
    )
    parser.add_argument("--quick", action="store_true", help="a twentieth of M and L, once")
    parser.add_argument("--rounds", type=int, help="how often; the best counts; 3")
    parser.add_argument("--data", default="SML", help="which data sets; SML")
    parser.add_argument("--scratch", type=Path, default=default / "bench", help="for data")
    parser.add_argument("--without-peers", action="store_true", help="only rebuildkit")
    parser.add_argument("--skip", nargs="*", default=[], choices=["unchanged", "restore"])
    parser.add_argument("--kinds", nargs="*", choices=list(KINDS_OF_FS), help="of fs, which")
    parser.add_argument("--files", type=int, default=1_000_000, help="of million, how many")
    parser.add_argument("--types", nargs="*", choices=list(million.MAKERS), help="of million")
    parser.add_argument("--json", type=Path, help="write every single run to this file")
    parser.add_argument("--update", type=Path, help="page whose measured part is replaced")
    return parser


if __name__ == "__main__":
    sys.exit(main())
