# SPDX-License-Identifier: Apache-2.0
"""Empty volumes for the verbs of `rebuildkit fs` that write, and who judges them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from imagebuilder.cli.main import main

MIB = 1 << 20


CONTENT = bytes(range(256)) * 700


MAKERS = {
    "ext4": ["mke2fs", "-q", "-F", "-t", "ext4"],
    "fat": ["mkfs.fat"],
    "ntfs": ["mkntfs", "-q", "-F", "-f"],
}


CHECKERS = {
    "ext": ["e2fsck", "-fn"],
    "fat": ["fsck.fat", "-n"],
    "ntf": ["ntfsinfo", "-m"],
}


def fs(*arguments: object) -> int:
    """Return the exit code, of a command line that argparse refuses too."""
    try:
        return main(["fs", *map(str, arguments)])
    except SystemExit as ended:
        return int(str(ended.code))


def is_clean(image: Path) -> bool:
    """Ask the usual checker, which must have nothing to say."""
    kind = image.name[:3]
    command = CHECKERS[kind]
    if kind == "ntf" and fs("check", image) != 0:  # which looks at more than ntfsfix
        return False
    done = subprocess.run([*command, str(image)], capture_output=True, text=True, check=False)
    return done.returncode == 0 and "IGNORED" not in done.stdout


def listed(image: Path, path: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    capsys.readouterr()
    assert fs("ls", image, path, "--json") == 0
    return sorted(item["name"] for item in json.loads(capsys.readouterr().out))
