# SPDX-License-Identifier: Apache-2.0
"""Commands of the recovery side: restore, compare, rehearse."""

from __future__ import annotations

import argparse
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from imagebuilder.cli.common import (
    DONE,
    FAILED,
    NOT_PROVEN,
    PARTIAL,
    StatusLine,
    UsageError,
    add_credentials,
    choose_data_set,
    confirm,
    import_during,
    open_session,
    print_json,
    read_password,
    size_of_text,
)

if TYPE_CHECKING:
    from backup.objects.medium import Medium
    from backup.objects.model import DiskObject
    from rebuild.compare.disks import Comparison
    from rebuild.plan import TargetDisk
    from rebuild.restore import Unlocked

# What every restore uses; the drivers of ext are those most machines need.
RESTORE_MODULES = ("rebuild.restore", "imagebuilder.repository_medium", "fsdrivers.ext.mkfs.plan")


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parsers of this module's commands."""
    restore = commands.add_parser("restore", help="restore onto a disk or an image")
    _add_source(restore, "--from", dest="source")
    restore.add_argument(
        "--disk",
        metavar="PATH",
        action="append",
        required=True,
        help="target, one for each recorded disk in their order; a new image is made",
    )
    restore.add_argument(
        "--disk-size", metavar="SIZE", type=size_of_text, help="of new images: 4G, 512M"
    )
    restore.add_argument(
        "--sector-size", type=int, choices=(512, 4096), default=512, help="of new images"
    )
    restore.add_argument(
        "--grow", metavar="N", type=int, help="partition that takes new room; 0 for none"
    )
    restore.add_argument("--yes", action="store_true", help="erase the target without asking")
    restore.add_argument(
        "--incomplete",
        action="store_true",
        help="restore what there is when the medium lacks a part; exit code 3",
    )
    restore.add_argument("--plan", action="store_true", help="print the plan and stop")
    restore.add_argument("--verify", action="store_true", help="read back and compare afterwards")
    restore.add_argument("--json", action="store_true", help="print the result as JSON")
    restore.set_defaults(run=run_restore)

    compare = commands.add_parser("compare", help="compare disks with a data set")
    _add_source(compare, "disc", dest="source")
    compare.add_argument("--disk", metavar="PATH", action="append", required=True)
    compare.add_argument("--json", action="store_true", help="print the result as JSON")
    compare.set_defaults(run=run_compare)

    rehearse = commands.add_parser(
        "rehearse", help="boot a disc in QEMU, restore, compare, boot the result"
    )
    rehearse.add_argument("disc", metavar="ISO", type=Path)
    add_credentials(rehearse)
    rehearse.add_argument("--firmware", choices=("bios", "uefi", "secure-boot"), default="bios")
    rehearse.add_argument(
        "--bus", choices=("ide", "ahci", "virtio", "nvme", "usb", "scsi"), default="virtio"
    )
    rehearse.add_argument("--medium", choices=("cd", "usb"), default="cd")
    rehearse.add_argument(
        "--disk-size", metavar="SIZE", type=size_of_text, help="default: as the recorded disk"
    )
    rehearse.add_argument("--memory", metavar="MIB", type=int, default=512)
    expected = rehearse.add_mutually_exclusive_group()
    expected.add_argument(
        "--expect",
        metavar="TEXT",
        default="login: ",
        help="what the restored machine says on its serial line when it is up",
    )
    expected.add_argument(
        "--expect-pattern", metavar="REGEX", help="the same as a regular expression"
    )
    rehearse.add_argument("--screenshots", metavar="DIR", type=Path)
    rehearse.add_argument("--work", metavar="DIR", type=Path, help="keep disks and logs here")
    rehearse.add_argument(
        "--timeout", metavar="S", type=float, default=3600.0, help="for the restore alone"
    )
    rehearse.add_argument("--json", action="store_true", help="print the result as JSON")
    rehearse.set_defaults(run=run_rehearse)


