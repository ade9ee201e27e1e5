# SPDX-License-Identifier: Apache-2.0
"""`image build`: from a data set in a repository to a recovery disc.

The data stays sealed all the way.  The master key is needed for three things only: the list of
packs is inside the sealed table; the disc's key file is bound to its data set, so that the two
cannot be exchanged; and answers get a code that says who wrote them.  Every pack is checked
against its digest while it is copied.

Source: EP1168174A1 [0049] to [0058].
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from backup.objects import disc_files
from backup.objects.errors import DamagedError
from backup.objects.keys import MasterKey, bind
from backup.objects.manifest import ManifestFile, build_manifest
from backup.objects.pack import PackInfo
from backup.objects.table import read_summary
from backup.repository import (
    InvalidRequestError,
    NoSuchPackError,
    RepositoryError,
    StoreDamagedError,
)
from imagebuilder.disc import files as medium_files
from imagebuilder.disc import master as iso
from imagebuilder.disc import plan as disc
from imagebuilder.disc.files import DiscOptions
from imagebuilder.disc.master import Progress, Source
from imagebuilder.disc.plan import DiscFile
from imagebuilder.environment.build import BootEnvironment
from imagebuilder.errors import DiscPlanError

_FAR = 10**14  # bytes; no position on a disc has more digits
_MANIFESTS = (disc_files.MANIFEST, disc.COPY_OF_MANIFEST)
PACKS_AHEAD = 2  # packs fetched and checked while the one before is written


class DataSource(Protocol):
    """What the builder needs of a repository (`backup.repository.Repository` is one)."""

    def key_file(self) -> bytes:
        """Return hash.dat."""

    def open_table(self, data_set: str) -> BinaryIO:
        """Open a data set's objtab.dat."""

    def read_pack(self, digest: bytes, offset: int, length: int) -> bytes:
        """Return a part of a pack."""

    def check(self, packs: Sequence[bytes], tables: Sequence[str]) -> object:
        """Have the repository look at packs that were found damaged."""


@dataclass(frozen=True, slots=True)
class BuiltDisc:
    """What was made."""

    path: Path
    size: int
    boot_size: int  # bytes of kernel, boot environment and boot loaders
    data_set: str
    machine: str
    generation: int
    created_ns: int  # when the backup was started, since 1970
    pack_count: int
    missing: int  # objects of the machine that the data set does not hold


def build_disc(
    source: DataSource,
    master: MasterKey,
    data_set: str,
    output: Path,
    *,
    environment: BootEnvironment,
    options: DiscOptions = DiscOptions(),  # noqa: B008 (frozen)
    created_s: int | None = None,
    progress: Progress | None = None,
) -> BuiltDisc:
    """Build the recovery disc of a data set as an ISO image.

    An interrupted build leaves nothing behind, and an older file of that name untouched.

    Args:
        source: the user's repository.
        master: what the user's key file unlocks.
        data_set: the data set's id, 32 hexadecimal digits.
        output: where the image goes.
        environment: see `boot_environment.prepare_boot_environment`.
        options: keyboard layout, answer file, label.
        created_s: time stamp, seconds since 1970; default: SOURCE_DATE_EPOCH, else now.
        progress: called with bytes written and bytes in all.

    Raises:
        ImageBuilderError: what is asked for cannot be built, or there is too little room.
        ObjectsError: the data set is damaged, or of another key.
        RepositoryError: the repository lacks something or cannot be reached.
        OSError: the image cannot be written.
    """
    medium_files.check_options(options)
    created_s = iso.build_time() if created_s is None else created_s
    output = output.absolute()
    if output.exists() and not output.is_file():
        raise DiscPlanError(f"{output} must be a regular file")
    iso.check_room(output.parent, environment.size)
    with tempfile.TemporaryFile(dir=output.parent) as table, _PackFeeder(source) as feeder:
        table_digest = _copy_table(source, data_set, table)
        summary = read_summary(master, table)
        if summary.data_set_id.hex() != data_set:
            raise DamagedError("the object table", f"is of data set {summary.data_set_id.hex()}")
        key_file = bind(source.key_file(), master, summary.data_set_id)
        content = _Content()
        content.add_small(medium_files.make_small_files(data_set, options, environment, created_s))
        if options.answers:
            code = master.answers_code(summary.data_set_id, options.answers)
            content.add_small({disc_files.ANSWERS_CODE: code})
        content.add_small(
            {
                disc_files.KEY_FILE: key_file,
                disc.COPY_OF_KEY_FILE: key_file,
                disc.KERNEL: environment.kernel.read_bytes(),
                disc.INITRD: environment.initrd.read_bytes(),
            }
        )
        table_size = table.seek(0, io.SEEK_END)
        for path in (disc_files.TABLE, disc.COPY_OF_TABLE):
            content.add(path, table, table_size, table_digest)
        feeder.packs = summary.packs
        for index, pack in enumerate(summary.packs):
            content.add(disc_files.pack_file(index), feeder.stream(index), pack.size, pack.digest)
        content.make_room_for_manifests()
        plan = disc.plan_disc(data_set, list(map(DiscFile, content.sizes, content.sizes.values())))
        iso.check_room(output.parent, plan.size_limit)
        with iso.replacing(output) as file:
            iso.write_iso(
                plan,
                content.sources,
                file,
                hybrid_code=environment.loader("isohdpfx.bin").read_bytes(),
                created_s=created_s,
                finish=content.manifests,
                progress=progress,
            )
    return BuiltDisc(
        path=output,
        size=output.stat().st_size,
        boot_size=plan.boot_size,
        data_set=plan.set_id,
        machine=summary.machine,
        generation=summary.generation,
        created_ns=summary.created_ns,
        pack_count=len(summary.packs),
        missing=summary.missing,
    )


