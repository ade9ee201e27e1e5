# SPDX-License-Identifier: Apache-2.0
"""Process 1: what can be tested without being it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rebuild.boot import boot_medium, init


def test_kernel_arguments(tmp_path: Path) -> None:
    """Words are split; of several values of one name the last counts."""
    path = tmp_path / "cmdline"
    path.write_text("console=tty0 rebuildkit.keymap=de quiet rebuildkit.keymap=fr x=\n")
    words = init.kernel_arguments(str(path))

    assert init.argument(words, "keymap") == "fr"
    assert init.argument(words, "set", "none") == "none"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError(""), "ValueError"),
        (OSError(2, "No such file", "/x"), "[Errno 2] No such file: '/x'"),
    ],
)
def test_errors_become_one_line(error: Exception, expected: str) -> None:
    """An error's first line is shown, or its kind when it says nothing."""
    assert init.sentence_of(error) == expected


def test_only_process_1_starts_anything() -> None:
    """Run by hand, the entry of the disc ends with a sentence and touches nothing."""
    done = subprocess.run(
        [sys.executable, "-m", "rebuild"], capture_output=True, text=True, check=False
    )

    assert done.returncode != 0
    assert "first process" in done.stderr
    assert "Traceback" not in done.stderr


def test_entry_imports_little() -> None:
    """Nothing heavy is imported before the first question."""
    code = (
        "import sys, rebuild.__main__, rebuild.boot.boot_medium;"
        "import rebuild.dialogue.shell, rebuild.boot.linux;"
        "print(*{'construct', 'cryptography', 'msgpack', 'zstandard', 'pathlib', 'asyncio',"
        "'fsdrivers', 'subprocess', 'argparse', 'logging'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-ISc", f"import sys; sys.path[:0] = {sys.path!r}; {code}"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.split() == []


def test_optical_drives_are_searched_first(tmp_path: Path) -> None:
    """Drives come before disks, and what can hold no disc does not come at all."""
    for name in ("loop0", "sda", "nvme0n1", "sr0", "ram1", "sr1", "vda", "fd0"):
        (tmp_path / name).mkdir()

    assert boot_medium.list_devices(str(tmp_path)) == [
        "/dev/sr0",
        "/dev/sr1",
        "/dev/nvme0n1",
        "/dev/sda",
        "/dev/vda",
    ]