def _add_source(parser: argparse.ArgumentParser, name: str, *, dest: str) -> None:
    about = "a disc's image, a server, a store, or a mounted disc"
    if name.startswith("-"):
        parser.add_argument(name, dest=dest, required=True, metavar="DISC|URL|DIR", help=about)
    else:
        parser.add_argument(dest, metavar="DISC|URL|DIR", help=about)
    add_credentials(parser)
    parser.add_argument("--fingerprint", metavar="FP", help="of the server's certificate")
    parser.add_argument("--machine", metavar="NAME", help="for a server or a store")
    parser.add_argument("--data-set", metavar="ID", help="another than the newest")


def open_unlocked(
    args: argparse.Namespace, stack: ExitStack, status: StatusLine
) -> tuple[Medium, Unlocked]:
    """Open what the restore reads from, with id and password.

    Raises:
        WrongPasswordError, NotAuthorisedError, MediumError, NoSuchDataSetError
    """
    stack.callback(status.clear)
    source = str(args.source)
    is_server = source.startswith(("https://", "http://"))
    if not is_server and not os.path.isdir(source):
        from imagebuilder.disc.reader import IsoMedium

        medium: Medium = stack.enter_context(IsoMedium.open(Path(source)))
    elif not is_server and os.path.exists(os.path.join(source, "hash.dat")):
        from rebuild.medium import DirectoryMedium

        medium = DirectoryMedium(source)
    else:
        from imagebuilder.repository_medium import RepositoryMedium

        place = argparse.Namespace(
            server=source if is_server else None,
            store=None if is_server else Path(source),
            fingerprint=args.fingerprint,
            user=args.user,
            password_file=args.password_file,
        )
        session = stack.enter_context(open_session(place, needed=RESTORE_MODULES))
        from rebuild.restore import unlock

        session.check_newest(args.machine)
        info = choose_data_set(session.repository, args.machine, args.data_set)
        medium = RepositoryMedium(session.repository, session.master, info.id, source)
        return medium, unlock(medium, args.user, "", master=session.master, progress=status.show)
    password = read_password(args)
    from rebuild.restore import unlock

    return medium, import_during(
        lambda: unlock(medium, args.user, password, progress=status.show), RESTORE_MODULES
    )


def run_restore(args: argparse.Namespace) -> int:
    """Restore onto disks or images."""
    status = StatusLine()
    with ExitStack() as stack:
        medium, unlocked = open_unlocked(args, stack, status)
        from rebuild.errors import MediumError, UnsafeTargetError
        from rebuild.plan import match_disks
        from rebuild.restore import apply_plan, make_plan, missing_content, verify
        from rebuild.sharing import useful_processes

        targets = [
            _target_of(path, disk, args)
            for path, disk in zip(args.disk, unlocked.machine.disks, strict=False)
        ]
        if len(args.disk) != len(unlocked.machine.disks):
            match_disks(unlocked.machine.disks, [t for t, _ in targets])
        plan = make_plan(
            unlocked,
            match_disks(unlocked.machine.disks, [target for target, _ in targets]),
            grow=args.grow,
        )
        status.clear()
        if args.plan:
            print("\n".join(plan.lines()))
            return DONE
        if not args.yes:
            print("\n".join(plan.lines()))
            if not confirm("Go on?"):
                raise UnsafeTargetError("nothing was written: not confirmed, and no --yes given")
        missing = missing_content(unlocked, medium)
        if missing and not args.incomplete:
            raise MediumError(f"{missing}; --incomplete restores what there is")
        is_blank = all(is_new for _, is_new in targets)
        for target, is_new in targets:
            if is_new:
                with open(target.path, "xb") as file:
                    file.truncate(target.size)
        with _removed_on_failure([target.path for target, is_new in targets if is_new]):
            report = apply_plan(
                unlocked,
                plan,
                medium,
                is_blank=is_blank,
                processes=useful_processes(),
                progress=status.show,
            )
        if args.verify:
            verify(unlocked, plan, report, progress=status.show)
        status.clear()
    if args.json:
        print_json(report.to_dict())
    else:
        print("\n".join(line for line in report.lines(names_shown=None) if line))
    return DONE if report.is_complete else PARTIAL


