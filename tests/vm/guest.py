# SPDX-License-Identifier: Apache-2.0
"""A running Debian machine for tests: logged in on the serial line, with the agent at hand.

The agent comes on a drive of its own, which the machine sees as a read-only disk and mounts on
/opt: our packages and the third-party packages it needs, for the machine's own Python.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from vm.machine import Machine

ROOT = Path(__file__).parents[2]
OWN_PACKAGES = ("backup", "fsdrivers", "imagebuilder", "rebuild")
# All that an agent needs against a server; without SQLAlchemy, uvicorn and the makers of discs.
DISTRIBUTIONS = ("blake3", "cffi", "construct", "crc32c", "cryptography", "msgpack", "zstandard")
DRIVE_MIB = 64
START_TIMEOUT_S = 400.0
BEGIN, END = "RESULT-BEGIN", "RESULT-END"

# $1: URL of the server; $2: fingerprint; $3: user; $4: machine
AGENT = f"""#!/bin/sh
cd /
PYTHONPATH=/opt/lib python3 -B -m imagebuilder.cli backup --server "$1" --fingerprint "$2" \\
  --user "$3" --password-file /opt/password --machine "$4" --json >/run/result 2>/run/errors
code=$?
echo "{BEGIN} $code"
cat /run/result
echo "{END}"
cat /run/errors
"""


def make_agent_drive(path: Path, password: str, scripts: Mapping[str, str]) -> Path:
    """Make the drive: an ext4 image with the agent, the user's password and some scripts."""
    tree = path.with_suffix(".tree")
    library = tree / "lib"
    for name in OWN_PACKAGES:
        shutil.copytree(ROOT / name, library / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in DISTRIBUTIONS:
        for file in distribution(name).files or ():
            if ".." not in file.parts and "__pycache__" not in file.parts:
                target = library / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file.locate(), target)
    (tree / "password").write_text(password + "\n")
    for name, text in {**scripts, "agent": AGENT}.items():
        (tree / name).write_text(text)
    # Compiling under emulation would take longer than the backup.
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(tree)], check=True)
    command = ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", str(tree), str(path)]
    subprocess.run([*command, f"{DRIVE_MIB}M"], check=True, capture_output=True)
    shutil.rmtree(tree)
    return path


class Guest:
    """A started machine in which somebody has logged in as root on the serial line."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def log_in(self) -> None:
        """Wait for the login prompt and log in."""
        self.machine.wait_for("login: ", START_TIMEOUT_S)
        self.machine.send("root\r")
        self.machine.wait_for("Password: ", 60)
        self.machine.send("root\r")
        self.machine.wait_for(r"# ", 60)

    def run(self, command: str, timeout_s: float = 120.0) -> str:
        """Run a shell command that must succeed; return what it printed."""
        # The terminal echoes what is typed; so what ends the output is not typed as such.
        self.machine.send(f'{command}; echo "said"=$?\r')
        start = len(self.machine.text)
        said = self.machine.wait_for(r"said=(\d+)", timeout_s)
        text = self.machine.text[start : said.start()]
        assert said[1] == "0", f"{command} ended with {said[1]}: {text}"
        return text

    def back_up(self, timeout_s: float) -> tuple[int, dict[str, Any], str]:
        """Run the agent; return its exit code, its result and its words on standard error."""
        self.machine.send("sh /opt/job\r")
        code = self.machine.wait_for(rf"{BEGIN} (\d+)\s", timeout_s)
        end = self.machine.wait_for(END, 30)
        result = self.machine.text[code.end() : end.start()].replace("\r", "")
        errors = self.machine.wait_for(r"([\s\S]*?)# ", 30)[1].replace("\r", "").strip()
        return int(code[1]), json.loads(result) if result.strip() else {}, errors
