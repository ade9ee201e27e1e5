# SPDX-License-Identifier: Apache-2.0
"""The agent inside a running Debian machine, the server on the host, and the disc of that.

The machine runs in QEMU with its disks mounted and in use: the root filesystem is walked
through the machine's kernel, with other filesystems mounted over its directories, while files
change.  Judged by the rehearsal of the disc, and by the kernel of the host, which compares the
disk as it was left, power cut, with the restored one.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.judges import check_volumes, compare_disks
from tests.scenario import PASSWORD, USER, Outcome, Scenario, Server, must, rebuildkit
from tests.vm.debian import DiskLayout
from tests.vm.guest import Guest, make_agent_drive
from tests.vm.machines import UP, debian_disk, pictures
from vm.machine import Machine
from vm.qemu import Disk, MachineConfig, variables_template

pytestmark = [pytest.mark.vm, pytest.mark.root, pytest.mark.tools]
LAYOUT = DiskLayout("gpt", 600)
BACKUP_TIMEOUT_S = 600.0
# Written to all the while; nobody can say which of its moments is kept.
BUSY = b"var/log/busy"
# What the agent remembers of the data sets it has seen: written when a backup is done.
MEMORY = b"root/.local/state/rebuildkit"
# What the machine does before the agent starts: things in use, mounted over, made just now.
PREPARE = f"""set -e
link=$(ls /sys/class/net | grep -v lo)
ip link set "$link" up
ip addr add 10.0.2.15/24 dev "$link"
fallocate -l 4M /swapfile
chmod 600 /swapfile
mkswap -q -U 11111111-2222-3333-4444-555555555555 /swapfile
swapon /swapfile
mkdir /srv/covered
echo underneath >/srv/covered/file
chmod 2750 /srv/covered
mount -t tmpfs none /srv/covered
echo elsewhere >/srv/covered/other
mkdir /srv/again
mount --bind /srv/rich /srv/again
python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("/srv/live-socket")'
printf late >/srv/late
ln /srv/late /srv/rich/late-link
chattr +a /srv/late
(while sleep 0.3; do echo "$RANDOM" >>/{BUSY.decode()}; done) &
"""


@dataclass(slots=True)
class LiveRun:
    """What the agent said in the machine, and the disk as the power cut left it."""

    scenario: Scenario
    disk: Path
    code: int
    result: dict[str, Any]
    errors: str
    second: dict[str, Any]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveRun]:
    """A machine that was started, backed up twice by itself, and lost its power."""
    directory = tmp_path_factory.mktemp("live")
    (directory / "server").mkdir()
    disk, variables = directory / "machine.img", directory / "variables.fd"
    subprocess.run(["cp", "--sparse=always", debian_disk(LAYOUT, "agent"), disk], check=True)
    shutil.copyfile(variables_template("uefi"), variables)
    with Server(directory / "server") as server:
        scenario = Scenario(directory, server)
        must(scenario.register())
        port = server.url.rpartition(":")[2]
        job = f"sh /opt/agent https://10.0.2.2:{port} {server.fingerprint} {USER} live\n"
        drive = make_agent_drive(
            directory / "drive.img", PASSWORD, {"prepare": PREPARE, "job": job}
        )
        config = MachineConfig(
            firmware="uefi",
            memory_mib=768,
            disks=(Disk(disk),),
            variables=variables,
            network=True,
            extra=(
                "-drive",
                f"if=none,id=tools,format=raw,readonly=on,file={drive}",
                "-device",
                "virtio-blk-pci,drive=tools",
            ),
        )
        with Machine(config) as machine:
            guest = Guest(machine)
            guest.log_in()
            guest.run("mount -o ro /dev/vdb /opt")
            guest.run("bash /opt/prepare")
            code, result, errors = guest.back_up(BACKUP_TIMEOUT_S)
            _, second, _ = guest.back_up(BACKUP_TIMEOUT_S)
            guest.run("sync")
        yield LiveRun(scenario, disk, code, result, errors, second)


@pytest.fixture(scope="module")
def rehearsal(live: LiveRun) -> tuple[Outcome, Path]:
    """The rehearsal of the machine's disc, and the disk that it restored."""
    disc, work = live.scenario.directory / "live.iso", live.scenario.directory / "work"
    must(live.scenario.build("live", disc))
    outcome = live.scenario.rehearse(
        disc,
        "--firmware",
        "uefi",
        "--disk-size",
        f"{LAYOUT.size_mib}M",
        "--work",
        work,
        "--expect-pattern",
        UP,
        *pictures("live"),
    )
    return outcome, work / "disk0.img"


def test_running_machine_is_backed_up_whole(live: LiveRun) -> None:
    """Nothing is missing; only the file that kept changing may be named."""
    assert live.code == 0, live.errors
    assert live.result["missing"] == 0
    assert live.result["objects"] > 5000
    assert [line for line in live.result["warnings"] if "/" + BUSY.decode() not in line] == []


def test_second_backup_sends_what_changed(live: LiveRun) -> None:
    """A machine that hardly changed sends hardly more than its object table."""
    assert live.second["removed"] == 0
    assert live.second["bytes_sent"] < 2 << 20
    assert live.second["changed"] + live.second["new"] < 50


def test_disc_of_running_machine_is_proven(live: LiveRun, rehearsal: tuple[Outcome, Path]) -> None:
    """The disc brings the machine back, equal to its data set, up to the login prompt."""
    outcome, _ = rehearsal

    assert outcome.code == 0, outcome.out + outcome.err
    assert outcome.json["comparison"]["differences"] == []


def test_restored_disk_is_the_lost_one(live: LiveRun, rehearsal: tuple[Outcome, Path]) -> None:
    """For the kernel and Debian's tools the restored disk equals the one that was lost."""
    _, restored = rehearsal

    check_volumes(restored)
    compare_disks(live.disk, restored, changed=(BUSY, MEMORY))


def test_mounted_over_directories_are_kept_as_they_are(live: LiveRun) -> None:
    """Of what is mounted elsewhere nothing is kept; what it covers is."""
    listed = rebuildkit("ls", "-R", *live.scenario.repository, "--machine", "live", "--json").out
    nodes = [json.loads(line) for line in listed.splitlines()]
    paths = {node["path"] for node in nodes if node["partition"] == 2}

    assert {"/proc", "/sys", "/dev", "/run", "/opt", "/boot/efi", "/srv/covered"} <= paths
    assert not paths & {"/proc/1", "/sys/class", "/dev/vda", "/run/result", "/opt/agent"}
    assert not any(path.startswith("/boot/efi/") for path in paths)
    assert {"/srv/covered/file"} <= paths
    assert "/srv/covered/other" not in paths
    assert not any(path.startswith("/srv/again/") for path in paths)