@contextmanager
def _removed_on_failure(paths: Sequence[str]) -> Iterator[None]:
    """Remove images made for a restore that failed: they look like disks but are none."""
    try:
        yield
    except BaseException:
        for path in paths:
            Path(path).unlink(missing_ok=True)
        raise


def _target_of(path: str, disk: DiskObject, args: argparse.Namespace) -> tuple[TargetDisk, bool]:
    """Return the target at `path`, and whether it is an image still to be made.

    Raises:
        UnsafeTargetError: it is in use.
    """
    from fsdrivers.device import FileDevice
    from rebuild.disks import content_of, refuse_in_use
    from rebuild.errors import UnsafeTargetError
    from rebuild.plan import TargetDisk

    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        size = args.disk_size or disk.size
        return TargetDisk(path, size // 512 * 512, args.sector_size), True
    if not stat.S_ISBLK(mode) and not stat.S_ISREG(mode):
        raise UsageError(f"{path} is neither a disk nor an image")
    refuse_in_use(path)
    if Path(path).resolve().is_relative_to(Path(args.source).resolve()):
        raise UnsafeTargetError(f"{path} is what the restore would read from")
    device = FileDevice.open(path)
    try:
        size, sector_size = device.size, device.sector_size
    finally:
        device.close()
    return TargetDisk(path, size, sector_size, content=content_of(path)), False


def run_compare(args: argparse.Namespace) -> int:
    """Compare disks with a data set."""
    status = StatusLine()
    with ExitStack() as stack:
        _, unlocked = open_unlocked(args, stack, status)
        comparison = _compare(unlocked, args.disk, status)
    if args.json:
        print_json(comparison.to_dict())
    else:
        print("\n".join(comparison.lines()))
    return DONE if comparison.is_equal else FAILED


def _compare(unlocked: Unlocked, paths: Sequence[str | Path], status: StatusLine) -> Comparison:
    from fsdrivers.device import FileDevice
    from rebuild.compare.disks import compare_machine

    disks = unlocked.machine.disks
    if len(paths) != len(disks):
        raise UsageError(f"the machine has {len(disks)} disk(s), {len(paths)} were given")
    with ExitStack() as stack:
        devices = {}
        for disk, path in zip(disks, paths, strict=True):
            device = FileDevice.open(str(path))
            stack.callback(device.close)
            devices[disk.number] = device
        return compare_machine(unlocked.machine, devices, unlocked.master, progress=status.show)


def _expected_pattern(args: argparse.Namespace) -> str:
    """Return what to wait for as a regular expression.

    Raises:
        UsageError: the one given is none.
    """
    pattern: str = args.expect_pattern or re.escape(args.expect)
    try:
        re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--expect-pattern {pattern!r}: {error}") from error
    return pattern


def run_rehearse(args: argparse.Namespace) -> int:
    """Prove a disc in QEMU."""
    from imagebuilder.disc.reader import IsoMedium
    from rebuild.restore import unlock
    from vm.rehearsal import RehearsalConfig, rehearse

    status = StatusLine()
    password = read_password(args)
    with ExitStack() as stack:
        medium = stack.enter_context(IsoMedium.open(args.disc))
        unlocked = unlock(medium, args.user, password, progress=status.show)
        sizes = [args.disk_size or disk.size for disk in unlocked.machine.disks]
        config = RehearsalConfig(
            disc=args.disc,
            disk_sizes=sizes,
            user=args.user,
            secret=password,
            firmware=args.firmware,
            bus=args.bus,
            medium=args.medium,
            memory_mib=args.memory,
            expect=_expected_pattern(args),
            screenshots=args.screenshots,
            work_directory=args.work,
            restore_timeout_s=args.timeout,
        )

        def compare(paths: Sequence[Path]) -> tuple[str, dict[str, object]]:
            comparison = _compare(unlocked, paths, status)
            first = comparison.differences[0] if comparison.differences else ""
            return first, comparison.to_dict()

        report = rehearse(config, compare, tell=status.show)
        status.clear()
    if args.json:
        print_json(report.to_dict())
    else:
        print("\n".join(report.lines()))
    return DONE if report.is_proven else NOT_PROVEN
