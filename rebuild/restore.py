# SPDX-License-Identifier: Apache-2.0
"""A restore from end to end: unlock, load, plan, apply.

The shell on the disc and `rebuildkit restore` on a host share it.  Nothing here prints or asks.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import BinaryIO

from backup.objects.content import content_id
from backup.objects.data_keys import DataKey
from backup.objects.errors import (
    BindingError,
    DamagedError,
    InsufficientMemoryError,
    InvalidCredentialsError,
    InvalidRecoveryKeyError,
    MissingPackError,
    UnknownVersionError,
    WrongPasswordError,
)
from backup.objects.key_file import unpack_key_file
from backup.objects.keys import MasterKey, unlock_with_recovery_key, verify_binding
from backup.objects.keys import unlock as unlock_with_password
from backup.objects.medium import Medium
from backup.objects.recovery import typing_error
from backup.objects.table import Summary, TableReader
from backup.shared.collector import paused_collector
from backup.shared.text import missing_text, plural, second_text, size_text
from fsdrivers import Can
from fsdrivers.device import Device, FileDevice
from fsdrivers.errors import DeviceError, NoSpaceError, UnsupportedError
from rebuild.apply import apply_plan as apply_to_devices
from rebuild.compare.disks import compare_machine
from rebuild.errors import (
    LayoutUnsupportedError,
    MediumError,
    NotEnoughMemoryError,
    NothingToRestoreError,
    TargetFailedError,
    TargetFullError,
    TargetTooSmallError,
    UnsafeTargetError,
)
from rebuild.exit_codes import ExitCode
from rebuild.fixups.families import files_to_read
from rebuild.layouts import lay_out_volumes
from rebuild.machine import Machine
from rebuild.medium import ChecksPacks
from rebuild.memory import check_memory, check_memory_for_password
from rebuild.plan import BOOT_CODE_SIZE, RestorePlan, TargetDisk, plan_restore
from rebuild.report import RestoreReport
from rebuild.streaming.ahead import Ahead
from rebuild.streaming.opener import PieceOpener
from rebuild.streaming.small import read_contents

# What the documented exit codes stand for; the first class that fits decides.
EXIT_CODES: dict[type[BaseException], ExitCode] = {
    WrongPasswordError: ExitCode.WRONG_PASSWORD,
    InvalidCredentialsError: ExitCode.WRONG_PASSWORD,
    InvalidRecoveryKeyError: ExitCode.WRONG_PASSWORD,
    TargetTooSmallError: ExitCode.TOO_SMALL,
    NoSpaceError: ExitCode.TOO_SMALL,
    LayoutUnsupportedError: ExitCode.LAYOUT,
    UnsupportedError: ExitCode.LAYOUT,
    UnsafeTargetError: ExitCode.UNSAFE,
    DamagedError: ExitCode.DAMAGED,
    BindingError: ExitCode.WRONG_MEDIUM,
    MissingPackError: ExitCode.WRONG_MEDIUM,
    UnknownVersionError: ExitCode.WRONG_MEDIUM,
    MediumError: ExitCode.WRONG_MEDIUM,
}
# What a person in front of the machine can do about it; the first class that fits decides.
NEXT_STEPS: dict[type[BaseException], str] = {
    TargetTooSmallError: "Put in a larger disk and start from this disc again.",
    NothingToRestoreError: "Use a disc that was made of another backup.",
    LayoutUnsupportedError: "Put in another disk and start from this disc again.",
    UnsafeTargetError: "Start from this disc again and choose another disk.",
    TargetFailedError: "Replace the target disk and start from this disc again.",
    InsufficientMemoryError: "Start from this disc on a machine with more memory.",
    NotEnoughMemoryError: "Start from this disc on a machine with more memory.",
    MemoryError: "Start from this disc on a machine with more memory.",
    BindingError: "Use the disc as it was made: its files do not belong together.",
    UnknownVersionError: "Use a disc that was made by one release of rebuildkit.",
    DamagedError: "Clean this disc or use another copy of it.",
    MissingPackError: "Use another copy of this disc.",
    MediumError: "Clean this disc, try another drive, or use another copy of it.",
}
NO_PROGRESS: Callable[[str], None] = lambda text: None  # noqa: E731


@dataclass(slots=True)
class Unlocked:
    """A data set that has been opened and loaded.

    `key` is what it is sealed with: the master key itself, or the key of its machine.
    """

    master: MasterKey
    key: DataKey
    header: Summary
    machine: Machine

    def summary(self) -> list[str]:
        """Return what the data set is, as lines for a person."""
        found = self.header
        system = str(found.system.get("os_name", ""))
        partial = bool(found.missing)
        return [
            f"Machine {found.machine}, backup {found.generation} of "
            f"{second_text(found.created_ns // 10**9)} UTC" + (f", {system}" if system else ""),
            f"{plural(found.object_count, 'object')}, {size_text(found.content_bytes)} of files, "
            f"{plural(len(self.machine.disks), 'disk')}",
            *([f"This backup is partial: without {missing_text(found.missing)}."] * partial),
        ]


def open_master(medium: Medium, user: str, secret: str) -> MasterKey:
    """Return the master key for an id and password, or for a recovery key in place of either.

    Raises:
        WrongPasswordError: neither opens the key file.
        MediumError: there is no key file.
    """
    data = medium.read_key_file()
    hints: list[str] = []
    for text in (secret, user):
        try:
            return unlock_with_recovery_key(data, text)
        except InvalidRecoveryKeyError:
            hints += filter(None, [typing_error(text)])
        except WrongPasswordError:
            continue
    try:
        if not user.strip() or not secret:
            raise WrongPasswordError
        check_memory_for_password(unpack_key_file(data).parameters)
        return unlock_with_password(data, user, secret)
    except WrongPasswordError as error:
        for hint in hints:
            error.add_note(hint)
        raise


@paused_collector()
def unlock(
    medium: Medium,
    user: str,
    secret: str,
    *,
    master: MasterKey | None = None,
    progress: Callable[[str], None] = NO_PROGRESS,
) -> Unlocked:
    """Open the key file, then load and check the whole object table.

    With `master` given, id and secret are ignored: the caller has logged in already.

    Raises:
        WrongPasswordError: id and password, or recovery key, do not open it.
        DamagedError, BindingError, UnknownVersionError: the table cannot be used.
        MediumError: it cannot be read at all, or is not there.
        NotEnoughMemoryError: restoring it takes more memory than there is.
    """
    try:
        progress("Checking id and password")
        master = master or open_master(medium, user, secret)
        progress("Reading the object table")
        with ExitStack() as stack:

            def open_copy() -> BinaryIO | None:
                copy = medium.open_table_copy()
                return stack.enter_context(copy) if copy is not None else None

            reader = TableReader(master, stack.enter_context(medium.open_table()), open_copy)
            verify_binding(medium.read_key_file(), master, reader.data_set_id)
            check_memory(reader.summary)
            machine = Machine.load(reader)
            opener = PieceOpener(reader.key, reader.summary.packs)
            machine.contents = read_contents(machine, files_to_read(machine), medium, opener)
    except OSError as error:
        reason = error.strerror or str(error)
        raise MediumError(f"{medium.name} cannot be read: {reason}") from error
    return Unlocked(master, reader.key, reader.summary, machine)


def missing_content(unlocked: Unlocked, medium: Medium) -> str:
    """Return in one sentence what content the medium lacks; empty if it has everything.

    Looks at sizes, not at bytes: a damaged pack is found when it is read.
    """
    packs = unlocked.header.packs
    missing = medium.missing_packs(packs) if isinstance(medium, ChecksPacks) else []
    if not missing:
        return ""
    lost = set(missing)
    objects = sum(
        any(piece.pack in lost for piece in pieces) for _, pieces in unlocked.machine.iter_content()
    )
    return (
        f"{medium.name} is incomplete: {len(missing)} of {plural(len(packs), 'pack')} missing or "
        f"cut short, with content of {plural(objects, 'object')}"
    )


@paused_collector()
def make_plan(
    unlocked: Unlocked,
    targets: Mapping[int, TargetDisk],
    *,
    grow: int | None = None,
    keeps_names: bool = False,
    is_blank: bool = False,
) -> RestorePlan:
    """Plan the restore whole, layouts included.  Pure but for memory.

    Args:
        unlocked: what to restore.
        targets: where to, by number of the disk object.
        grow: as for `plan_restore`.
        keeps_names: likewise.
        is_blank: the targets are new images that read as zeros.

    Raises:
        TargetTooSmallError, LayoutUnsupportedError: with the numbers or the reason.
        FilesystemError: a volume cannot be laid out like this.
    """
    machine = unlocked.machine
    minimum_sizes: dict[int, int] = {}
    for disk in machine.disks:
        target = targets.get(disk.number)
        if target is None or target.size >= disk.size:
            continue
        # Only a smaller target needs the exact figure, which costs as much as planning.
        for tree in machine.volumes_of(disk):
            driver = tree.driver
            if driver is not None and Can.GROW in driver.can:
                minimum_sizes[tree.volume.number] = driver.minimum_size(
                    tree.volume.description,
                    tree.entries(machine),
                    sector_size=target.sector_size,
                    regions=tree.regions(),
                    stream_regions=tree.stream_regions() if driver.has_streams else None,
                )
    plan = plan_restore(
        machine,
        targets,
        minimum_sizes=minimum_sizes,
        grow=grow,
        blank_boot_code=_blank_boot_code(unlocked),
        keeps_names=keeps_names,
    )
    return lay_out_volumes(machine, replace(plan, is_blank=is_blank))


def _blank_boot_code(unlocked: Unlocked) -> frozenset[int]:
    """Return the numbers of the disks whose boot code is nothing but zeros."""
    return frozenset(
        disk.number
        for disk in unlocked.machine.disks
        if all(
            piece.content_id == content_id(unlocked.key, bytes(piece.length))
            for piece in disk.pieces
            if piece.offset < BOOT_CODE_SIZE
        )
    )


@contextmanager
def opened_ahead(unlocked: Unlocked, medium: Medium, processes: int) -> Iterator[Ahead | None]:
    """Have another process open content while the body runs; it has finished afterwards.

    Yields None if one process has to do everything, or no other could be started.
    """
    ahead: Ahead | None = None
    if processes > 1:
        with suppress(OSError):
            opener = PieceOpener(unlocked.key, unlocked.header.packs)
            ahead = Ahead(unlocked.machine.iter_content(), medium, opener)
    with ahead or nullcontext():
        yield ahead


@paused_collector()
def apply_plan(
    unlocked: Unlocked,
    plan: RestorePlan,
    medium: Medium,
    *,
    ahead: Ahead | None = None,
    processes: int = 1,
    progress: Callable[[str], None] = NO_PROGRESS,
) -> RestoreReport:
    """Open the targets that the plan names and write them.

    Args:
        unlocked: what the plan was made of.
        plan: what to write where, whose layouts are used up.
        medium: where content is read from.
        ahead: has opened content already, see `opened_ahead`.
        processes: how many share the work; more than one forks, see `backup.shared.sharing`.
        progress: takes one line of text now and then.

    Raises:
        TargetFailedError, TargetFullError: a target failed; it holds nothing usable then.
        UnsafeTargetError: a target is in use.
    """
    with ExitStack() as stack:
        devices: dict[int, Device] = {}
        for disk_plan in plan.disks:
            device = _open_target(disk_plan.target)
            stack.callback(device.close)
            devices[disk_plan.disk.number] = device
        try:
            report = apply_to_devices(
                plan,
                devices,
                medium,
                PieceOpener(unlocked.key, unlocked.header.packs),
                ahead=ahead,
                processes=processes,
                progress=progress,
            )
        except DeviceError as error:
            name = os.fsdecode(error.filename)
            if error.errno == errno.ENOSPC:
                raise TargetFullError(name, plan.content_size, 0) from error
            raise TargetFailedError(
                f"{name} failed: {error.strerror}; it holds no usable machine"
            ) from error
    report.missing, report.losses = unlocked.header.missing, unlocked.header.losses
    return report


def verify(
    unlocked: Unlocked,
    plan: RestorePlan,
    report: RestoreReport,
    *,
    progress: Callable[[str], None] = NO_PROGRESS,
) -> None:
    """Read back what `plan` wrote, from the disks and not from memory; add to `report`.

    Known failures are not reported a second time.  A disk that cannot be read is a difference
    like any other.
    """
    try:
        with ExitStack() as stack:
            devices: dict[int, Device] = {}
            for disk_plan in plan.disks:
                target = disk_plan.target
                device = FileDevice.open(target.path, sector_size=target.sector_size)
                stack.callback(device.close)
                # Everything was flushed: what is dropped here is read from the medium again.
                os.posix_fadvise(device.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                devices[disk_plan.disk.number] = device
            found = compare_machine(unlocked.machine, devices, unlocked.key, progress=progress)
    except DeviceError as error:
        report.verified_count = 0
        report.differences = [f"{os.fsdecode(error.filename)}: {error.strerror}"]
        return
    report.verified_count = found.object_count
    known = tuple(f"{failure.path}: " for failure in report.failures)
    report.differences = [text for text in found.differences if not text.startswith(known)]


def _open_target(target: TargetDisk) -> FileDevice:
    """Open a target for writing.

    Raises:
        UnsafeTargetError: it is in use.
        TargetFailedError: it cannot be opened.
    """
    try:
        return FileDevice.open(
            target.path, writable=True, sector_size=target.sector_size, direct=True
        )
    except DeviceError as error:
        if error.errno == errno.EBUSY:
            raise UnsafeTargetError(f"{target.path}: {error.reason}") from error
        raise TargetFailedError(
            f"{target.path} cannot be opened: {error.reason}; nothing was written to it"
        ) from error
