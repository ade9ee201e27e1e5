# SPDX-License-Identifier: Apache-2.0
"""Commands of the recovery side: restore, compare, rehearse."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backup.shared.text import plural, size_text
from imagebuilder.cli.commands import Command, Group, command, flag, option
from imagebuilder.cli.common import (
    Credentials,
    StatusLine,
    UsageError,
    confirm,
    json_flag,
    print_json,
    read_password,
    report_error,
    size_of_text,
)
from imagebuilder.cli.files import restore_files
from imagebuilder.cli.opening import SOURCES, Source, open_unlocked
from imagebuilder.cli.settings import SOURCE
from imagebuilder.cli.targets import confirm_by, refuse_missing_device, refuse_repeated
from rebuild.exit_codes import ExitCode
from vm.qemu import BUSES, FIRMWARES, MEDIA, size_on_bus

if TYPE_CHECKING:
    from backup.objects.model import DiskObject
    from rebuild.compare.result import Comparison
    from rebuild.plan import RestorePlan, TargetDisk
    from rebuild.restore import Unlocked

LOGIN = "login: "


@dataclass(frozen=True, slots=True, kw_only=True)
class Restore(Source):
    source: str = option("--from DISC|URL|DIR", SOURCES, setting=SOURCE, required=True)
    disk: tuple[str, ...] = option(
        "--disk PATH", "target; one for each recorded disk, in their order", ()
    )
    path: tuple[str, ...] = option(
        "--path GLOB",
        "in place of disks: restore only this file or directory, such as /etc or 2:/etc; may be "
        "repeated",
        (),
    )
    to: str | None = option(
        "--to DIR|-", "with --path: a new or empty directory; -: a tar archive on standard output"
    )
    disk_size: int | None = option(
        "--disk-size SIZE", "size of new images, such as 4G or 512M", type=size_of_text
    )
    sector_size: int = option(
        "--sector-size",
        "sector size of new images, in bytes (default: 512)",
        512,
        type=int,
        choices=(512, 4096),
    )
    grow: int | None = option(
        "--grow N", "number of the partition that takes new room; 0: none", type=int
    )
    keep_names: bool = flag(
        "--keep-names", "leave names of disks in fstab as they are, even if they mean nothing there"
    )
    yes: bool = flag("--yes", "erase the target without asking")
    incomplete: bool = flag("--incomplete", "restore the rest when the medium lacks a part")
    plan: bool = flag("--plan", "print the plan and stop")
    verify: bool = flag("--verify", "read back and compare afterwards")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compare(Source):
    disk: tuple[str, ...] = option(
        "--disk PATH",
        "disk or image; one for each recorded disk, in their order",
        (),
        required=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearse(Credentials):
    disc: Path = option("ISO", "the disc's image", type=Path)
    firmware: str | None = option(
        "--firmware",
        "firmware of the virtual machine (default: what the recorded machine has)",
        choices=FIRMWARES,
    )
    bus: str = option("--bus", "bus of its disks (default: virtio)", "virtio", choices=BUSES)
    medium: str = option("--medium", "what the disc is there (default: cd)", "cd", choices=MEDIA)
    disk_size: int | None = option(
        "--disk-size SIZE", "size of its disks (default: as recorded)", type=size_of_text
    )
    memory: int = option("--memory MIB", "its memory in MiB (default: 512)", 512, type=int)
    expect: str = option(
        "--expect TEXT",
        "what the restored machine says on its serial line (default: `login: `, or a prompt on its "
        "screen)",
        LOGIN,
        group="expect",
    )
    expect_pattern: str | None = option(
        "--expect-pattern REGEX", "the same as a regular expression", group="expect"
    )
    screenshots: Path | None = option(
        "--screenshots DIR", "keep pictures of its screen here", type=Path
    )
    work: Path | None = option("--work DIR", "keep its disks and logs here", type=Path)
    timeout: float = option(
        "--timeout S", "seconds that the restore may take (default: 3600)", 3600.0, type=float
    )
    json: bool = json_flag()


def run_restore(options: Restore) -> int:
    """Restore onto disks or images, or only files with --path."""
    if bool(options.path) != bool(options.to) or bool(options.path) == bool(options.disk):
        raise UsageError("say where to with --disk, or which files with --path and --to")
    if options.to:
        return restore_files(options, options.path, options.to)
    status = StatusLine()
    with ExitStack() as stack:
        medium, unlocked = open_unlocked(options, stack, status)
        from backup.shared.sharing import useful_processes
        from rebuild.errors import MediumError
        from rebuild.plan import match_disks
        from rebuild.restore import apply_plan, make_plan, missing_content, opened_ahead, verify

        _check_targets(options.disk, len(unlocked.machine.disks))
        _check_size(options.disk, options.disk_size)
        targets = [
            _target_of(path, disk, options)
            for path, disk in zip(options.disk, unlocked.machine.disks, strict=False)
        ]
        if len(options.disk) != len(unlocked.machine.disks):
            match_disks(unlocked.machine.disks, [t for t, _ in targets])
        processes = 1 if options.plan else useful_processes()
        with opened_ahead(unlocked, medium, processes) as ahead:
            plan = make_plan(
                unlocked,
                match_disks(unlocked.machine.disks, [target for target, _ in targets]),
                grow=options.grow,
                keeps_names=options.keep_names,
                is_blank=all(is_new for _, is_new in targets),
            )
        status.clear()
        if not _is_agreed(options, unlocked, plan):
            return ExitCode.DONE
        missing = missing_content(unlocked, medium)
        if missing and not options.incomplete:
            raise MediumError(f"{missing}; use --incomplete to restore the rest")
        with _made([target for target, is_new in targets if is_new]):
            report = apply_plan(
                unlocked,
                plan,
                medium,
                ahead=ahead,
                processes=processes,
                progress=status.show,
            )
        if options.verify:
            verify(unlocked, plan, report, progress=status.show)
        status.clear()
    if options.json:
        print_json({**_named(unlocked), **report.to_dict()})
    else:
        if options.yes:  # else it was said before the question
            print("\n".join(unlocked.summary()))
        print("\n".join(line for line in report.lines(names_shown=None) if line))
    return report.exit_code


def _is_agreed(options: Restore, unlocked: Unlocked, plan: RestorePlan) -> bool:
    """Show what will be done, and ask; False if only the plan was wanted.

    Raises:
        UnsafeTargetError: nobody agreed.
    """
    from rebuild.errors import UnsafeTargetError
    from rebuild.recognise import day_of, find_saved, saved_lines

    targets = {part.disk.number: part.target for part in plan.disks}
    saved = saved_lines(unlocked.header, find_saved(unlocked.machine, targets))
    if options.yes and not options.plan:
        if saved:
            report_error(f"warning: {' '.join(saved)}")
        return True
    # First of all, which backup it is.
    print("\n".join([*unlocked.summary(), *plan.lines(), *saved]))
    if options.plan:
        return False
    day = day_of(unlocked.header)
    if not (confirm_by(f"Type {day} to take it back:", day) if saved else confirm("Restore?")):
        raise UnsafeTargetError("nothing was written: answer as asked, or use --yes")
    return True


def _named(unlocked: Unlocked) -> dict[str, object]:
    """Return which data set it is, for JSON."""
    header = unlocked.header
    return {
        "data_set": header.data_set_id.hex(),
        "machine": header.machine,
        "generation": header.generation,
        "created_ns": header.created_ns,
    }


def _check_targets(paths: Sequence[str | Path], disks: int) -> None:
    """Refuse more targets than there are disks, and one target under two names.

    Raises:
        UsageError: it is one of these.
    """
    if len(paths) > disks:
        raise UsageError(f"the data set has {plural(disks, 'disk')}, but --disk names {len(paths)}")
    refuse_repeated(paths, "target")


def _check_size(paths: Sequence[str], size: int | None) -> None:
    """Refuse a size for targets that have one: it is for new images.

    Raises:
        UsageError: an image has another size, or all targets are disks.
    """
    if size is None:
        return
    disks = []
    for path in paths:
        try:
            found = os.stat(path)
        except OSError:
            continue  # an image to be made, or refused later
        if stat.S_ISBLK(found.st_mode):
            disks.append(path)
        elif stat.S_ISREG(found.st_mode) and found.st_size not in (0, size):
            raise UsageError(
                f"{path} exists and has {found.st_size:,} bytes: --disk-size is for new images; "
                "leave it out, or name a new file"
            )
    if len(disks) == len(paths):
        raise UsageError(f"{disks[0]} is a disk: --disk-size is for new images; leave it out")


@contextmanager
def _made(images: Sequence[TargetDisk]) -> Iterator[None]:
    """Make images, and remove them if the block fails: they look like disks, but hold nothing."""
    with ExitStack() as failure:
        for image in images:
            failure.callback(Path(image.path).unlink, missing_ok=True)
            Path(image.path).touch()
            try:
                os.truncate(image.path, image.size)
            except OSError as error:
                if error.errno != errno.EFBIG:
                    raise
                raise UsageError(
                    f"the filesystem of {image.path} takes no file of {size_text(image.size)}: "
                    "choose a smaller --disk-size or another place"
                ) from error
        yield
        failure.pop_all()


def _target_of(path: str, disk: DiskObject, options: Restore) -> tuple[TargetDisk, bool]:
    """Return the target at `path`, and whether it is an image still to be made.

    Raises:
        UnsafeTargetError: it is in use.
    """
    from fsdrivers.device import FileDevice
    from fsdrivers.machine_images import image_reason
    from rebuild.disks import content_of, refuse_in_use
    from rebuild.errors import UnsafeTargetError
    from rebuild.plan import TargetDisk

    try:
        found = os.stat(path)
    except FileNotFoundError:
        refuse_missing_device(path)
        found = None
    # A restore that was killed may have left an empty file.
    if found is None or (stat.S_ISREG(found.st_mode) and not found.st_size):
        size = options.disk_size or disk.size
        return TargetDisk(path, size // 512 * 512, options.sector_size), True
    if not stat.S_ISBLK(found.st_mode) and not stat.S_ISREG(found.st_mode):
        raise UsageError(f"{path} is neither a disk nor an image")
    refuse_in_use(path)
    if Path(path).resolve().is_relative_to(Path(options.source).resolve()):
        raise UnsafeTargetError(f"{path} is where the restore reads from; choose another target")
    device = FileDevice.open(path)
    try:
        if reason := image_reason(device):
            raise UsageError(f"cannot restore to {path}: {reason}, or name a new file")
        size, sector_size = device.size, device.sector_size
    finally:
        device.close()
    return TargetDisk(path, size, sector_size, content=content_of(path)), False


def run_compare(options: Compare) -> int:
    """Compare disks with a data set, object by object."""
    status = StatusLine()
    with ExitStack() as stack:
        _, unlocked = open_unlocked(options, stack, status)
        comparison = _compare(unlocked, options.disk, status)
    if options.json:
        print_json(comparison.to_dict())
    else:
        print("\n".join([*unlocked.summary(), *comparison.lines()]))
    if not comparison.is_equal:
        return ExitCode.FAILED
    return ExitCode.PARTIAL if comparison.missing else ExitCode.DONE


def _compare(unlocked: Unlocked, paths: Sequence[str | Path], status: StatusLine) -> Comparison:
    from fsdrivers.device import FileDevice
    from fsdrivers.machine_images import image_reason
    from rebuild.compare.disks import compare_machine

    disks = unlocked.machine.disks
    if len(paths) != len(disks):
        given = f"--disk names {len(paths)}"
        raise UsageError(f"the machine has {plural(len(disks), 'disk')}, but {given}")
    refuse_repeated(paths, "disk")
    with ExitStack() as stack:
        devices = {}
        for disk, path in zip(disks, paths, strict=True):
            device = FileDevice.open(str(path))
            stack.callback(device.close)
            if reason := image_reason(device):
                raise UsageError(f"cannot compare {path}: {reason}")
            devices[disk.number] = device
        made = compare_machine(unlocked.machine, devices, unlocked.key, progress=status.show)
    made.missing = unlocked.header.missing
    return made


def _expected_pattern(options: Rehearse) -> str:
    """Return what to wait for as a regular expression.

    Raises:
        UsageError: the one given is not an expression.
    """
    pattern = options.expect_pattern or re.escape(options.expect).replace("\\ ", " ")
    try:
        re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--expect-pattern is not a regular expression: {error}") from error
    return pattern


def _recorded_firmware(unlocked: Unlocked) -> str:
    """Return the firmware that started the machine when it was backed up, if it can do so again."""
    from rebuild.fixups.firmware import firmware_problem

    was_uefi = unlocked.header.system.get("firmware") == "uefi"
    kinds = (was_uefi, not was_uefi)
    fit = (kind for kind in kinds if not firmware_problem(unlocked.machine, is_uefi=kind))
    return "uefi" if next(fit, was_uefi) else "bios"


def run_rehearse(options: Rehearse) -> int:
    """Boot a disc in QEMU, restore, compare, boot the result."""
    from rebuild.disc_image import IsoMedium
    from rebuild.restore import unlock
    from vm.qemu import check_programs
    from vm.rehearsal import RehearsalConfig, rehearse

    status = StatusLine()
    password = read_password(options)
    with ExitStack() as stack:
        medium = stack.enter_context(IsoMedium.open(options.disc))
        unlocked = unlock(medium, options.user, password, progress=status.show)
        firmware = options.firmware or _recorded_firmware(unlocked)
        check_programs(firmware)
        sizes = [
            size_on_bus(options.bus, options.disk_size or disk.size)
            for disk in unlocked.machine.disks
        ]
        config = RehearsalConfig(
            disc=options.disc,
            disk_sizes=sizes,
            user=options.user,
            secret=password,
            firmware=firmware,
            bus=options.bus,
            medium=options.medium,
            memory_mib=options.memory,
            expect=_expected_pattern(options),
            is_prompt_enough=options.expect == LOGIN and not options.expect_pattern,
            screenshots=options.screenshots,
            work_directory=options.work,
            restore_timeout_s=options.timeout,
            missing=unlocked.header.missing,
        )

        def compare(paths: Sequence[Path]) -> tuple[str, dict[str, object]]:
            comparison = _compare(unlocked, paths, status)
            first = comparison.differences[0] if comparison.differences else ""
            return first, comparison.to_dict()

        report = rehearse(config, compare, tell=status.show)
        status.clear()
    if options.json:
        print_json({**_named(unlocked), **report.to_dict()})
    else:
        print("\n".join(report.lines()))
    if not report.is_proven:
        return ExitCode.NOT_PROVEN
    return ExitCode.PARTIAL if report.missing else ExitCode.DONE


COMMANDS: Sequence[Command | Group] = (
    command("restore", Restore, run_restore),
    command("compare", Compare, run_compare),
    command("rehearse", Rehearse, run_rehearse),
)
