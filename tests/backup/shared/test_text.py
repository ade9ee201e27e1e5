# SPDX-License-Identifier: Apache-2.0
"""Words for people."""

from __future__ import annotations

from backup.shared.text import clock, name_text, plural, printable, second_text, size_text


def test_sizes_read_well() -> None:
    """A size never has more than four digits before its unit."""
    assert [size_text(n) for n in (0, 1023, 1024, (1 << 20) - 1, 1 << 40, 3 << 50)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.0 MiB",
        "1.0 TiB",
        "3,072.0 TiB",
    ]


def test_times_read_well() -> None:
    """Seconds are a time of UTC; those that no calendar reaches stay a number."""
    assert second_text(0) == "1970-01-01 00:00:00"
    assert second_text(-1) == "1969-12-31 23:59:59"
    assert second_text(253_402_300_800) == "@253402300800"
    assert second_text(-(1 << 62)) == f"@-{1 << 62}"
    assert [clock(seconds) for seconds in (0, 59.6, 3661)] == ["0:00", "1:00", "1:01:01"]


def test_counts_read_well() -> None:
    """One thing is one, many are many."""
    assert [plural(1, "file"), plural(2, "file"), plural(0, "copy", "copies")] == [
        "1 file",
        "2 files",
        "0 copies",
    ]


def test_names_are_safe_to_print() -> None:
    """What is not UTF-8 and what drives a terminal does not reach it."""
    assert name_text(b"\xe4 \xc3\xa4") == "\\xe4 ä"
    assert printable("a\x1b[2J\nb") == "a?[2J?b"
