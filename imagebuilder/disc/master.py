# SPDX-License-Identifier: Apache-2.0
"""Mastering: a plan and the content of its files become an ISO 9660 image that starts anywhere.

The image appears under its name only when it is whole and on the disk.  Equal content and equal
time give equal bytes.

Source: ECMA-119; SUSP 1.12 and RRIP 1.12 (Rock Ridge, written as 1.09, which every reader
knows); El Torito 1.0.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pycdlib
from pycdlib.pycdlibexception import PyCdlibException

from backup.objects import disc_files
from backup.objects.locator import POSITIONS, Locator, pack_locator
from imagebuilder.disc import boot_image
from imagebuilder.disc import plan as disc
from imagebuilder.disc.boot_image import ISO_SECTOR
from imagebuilder.disc.plan import DiscPlan, iso_path
from imagebuilder.errors import DiscPlanError, NotEnoughRoomError

INTERCHANGE_LEVEL = 3
ROCK_RIDGE = "1.09"
COPY_SIZE = 1 << 20  # bytes moved at a time
_BIOS_LOAD_SECTORS = 4  # 512-byte sectors the BIOS loads of isolinux.bin; it loads the rest
_EFI_PLATFORM = 0xEF  # El Torito platform id
_DIRECTORY_MODE = 0o040555
_FILE_MODE = 0o100444

_BOOT_IMAGES = (disc.ISOLINUX, disc.EFI_IMAGE)

Progress = Callable[[int, int], None]  # bytes written, bytes in all
# Content that the mastering made, and positions of all files -> content that depends on them.
Finish = Callable[[Mapping[str, bytes], Mapping[str, int]], Mapping[str, bytes]]
Source = BinaryIO | bytes


def build_time(environment: Mapping[str, str] = os.environ) -> int:
    """Return the time a build stamps on everything: SOURCE_DATE_EPOCH, else now.

    Source: reproducible-builds.org, SOURCE_DATE_EPOCH specification.
    """
    value = environment.get("SOURCE_DATE_EPOCH", "")
    return int(value) if value.isdecimal() else int(time.time())


def check_room(directory: Path, needed: int) -> None:
    """Refuse to start what cannot be finished.

    Raises:
        NotEnoughRoomError: with the numbers.
    """
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise NotEnoughRoomError(str(directory), needed, free)


@contextmanager
def replacing(output: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the name `output` when the block ends well, else vanishes.

    What a killed process left is written over by the next one.

    Raises:
        OSError: it cannot be written, or another process is at it.
    """
    path = output.with_name(f".{output.name}.new")
    with _locked(path) as file:
        try:
            yield file
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
            path.replace(output)
        except OSError as error:
            path.unlink(missing_ok=True)
            if error.filename is None:  # writing names no file
                raise OSError(error.errno, error.strerror, str(output)) from error
            raise
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    descriptor = os.open(output.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """Open an empty file that no other process writes."""
    while True:
        with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                reason = "another command is writing it"
                raise OSError(errno.EBUSY, reason, str(path)) from error
            # The process that held the lock may have given the file its name, or removed it.
            if path.exists() and path.samefile(f"/proc/self/fd/{file.fileno()}"):
                file.truncate()
                yield file
                return


def write_iso(
    plan: DiscPlan,
    sources: Mapping[str, Source],
    output: BinaryIO,
    *,
    hybrid_code: bytes,
    created_s: int,
    finish: Finish,
    progress: Progress | None = None,
) -> None:
    """Write the disc `plan` to `output`, an empty file.

    Args:
        plan: the files and their order.
        sources: path -> content: bytes, or a stream of exactly the planned size.
        output: where to; its first sector and its locators are written last.
        hybrid_code: syslinux's isohdpfx.bin.
        created_s: time stamp of everything, seconds since 1970.
        finish: gets isolinux.bin as it will be on the disc, and the position of every file;
            returns files (path -> content of the planned size) that depend on it: the manifest.
        progress: told how far it is.

    Raises:
        DiscPlanError: pycdlib refuses the plan.
    """
    try:
        with _iso_clock(created_s):
            _write(plan, sources, output, hybrid_code, finish, progress)
    except PyCdlibException as error:
        raise DiscPlanError(f"the disc cannot be mastered: {error}") from error


def _write(
    plan: DiscPlan,
    sources: Mapping[str, Source],
    output: BinaryIO,
    hybrid_code: bytes,
    finish: Finish,
    progress: Progress | None,
) -> None:
    iso = pycdlib.PyCdlib()
    iso.new(
        interchange_level=INTERCHANGE_LEVEL,
        rock_ridge=ROCK_RIDGE,
        sys_ident="LINUX",
        vol_ident=plan.volume_id,
        vol_set_ident=plan.set_id.upper(),
        app_ident_str="REBUILDKIT",
        set_size=plan.disc_count,
        seqnum=plan.disc_number,
    )
    try:
        buffers = _add_files(iso, plan, sources)
        places = _add_boot_records(iso, plan)
        isolinux_lba, efi_lba = (places[path] // ISO_SECTOR for path in _BOOT_IMAGES)
        isolinux = boot_image.with_boot_info(
            buffers[disc.ISOLINUX].getvalue(),
            descriptor_lba=iso.pvd.extent_location(),
            own_lba=isolinux_lba,
        )
        _replace(buffers[disc.ISOLINUX], isolinux)
        for path, data in finish({disc.ISOLINUX: isolinux}, places).items():
            _replace(buffers[path], data)
        iso.write_fp(output, COPY_SIZE, None if progress is None else _told(progress))
    finally:
        iso.close()
    image_size = output.seek(0, os.SEEK_END) + ISO_SECTOR
    image_size += -image_size % boot_image.CYLINDER
    output.truncate(image_size)
    output.seek(0)
    output.write(
        boot_image.make_hybrid_mbr(
            hybrid_code,
            image_size=image_size,
            isolinux_lba=isolinux_lba,
            efi_lba=efi_lba,
            efi_size=len(buffers[disc.EFI_IMAGE].getbuffer()),
            disk_id=int(plan.set_id[:8], 16),
        )
    )
    _write_locators(output, plan, places, image_size)


def _write_locators(
    output: BinaryIO, plan: DiscPlan, places: Mapping[str, int], image_size: int
) -> None:
    """Write the locators, which have a digest of all that stands before the first file."""
    sizes = {file.path: file.size for file in plan.files}
    locator = Locator(
        bytes.fromhex(plan.set_id),
        manifest=places[disc_files.MANIFEST],
        manifest_size=sizes[disc_files.MANIFEST],
        manifest_copy=places[disc.COPY_OF_MANIFEST],
        first_file=min(places.values()),
        boot_catalogue=places[disc.BOOT_CATALOG],
        digest=b"",
    )
    digest = hashlib.sha256()
    for position, size in locator.parts:
        output.seek(position)
        digest.update(output.read(size))
    sector = pack_locator(locator._replace(digest=digest.digest()))
    for position in (*POSITIONS, image_size - ISO_SECTOR):
        output.seek(position)
        output.write(sector)


def _told(progress: Progress) -> Callable[[int, int, Any], None]:
    """Return `progress` in the form pycdlib calls; its third argument is for the caller."""
    return lambda done, total, _opaque: progress(done, total)


def _add_files(
    iso: pycdlib.PyCdlib, plan: DiscPlan, sources: Mapping[str, Source]
) -> dict[str, io.BytesIO]:
    """Add directories and files; return the streams of those given as bytes."""
    for path in plan.directories:
        iso.add_directory(
            iso_path(path, is_directory=True),
            rr_name=path.rpartition("/")[2],
            file_mode=_DIRECTORY_MODE,
        )
    buffers = {}
    for file in plan.files:
        source = sources[file.path]
        if isinstance(source, bytes):
            assert len(source) == file.size, f"{file.path}: not the planned size"
            source = buffers[file.path] = io.BytesIO(source)
        iso.add_fp(
            source,
            file.size,
            iso_path(file.path),
            rr_name=file.path.rpartition("/")[2],
            file_mode=_FILE_MODE,
        )
    for link, path in disc.LINKS.items():
        iso.add_hard_link(
            iso_old_path=iso_path(path),
            iso_new_path=iso_path(link),
            rr_name=link.rpartition("/")[2],
        )
    return buffers


def _add_boot_records(iso: pycdlib.PyCdlib, plan: DiscPlan) -> dict[str, int]:
    """Add both El Torito entries; return the position of every file in the image."""
    isolinux, efi = map(iso_path, _BOOT_IMAGES)
    iso.add_eltorito(
        isolinux,
        bootcatfile=iso_path(disc.BOOT_CATALOG),
        rr_bootcatname=disc.BOOT_CATALOG.rpartition("/")[2],
        boot_load_size=_BIOS_LOAD_SECTORS,
    )
    iso.add_eltorito(efi, efi=True, platform_id=_EFI_PLATFORM)
    iso.force_consistency()
    paths = [*(file.path for file in plan.files), disc.BOOT_CATALOG]
    return {
        path: iso.get_record(iso_path=iso_path(path)).extent_location() * ISO_SECTOR
        for path in paths
    }


def _replace(buffer: io.BytesIO, data: bytes) -> None:
    """Give a stream other content of the same size."""
    assert len(buffer.getbuffer()) == len(data), "the size is already on the disc"
    buffer.seek(0)
    buffer.write(data)
    buffer.seek(0)


class _FixedClock:
    """Stands in for the `time` module inside pycdlib: one moment, in UTC."""

    localtime = staticmethod(time.gmtime)
    gmtime = staticmethod(time.gmtime)
    strftime = staticmethod(time.strftime)
    strptime = staticmethod(time.strptime)

    def __init__(self, seconds: int) -> None:
        self._seconds = seconds

    def time(self) -> float:
        """Return the moment, seconds since 1970."""
        return float(self._seconds)


@contextmanager
def _iso_clock(seconds: int) -> Iterator[None]:
    """Make pycdlib stamp everything with one time: it offers no other way to all of them."""
    from pycdlib import dates, headervd, utils
    from pycdlib import pycdlib as core

    modules = (core, dates, headervd, utils)
    clock = _FixedClock(seconds)
    try:
        for module in modules:
            vars(module)["time"] = clock
        yield
    finally:
        for module in modules:
            vars(module)["time"] = time
