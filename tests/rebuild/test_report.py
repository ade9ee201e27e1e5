# SPDX-License-Identifier: Apache-2.0
"""Progress and reports: what they count and how they read."""

from __future__ import annotations

import pytest

from rebuild import progress
from rebuild.progress import Part, Progress
from rebuild.report import NAMES_SHOWN, Failure, RestoreReport, VolumeResult

MIB = 1 << 20


def make_report(failures: int = 0) -> RestoreReport:
    """Return a report of a machine with one volume."""
    return RestoreReport(
        object_count=1200,
        content_size=300 * MIB,
        volumes=[VolumeResult("2 ext4 root", 1190, 300 * MIB)],
        failures=[Failure(f"2:/etc/file-{n}\n", "it is damaged") for n in range(failures)],
        notes=["A note."],
        elapsed_s=10.0,
    )


def test_complete_report_reads_so() -> None:
    """Volumes, counts, rate, notes and the result."""
    assert make_report().lines() == [
        "",
        "  2 ext4 root: 1,190 objects, 300.0 MiB",
        "Restored: 1,200 of 1,200 objects, 300.0 MiB in 10.0 s (30.0 MiB/s)",
        "A note.",
        "Result: complete.",
    ]


def test_what_will_not_start_is_not_complete() -> None:
    """Everything is there, and the result says all the same what is wrong."""
    report = make_report()
    report.obstacles = ["because it has no loader"]
    assert report.lines()[-1] == "Result: restored; will not start because it has no loader."
    assert (report.exit_code, report.is_complete) == (26, True)
    assert report.to_dict()["obstacles"] == report.obstacles
    report.failures = make_report(1).failures
    assert report.result == "partial, 1 object failed; will not start because it has no loader"
    assert report.exit_code == 3


def test_partial_report_names_what_failed() -> None:
    """Names with their reasons, no control characters; the screen gets as many as it holds."""
    report = make_report(NAMES_SHOWN + 3)
    shown, everything = report.lines(), report.lines(names_shown=None)

    assert f"Restored: {1200 - NAMES_SHOWN - 3:,} of 1,200" in everything[2]
    assert everything[4] == "FAILED 2:/etc/file-0?: it is damaged"
    assert sum(line.startswith("FAILED") for line in everything) == NAMES_SHOWN + 3
    assert sum(line.startswith("FAILED") for line in shown) == NAMES_SHOWN
    assert shown[-2:] == [
        "... and 3 more; the log names them all.",
        f"Result: partial, {NAMES_SHOWN + 3} objects failed.",
    ]
    assert not report.is_complete


def test_what_the_backup_does_not_hold_is_counted() -> None:
    """A whole restore of a partial data set is no complete one; every sentence says so."""
    report = make_report()
    report.missing, report.losses = 5298, ("2:/srv: something in it is lost: bad sector",)
    report.verified_count = 1200

    assert report.lines()[-4:] == [
        "Verified by reading back: 1,200 objects, all equal; 5,298 objects that the backup does "
        "not hold were not compared.",
        "A note.",
        "NOT IN THE BACKUP 2:/srv: something in it is lost: bad sector",
        "Result: complete except for 5,298 objects that the backup does not hold.",
    ]
    assert report.is_restored
    assert not report.is_complete
    assert (report.to_dict()["result"], report.to_dict()["missing"]) == ("partial", 5298)
    report.failures = [Failure("2:/a", "it is damaged")]
    assert report.result == (
        "partial, 1 object failed, without 5,298 objects that the backup does not hold"
    )


def test_differences_found_by_verifying_are_no_success() -> None:
    """What reads back differently makes a restore partial, whatever was written."""
    report = make_report()
    report.verified_count = 1200
    assert "Verified by reading back: 1,200 objects, all equal." in report.lines()
    report.differences = ["2:/etc/passwd: content differs at byte 0"]

    assert "Verified by reading back: 1,200 objects, 1 difference." in report.lines()
    assert report.lines()[-1] == "Result: partial, 1 difference found."
    assert report.to_dict()["result"] == "partial"


def test_progress_counts_each_volume(monkeypatch: pytest.MonkeyPatch) -> None:
    """A volume's own percent, bytes and objects; rate and time left of the whole."""
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    shown: list[str] = []
    made = Progress(shown.append)
    made.begin(
        "Restoring",
        400 * MIB,
        20,
        {"a": Part("1 fat32 ESP", 100 * MIB, 5), "b": Part("2 ext4 root", 300 * MIB, 15)},
    )
    now += 10
    made.advance_part("a", 100 * MIB, 5, "1:/EFI")
    now += 10
    made.advance_part("b", 60 * MIB, 3, "2:/etc/passwd")

    assert shown == [
        "Restoring",
        "1 fat32 ESP: 100%, 100.0 MiB of 100.0 MiB, 5 of 5, 10.0 MiB/s, ETA 0:30\n1:/EFI",
        "2 ext4 root: 20%, 60.0 MiB of 300.0 MiB, 3 of 15, 8.0 MiB/s, ETA 0:30\n2:/etc/passwd",
    ]


def test_progress_of_unknown_length() -> None:
    """Without a total there is no percent and no time left; a first moment has no rate."""
    shown: list[str] = []
    made = Progress(shown.append)
    made.begin("Comparing")
    made.advance(5 * MIB, 1)

    assert shown == ["Comparing", "Comparing: 5.0 MiB"]
