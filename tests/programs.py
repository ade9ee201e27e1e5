# SPDX-License-Identifier: Apache-2.0
"""Foreign programs that make and judge what is tested."""

from __future__ import annotations

import subprocess
from pathlib import Path


def run(
    *command: object, text: str = "", codes: tuple[int, ...] = (0,), cwd: Path | None = None
) -> str:
    """Run a program with `text` as its input; return what it printed.

    An exit code that is not among `codes` fails the test with all that the program said.
    """
    done = subprocess.run(
        [str(word) for word in command],
        input=text,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        check=False,
        cwd=cwd,
    )
    assert done.returncode in codes, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout
