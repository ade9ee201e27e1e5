# SPDX-License-Identifier: Apache-2.0
"""A restore from end to end: unlock, load, plan, apply.

What the shell on the disc and `rebuildkit restore` on a host have in common; neither prints
here nor asks.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from backup.objects.errors import (
    BindingError,
    DamagedError,
    InvalidCredentialsError,
    InvalidRecoveryKeyError,
    MissingPackError,
    UnknownVersionError,
    WrongPasswordError,
)
from backup.objects.keys import MasterKey, unlock_with_recovery_key, verify_binding
from backup.objects.keys import unlock as unlock_with_password
from backup.objects.medium import Medium
from backup.objects.table import Summary, TableReader
from fsdrivers import driver_of
from fsdrivers.device import Device, FileDevice
from fsdrivers.errors import DeviceError, UnsupportedError
from rebuild.apply import DRIVEN_TYPES
from rebuild.apply import apply_plan as apply_to_devices
from rebuild.content import PieceOpener
from rebuild.errors import (
    LayoutUnsupportedError,
    MediumError,
    TargetTooSmallError,
    UnsafeTargetError,
)
from rebuild.machine import Machine
from rebuild.plan import RestorePlan, TargetDisk, plan_restore
from rebuild.report import RestoreReport

# What the documented exit codes stand for; the first class that fits decides.
EXIT_CODES: dict[type[BaseException], int] = {
    WrongPasswordError: 12,
    InvalidCredentialsError: 12,
    InvalidRecoveryKeyError: 12,
    TargetTooSmallError: 22,
    LayoutUnsupportedError: 23,
    UnsupportedError: 23,
    UnsafeTargetError: 24,
    DamagedError: 21,
    BindingError: 20,
    MissingPackError: 20,
    UnknownVersionError: 20,
    MediumError: 20,
}
NO_PROGRESS: Callable[[str], None] = lambda text: None  # noqa: E731


@dataclass(slots=True)
class Unlocked:
    """A data set that has been opened and loaded."""

    master: MasterKey
    header: Summary
    machine: Machine

    def summary(self) -> list[str]:
        """Return what the data set is, as lines for a person."""
        found = self.header
        made = datetime.datetime.fromtimestamp(found.created_ns / 1e9, datetime.UTC)
        system = str(found.system.get("os_name", ""))
        return [
            f"Machine {found.machine}, backed up {made:%Y-%m-%d %H:%M} UTC"
            + (f", {system}" if system else ""),
            f"{found.object_count:,} objects, {found.content_bytes / (1 << 20):,.0f} MiB of files",
        ]


def open_master(medium: Medium, user: str, secret: str) -> MasterKey:
    """Return the master key for an id and password, or for a recovery key in either's place.

    Raises:
        WrongPasswordError: neither opens the key file.
        MediumError: there is no key file.
    """
    data = medium.read_key_file()
    for text in (secret, user):
        try:
            return unlock_with_recovery_key(data, text)
        except (InvalidRecoveryKeyError, WrongPasswordError):
            continue
    if not user.strip() or not secret:
        raise WrongPasswordError
    return unlock_with_password(data, user, secret)


def unlock(
    medium: Medium,
    user: str,
    secret: str,
    *,
    master: MasterKey | None = None,
    progress: Callable[[str], None] = NO_PROGRESS,
) -> Unlocked:
    """Open the key file, then load and check the whole object table.

    With `master` given, id and secret are not looked at: who has it has logged in already.

    Raises:
        WrongPasswordError: id and password, or recovery key, do not open it.
        DamagedError, BindingError, UnknownVersionError: the table cannot be used.
    """
    progress("Checking id and password")
    master = master or open_master(medium, user, secret)
    progress("Reading the object table")
    with ExitStack() as stack:
        stream = stack.enter_context(medium.open_table())
        reader = TableReader(master, stream, medium.open_table_copy)
        verify_binding(medium.read_key_file(), master, reader.data_set_id)
        machine = Machine.load(reader)
    return Unlocked(master, reader.summary, machine)


def make_plan(
    unlocked: Unlocked, targets: Mapping[int, TargetDisk], *, grow: int | None = None
) -> RestorePlan:
    """Plan the restore onto `targets`, by number of the disk object.  Pure but for memory.

    Raises:
        TargetTooSmallError, LayoutUnsupportedError: with the numbers or the reason.
    """
    machine = unlocked.machine
    minimum_sizes: dict[int, int] = {}
    for disk in machine.disks:
        target = targets.get(disk.number)
        if target is None or target.size >= disk.size:
            continue
        # Only a smaller target needs the exact figure, which costs as much as planning.
        for tree in machine.volumes_of(disk):
            if tree.volume.type.startswith("ext"):
                minimum_sizes[tree.volume.number] = driver_of(tree.volume.type).minimum_size(
                    tree.volume.description, tree.entries(machine), regions=tree.regions()
                )
    return plan_restore(machine, targets, minimum_sizes=minimum_sizes, grow=grow)


def apply_plan(
    unlocked: Unlocked,
    plan: RestorePlan,
    medium: Medium,
    *,
    is_blank: bool = False,
    progress: Callable[[str], None] = NO_PROGRESS,
) -> RestoreReport:
    """Open the targets that the plan names and write them.

    Raises:
        DeviceError: a target failed.
    """
    with ExitStack() as stack:
        devices: dict[int, Device] = {}
        for disk_plan in plan.disks:
            device = FileDevice.open(
                disk_plan.target.path, writable=True, sector_size=disk_plan.target.sector_size
            )
            stack.callback(device.close)
            devices[disk_plan.disk.number] = device
        return apply_to_devices(
            unlocked.machine,
            plan,
            devices,
            medium,
            PieceOpener(unlocked.master, unlocked.header.packs),
            is_blank=is_blank,
            progress=progress,
        )


__all__ = [
    "DRIVEN_TYPES",
    "EXIT_CODES",
    "DeviceError",
    "Unlocked",
    "apply_plan",
    "make_plan",
    "open_master",
    "unlock",
]
