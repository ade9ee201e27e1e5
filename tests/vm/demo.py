# SPDX-License-Identifier: Apache-2.0
"""`make demo`: a small Debian machine is lost and comes back from its disc.

    python -m tests.vm.demo DIRECTORY

Makes a real Debian disk, backs it up through a real server over HTTPS, builds the recovery
disc, rehearses it in QEMU, and prints a table of what happened with times.  Disc, report and
screenshots stay in DIRECTORY.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path

from tests.scenario import Outcome, Scenario, Server
from tests.vm.debian import DiskLayout
from tests.vm.machines import debian_disk


def main() -> int:
    """Run the demonstration; return 0 when the disc is proven."""
    directory = Path(sys.argv[1] if len(sys.argv) > 1 else "demo").resolve()
    if os.geteuid() != 0:
        print("The demonstration makes a real Debian disk and needs root.", file=sys.stderr)
        return 1
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "server").mkdir(parents=True)
    rows: list[tuple[str, str, float]] = []
    started = time.monotonic()
    say("Making a Debian machine to lose (minutes the first time; kept for the next)")
    disk = directory / "desk.img"
    disk.symlink_to(debian_disk(DiskLayout("gpt", 800)))
    rows.append(("a Debian machine's disk", f"{disk.stat().st_size >> 20} MiB", since(started)))
    with Server(directory / "server") as server:
        scenario = Scenario(directory, server)
        say(f"Registering and backing up to {server.url}")
        check("register", scenario.register())
        backup = check("backup", scenario.backup("desk", disk))
        sent = backup.json["bytes_sent"] / (1 << 20)
        objects = f"{backup.json['objects']:,} objects, {sent:.1f} MiB sent"
        rows.append(("first backup", objects, backup.elapsed_s))
        again = check("backup", scenario.backup("desk", disk))
        rows.append(("second backup", f"{again.json['unchanged']:,} unchanged", again.elapsed_s))
        say("Building the recovery disc (the boot environment is built once)")
        disc = directory / "desk.iso"
        built = check("image build", scenario.build("desk", disc))
        size = f"{built.json['size'] / (1 << 20):.1f} MiB"
        rows.append(("recovery disc", size, built.elapsed_s))
    say("Rehearsing: the disc in QEMU with an empty disk, under UEFI")
    rehearsed = scenario.rehearse(
        disc,
        "--firmware",
        "uefi",
        "--screenshots",
        directory / "screenshots",
        "--expect",
        "login: ",
        "--disk-size",
        "1G",
    )
    (directory / "report.json").write_text(rehearsed.out)
    report = json.loads(rehearsed.out) if rehearsed.out else {"failure": rehearsed.err}
    rows += [(f"  {phase['name']}", "", phase["elapsed_s"]) for phase in report.get("phases", [])]
    verdict = "PROVEN" if rehearsed.code == 0 else f"NOT PROVEN: {report['failure']}"
    rows.append(("rehearsal", verdict, rehearsed.elapsed_s))
    print()
    for name, what, elapsed in rows:
        print(f"{name:<46} {what:<36} {elapsed:7.1f} s")
    print()
    print(f"Disc, report and screenshots are in {directory}.")
    return rehearsed.code


def say(text: str) -> None:
    """Tell what goes on."""
    print(f"== {text}", flush=True)


def since(started: float) -> float:
    """Return the seconds since `started`."""
    return time.monotonic() - started


def check(name: str, outcome: Outcome) -> Outcome:
    """Return an outcome that went well; otherwise end with what the command said."""
    if outcome.code:
        sys.exit(f"rebuildkit {name} ended with {outcome.code}: {outcome.err}")
    return outcome


if __name__ == "__main__":
    sys.exit(main())
