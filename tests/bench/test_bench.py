# SPDX-License-Identifier: Apache-2.0
"""The benchmark itself: what it measures is what was spent, what it prints is what it measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.filesystems import goal_lines
from tests.bench.measure import CommandFailedError, Cost, apart, measure
from tests.bench.million import make
from tests.bench.report import FILESYSTEMS, MACHINES, lines_of, marks_of, update_page

SPIN = """python3 -c '
import time
while time.process_time() < 0.3: pass
'"""


def test_processor_time_includes_children() -> None:
    """A shell that only waits for a busy child is charged with the child's time."""
    cost = measure(SPIN)

    assert 0.3 <= cost.cpu_s < 1.0
    assert cost.wall_s >= 0.3
    assert cost.rss_bytes > 1 << 20


def test_a_failing_step_is_a_failure() -> None:
    """The first command of a script that fails fails the script, and its words are kept."""
    with pytest.raises(CommandFailedError, match="no luck"):
        measure("echo no luck; false; true")


def test_what_is_done_apart_costs_no_memory_later() -> None:
    """A process of its own takes what it used with it; its failure is one here."""

    def use_memory() -> None:
        assert len(b"x" * (300 << 20))

    before = measure("true").rss_bytes  # a child counts what it was forked with
    apart(use_memory)

    assert measure("true").rss_bytes < before + (100 << 20)

    with pytest.raises(CommandFailedError):
        apart(lambda: [][0])


def test_best_run_counts_and_goals_are_judged() -> None:
    """The run of the least wall time is shown; a goal is reached over HTTPS or not at all."""

    def runs(*walls: float) -> dict[str, list[Cost]]:
        return {"S": [Cost(wall, wall / 2, 50 << 20, 0.25) for wall in walls]}

    text = "\n".join(
        lines_of(
            {
                "first": {
                    "rebuildkit, HTTPS server": runs(2.0, 1.0),
                    "rebuildkit, local store": runs(0.5),
                    "restic, local repository": runs(3.0, 2.5),
                    "borg, local repository": runs(1.5),
                }
            }
        )
    )

    assert "| rebuildkit, HTTPS server | **1.00 s** (0.50 CPU s, 50 MiB; 0.2) |" in text
    assert "| First backup, S, against restic | 2.0 x | 2.50 x | 5.00 x | yes |" in text
    assert "| First backup, S, against borg | 2.0 x | 1.50 x | 3.00 x | **not yet** |" in text


@pytest.mark.parametrize("part", [MACHINES, FILESYSTEMS])
def test_only_the_measured_part_of_a_page_is_replaced(tmp_path: Path, part: str) -> None:
    """What people wrote before and behind the table stays."""
    begin, end = marks_of(part)
    page = tmp_path / "page.md"
    page.write_text(f"before\n{begin}\nold\n{end}\nbehind\n")

    update_page(page, ["new", "lines"], part)

    assert page.read_text() == f"before\n{begin}\nnew\nlines\n{end}\nbehind\n"


def test_goals_of_filesystems_are_judged_by_wall_time() -> None:
    """The ratio of processor time is shown beside, from the cheapest run of each."""

    def runs(*costs: tuple[float, float]) -> dict[str, list[Cost]]:
        return {"M": [Cost(wall, cpu, 50 << 20, 0.0) for wall, cpu in costs]}

    lines = goal_lines(
        {
            "populate-ext4": {
                "rebuildkit": runs((1.0, 1.2), (1.1, 1.0)),
                "mke2fs -d": runs((1.9, 2.5)),
                "mke2fs, mount, tar x": runs((3.0, 2.0)),
            }
        },
        {"populate-ext4": "Filled"},
    )

    assert "| Filled, M, against mke2fs -d | 2.0 x | 1.90 x | 2.50 x | **not yet** |" in lines
    assert "| Filled, M, against mke2fs, mount | 3.0 x | 3.00 x | 2.00 x | yes |" in lines


# Bytes; measured 740, 760 and 690.
@pytest.mark.tools
@pytest.mark.parametrize(("kind", "limit"), [("ext4", 900), ("fat32", 900), ("ntfs", 900)])
def test_memory_for_each_file_is_bounded(kind: str, limit: int, tmp_path: Path) -> None:
    """100,000 files more in a volume take less memory each than a million may."""
    few, _ = make(kind, 10_000, tmp_path)
    many, _ = make(kind, 110_000, tmp_path)

    assert 100 < (many - few) / 100_000 < limit
