# SPDX-License-Identifier: Apache-2.0
"""A restore that memory will not do for is refused before anything is written."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from imagebuilder.cli.main import main
from rebuild import memory
from rebuild.errors import NotEnoughMemoryError
from rebuild.memory import FIXED, PER_OBJECT, memory_available, memory_needed
from tests.rebuild.machines import (
    PASSWORD,
    USER,
    Partition,
    SmallMachine,
    back_up,
    make_disk,
    make_tree,
)

pytestmark = pytest.mark.tools
FILES = 6000
# Restores a machine as the disc does, in one process, and prints the peak beyond its start.
RESTORE = """
import json, sys
from rebuild.medium import DirectoryMedium
from rebuild.memory import memory_needed
from rebuild.plan import TargetDisk
from rebuild.restore import apply_plan, make_plan, unlock
import fsdrivers.ext.mkfs.plan, fsdrivers.fat.mkfs.plan, fsdrivers.swap.mkfs
from backup.objects.keys import MasterKey


def size(name):
    with open("/proc/self/status") as file:
        return int(file.read().partition(name + ":")[2].split()[0]) << 10


directory, target, key = sys.argv[1:]
medium, master = DirectoryMedium(directory), MasterKey(bytes.fromhex(key))
start = size("VmRSS")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak is counted anew
unlocked = unlock(medium, "", "", master=master)
disk = unlocked.machine.disks[0]
with open(target, "wb") as file:
    file.truncate(disk.size)
plan = make_plan(unlocked, {disk.number: TargetDisk(target, disk.size, 512)}, is_blank=True)
report = apply_plan(unlocked, plan, medium)
print(json.dumps([report.is_complete, memory_needed(unlocked.header), size("VmHWM") - start]))
"""


def test_the_estimate_covers_a_measured_restore(tmp_path: Path) -> None:
    """A restore of 6,000 files in two filesystems takes what the estimate says at most, and not
    so much less that machines would be refused for nothing."""
    tree = make_tree(tmp_path / "tree", FILES)
    disk = make_disk(
        tmp_path / "sda.img", "dos", tree, Partition("83", "ext4", 96), Partition("c", "fat", 4)
    )
    machine = back_up(tmp_path, [disk])
    key = machine.master._secret.hex()

    done = subprocess.run(
        [sys.executable, "-c", RESTORE, machine.medium_path, tmp_path / "out.img", key],
        capture_output=True,
        text=True,
        check=True,
    )

    is_complete, needed, peak = json.loads(done.stdout)
    assert is_complete
    assert peak <= needed <= peak + FIXED + FILES * PER_OBJECT // 2


def test_too_little_memory_is_said_with_both_numbers(
    mbr_machine: SmallMachine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The command names what is needed and what is there, and makes no target."""
    monkeypatch.setattr(memory, "memory_available", lambda: 20 << 20)
    password, target = tmp_path / "password", tmp_path / "target.img"
    password.write_text(PASSWORD)

    code = main(
        [
            "restore",
            "--from",
            str(mbr_machine.medium_path),
            "--user",
            USER,
            "--password-file",
            str(password),
            "--disk",
            str(target),
            "--yes",
        ]
    )

    assert code == 1
    assert capsys.readouterr().err == (
        "rebuildkit: checking the password needs 64 MiB of memory, and 20 MiB are free\n"
    )
    assert not target.exists()


def test_the_need_grows_with_the_objects(mbr_machine: SmallMachine) -> None:
    """What is refused and what is not is a matter of one byte."""
    header = mbr_machine.unlocked().header
    needed = memory_needed(header)

    assert needed > FIXED + header.object_count * PER_OBJECT
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "memory_available", lambda: needed)
        memory.check_memory(header)
        patch.setattr(memory, "memory_available", lambda: needed - 1)
        with pytest.raises(NotEnoughMemoryError) as caught:
            memory.check_memory(header)
    assert (caught.value.needed, caught.value.available) == (needed, needed - 1)


def test_the_limit_of_a_process_counts() -> None:
    """A limit on the address space is what there is, less what is in use."""
    code = (
        "import resource; from rebuild.memory import memory_available;"
        "resource.setrlimit(resource.RLIMIT_AS, (256 << 20, resource.RLIM_INFINITY));"
        "print(memory_available())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    whole = memory_available()

    assert 0 < int(done.stdout) < 256 << 20
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
    assert whole is not None
    assert whole > 64 << 20


def test_the_limit_of_a_control_group_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container's limit counts, its cache of files that can be dropped does not."""
    monkeypatch.setattr(memory, "_CGROUPS", str(tmp_path))
    (tmp_path / "memory.max").write_text(f"{100 << 20}\n")
    (tmp_path / "memory.current").write_text(f"{90 << 20}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {30 << 20}\n")

    assert memory_available() == 40 << 20
    (tmp_path / "memory.max").write_text("max\n")
    unlimited = memory_available()
    assert unlimited is not None
    assert unlimited > 40 << 20