class _Content:
    """What the files of a disc are made of; those that the manifest lists, then the manifests."""

    def __init__(self) -> None:
        self.sources: dict[str, Source] = {}
        self.sizes: dict[str, int] = {}  # in bytes
        self._digests: dict[str, bytes] = {}
        self._manifest_size = 0

    def add(self, path: str, source: Source, size: int, digest: bytes) -> None:
        """Add a file."""
        self.sources[path], self.sizes[path], self._digests[path] = source, size, digest

    def add_small(self, files: Mapping[str, bytes]) -> None:
        """Add files that are in memory."""
        for path, data in files.items():
            self.add(path, data, len(data), hashlib.sha256(data).digest())

    def make_room_for_manifests(self) -> None:
        """Add the manifests, zeros until the place of every other file is known."""
        self._manifest_size = len(self._manifest(dict.fromkeys(self.sizes, _FAR)))
        for path in _MANIFESTS:
            self.sources[path], self.sizes[path] = bytes(self._manifest_size), self._manifest_size

    def manifests(
        self, made: Mapping[str, bytes], places: Mapping[str, int]
    ) -> Mapping[str, bytes]:
        """Return the manifests.

        Args:
            made: files whose content had to wait for the places of others.
            places: where each file begins, in bytes from the start of the image.
        """
        for path, data in made.items():
            self._digests[path] = hashlib.sha256(data).digest()
        return dict.fromkeys(_MANIFESTS, self._manifest(places))

    def _manifest(self, places: Mapping[str, int]) -> bytes:
        """Return manifest.json, filled up to the size that was kept for it."""
        return build_manifest(
            [
                ManifestFile(path, self.sizes[path], digest, position=places[path])
                for path, digest in self._digests.items()
            ],
            size=self._manifest_size,
        )


def _copy_table(source: DataSource, data_set: str, target: BinaryIO) -> bytes:
    """Copy a data set's table; return its SHA-256."""
    digest = hashlib.sha256()
    with source.open_table(data_set) as table:
        while data := table.read(iso.COPY_SIZE):
            digest.update(data)
            target.write(data)
    target.seek(0)
    return digest.digest()


class _PackFeeder:
    """Fetches packs in order, a little ahead of the writer, each checked against its digest."""

    def __init__(self, source: DataSource) -> None:
        self.packs: Sequence[PackInfo] = ()
        self._source = source
        self._executor = ThreadPoolExecutor(PACKS_AHEAD)
        self._fetched: dict[int, Future[bytes]] = {}

    def __enter__(self) -> _PackFeeder:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(cancel_futures=True)

    def stream(self, index: int) -> BinaryIO:
        """Return a stream of pack `index` that fetches it when it is first read."""
        return io.BufferedReader(_PackStream(self, index))

    def take(self, index: int) -> bytes:
        """Return pack `index` and start fetching those behind it."""
        for ahead in range(index, min(index + 1 + PACKS_AHEAD, len(self.packs))):
            if ahead not in self._fetched:
                self._fetched[ahead] = self._executor.submit(self._fetch, ahead)
        return self._fetched.pop(index).result()

    def _fetch(self, index: int) -> bytes:
        pack = self.packs[index]
        try:
            data = self._source.read_pack(pack.digest, 0, pack.size)
        except (InvalidRequestError, NoSuchPackError, StoreDamagedError):  # cut short, or lost
            data = b""
        if len(data) != pack.size or hashlib.sha256(data).digest() != pack.digest:
            # So that the next backup heals it; the reason to stop stays the same.
            with contextlib.suppress(RepositoryError):
                self._source.check((pack.digest,), ())
            raise DamagedError(
                f"pack {pack.digest.hex()}",
                "is damaged in the repository: build the disc of what is left of this data set "
                "with --without-lost, or of another one; the next backup of the machine sends "
                "again what the machine still has",
            )
        return data


class _PackStream(io.RawIOBase):
    """One pack as a file: held in memory from the first byte read to the last."""

    def __init__(self, feeder: _PackFeeder, index: int) -> None:
        self._feeder = feeder
        self._index = index
        self._position = 0
        self._data = b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        assert whence == io.SEEK_SET, "pycdlib seeks from the start only"
        self._position = offset
        return offset

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]  # RawIOBase promises a buffer
        if self._position >= self._feeder.packs[self._index].size:
            return 0
        if not self._data:
            self._data = self._feeder.take(self._index)
        part = self._data[self._position : self._position + len(view)]
        view[: len(part)] = part
        self._position += len(part)
        if self._position == len(self._data):
            self._data = b""
        return len(part)
