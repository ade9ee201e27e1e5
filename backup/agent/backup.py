# SPDX-License-Identifier: Apache-2.0
"""One backup: get the remote data set, compute the local one, send what differs, commit.

    1  inspect   refuse what could not be recovered, before anything is sent
    2  compare   read the previous data set, and the indexes of packs left by an interrupted run
    3  scan      list all objects; those unchanged are taken over unread
    4  send      read, hash, compress, seal and store the rest, in forked processes
    5  commit    write the object table; the repository drops what no data set lists

Until the commit the last data set stays as it is, whatever happens.

Source: EP1168174A1 [0038] to [0048].
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from backup.agent.errors import NoSourceError, NotRecoverableError, Problem
from backup.agent.exclusions import Watched, compile_exclusions
from backup.agent.local_set import LocalSet
from backup.agent.minimum import set_minimum_sizes
from backup.agent.previous import (
    PreviousSet,
    give_up_packs,
    no_previous,
    note_another_machine,
    thin_packs,
)
from backup.agent.progress import NoProgress, Progress
from backup.agent.remote import load_previous, read_pending
from backup.agent.result import BackupOptions, BackupResult
from backup.agent.sending import Sender, Sent
from backup.agent.sources import Source
from backup.objects.content import iter_pieces
from backup.objects.data_keys import DataKey
from backup.objects.identification import identification
from backup.objects.model import (
    BackupObject,
    DiskObject,
    LabelObject,
    NodeObject,
    ObjectKind,
    Piece,
    Plain,
    SecurityObject,
    VolumeObject,
)
from backup.objects.pack import PackInfo
from backup.objects.table import TableWriter
from backup.repository import NoSuchPackError, Repository
from backup.shared.collector import paused_collector
from backup.shared.text import plural

SETTLE_ATTEMPTS = 4  # to read what changes meanwhile
TABLE_IN_MEMORY = 200_000  # objects; the table of a larger set goes through a file


def run_backup(
    repository: Repository,
    master: DataKey,
    machine: str,
    sources: Sequence[Source],
    options: BackupOptions | None = None,
    progress: Progress | None = None,
) -> BackupResult:
    """Back up `sources` as a new data set of `machine` and return what was done.

    Args:
        repository: of the user; may be used by forked processes meanwhile.
        master: the user's master key, or the machine's.
        machine: name of the machine.
        sources: inspected and closed here.
        options: by default nothing raw, nothing excluded.
        progress: told what goes on.

    Raises:
        NotRecoverableError: something on the sources could not be restored; nothing was sent.
        NoSourceError: there are no sources.
        RepositoryError: the repository refused something or cannot be reached.
        WorkerError: a packing process ended early.
    """
    arguments = (machine, options or BackupOptions(), progress or NoProgress())
    run = _Run(repository, master, *arguments)
    try:
        with paused_collector():
            try:
                return run.run(sources)
            except NoSuchPackError:
                if not run.lists_damage():
                    raise
            for source in sources:
                source.close()
            return _Run(repository, master, *arguments).run(sources)
    finally:
        for source in sources:
            source.close()


class _Run:
    """The state of one backup."""

    def __init__(
        self,
        repository: Repository,
        master: DataKey,
        machine: str,
        options: BackupOptions,
        progress: Progress,
    ) -> None:
        self.repository = repository
        self.master = master  # that of the previous data set, once it is read
        self.machine = machine
        self.options = options
        self.progress = progress
        self.listed: list[PackInfo] = []
        self.result = BackupResult()
        self.started_ns = time.time_ns()
        self._mark = self._start = time.perf_counter()

    def run(self, sources: Sequence[Source]) -> BackupResult:
        """Do all five steps."""
        if not sources:
            raise NoSourceError("there is no disk to back up")
        with self._hooks():
            local, previous, generation, sent = self._read(sources)
        self._end_phase("send")
        system = {key: value for source in sources for key, value in source.system().items()}
        self._commit(local, sent, previous, generation, {**system, **self.options.system})
        self._end_phase("commit")
        self.result.duration_s = time.perf_counter() - self._start
        return self.result

    @contextlib.contextmanager
    def _hooks(self) -> Iterator[None]:
        """Run the commands before and, whatever happens, those after."""
        hooks, is_read = self.options.hooks, False
        try:
            hooks.run_before(self.machine)
            yield
            is_read = True
        finally:
            failed = hooks.run_after(self.machine, is_read=is_read)
            self.result.warnings += failed
            self.result.mixed += len(failed)

    def _read(self, sources: Sequence[Source]) -> tuple[LocalSet, PreviousSet, int, Sent]:
        """Do the first four steps."""
        self._inspect(sources)
        previous, generation = self._compare()
        local = LocalSet(self.master, previous)
        packs = list(previous.packs)
        known = previous.pieces
        pending = read_pending(self.repository, self.master, self.machine, len(packs))
        packs += pending.packs
        for piece in pending.pieces:
            known.setdefault(piece.content_id, piece)
        self._end_phase("compare")
        self._scan(sources, local)
        sender = Sender(
            self.repository, self.master, self.machine, local, packs, known, self.progress
        )
        sent = sender.run(self.options.workers, self.options.level)
        self._settle(sources, local, sender)
        return local, previous, generation, sent

    def _inspect(self, sources: Sequence[Source]) -> None:
        """Refuse the machine if anything on it could not be restored."""
        problems: list[Problem] = []
        for source in sources:
            problems += source.inspect(allow_raw=self.options.allow_raw)
        if problems:
            raise NotRecoverableError(problems)
        self._end_phase("inspect")

    def _compare(self) -> tuple[PreviousSet, int]:
        """Read the previous data set; return it with the generation of the new one."""
        self.progress.start("compare", 0, 0)
        data_sets = self.repository.data_sets(self.machine)
        last = data_sets[-1] if data_sets else None
        previous, notes = load_previous(self.repository, self.master, data_sets)
        self.result.notes += notes
        if self._is_trusted(previous.key):
            # A set is sealed with one key throughout.
            self.master = previous.key or self.master
        else:
            self.result.notes.append(
                "the machine's key was revoked: everything is sent again, sealed with the "
                "password's key"
            )
            former, previous = previous, no_previous()
            previous.id, previous.started_ns = former.id, former.started_ns
            previous.system = former.system
        damaged = set(self.repository.damage().packs)
        lost = {i for i, pack in enumerate(previous.packs) if pack.digest in damaged}
        if lost:
            self.result.healed_packs = len(lost)
            self.result.notes.append(
                f"healed {plural(len(lost), 'damaged pack')}: what the machine still has of their "
                "content was sent again"
            )
        if previous.started_ns > self.started_ns:
            self.result.notes.append(
                "the clock was ahead when the previous data set was made; data sets are ordered by "
                "their number, so nothing is lost"
            )
        give_up_packs(previous, thin_packs(previous) | lost)
        return previous, last.generation + 1 if last else 1

    def _is_trusted(self, key: DataKey | None) -> bool:
        """Tell whether to go on with the key of the previous data set.

        Who has the password goes on with the machine's, so that its next run can compare with
        this one, but not with one that no credential has any more: it may be stolen.
        """
        if key is None or key.id == self.master.id:
            return True
        return any(key.id == credential.key_id for credential in self.repository.credentials())

    def _scan(self, sources: Sequence[Source], local: LocalSet) -> None:
        """List all objects."""
        self.progress.start("scan", local.previous.node_count, 0)
        is_excluded = compile_exclusions(self.options.exclude)
        watched = None if is_excluded is None else Watched(is_excluded)
        for source in sources:
            source.scan(local, watched)
        if watched is not None and (note := watched.note()):
            self.result.notes.append(note)
        if problems := [*_blank_disks(local.objects), *set_minimum_sizes(local)]:
            raise NotRecoverableError(problems)
        self._end_phase("scan")

    def _settle(self, sources: Sequence[Source], local: LocalSet, sender: Sender) -> None:
        """Have everything looked at again that changed between walk and reading."""
        was_busy = False
        for attempt in range(SETTLE_ATTEMPTS):
            is_last = attempt == SETTLE_ATTEMPTS - 1
            found = [source.settle(local, is_last=is_last) for source in sources]
            if not any(found):
                break
            was_busy = True
            sender.run(self.options.workers, self.options.level)
        local.conclude()
        if was_busy and (problems := set_minimum_sizes(local)):
            raise NotRecoverableError(problems)

    def _commit(
        self,
        local: LocalSet,
        sent: Sent,
        previous: PreviousSet,
        generation: int,
        system: dict[str, str],
    ) -> None:
        """Sign what is not signed yet, write the table and make the data set."""
        self.progress.start("commit", len(local.objects), 0)
        objects = list(local.iter_kept())
        packs = self.listed = _compact_packs(objects, sent.packs)
        others = [obj for obj in objects if not isinstance(obj, NodeObject | SecurityObject)]
        for obj in others:
            local.sign(obj)
        volumes = [obj for obj in others if isinstance(obj, VolumeObject)]
        self.result.notes += note_another_machine(self.machine, previous, system, volumes)
        self._count(local, objects, previous)
        in_memory = len(objects) <= TABLE_IN_MEMORY
        with contextlib.ExitStack() as stack:
            stream = io.BytesIO() if in_memory else None
            file = None if in_memory else stack.enter_context(tempfile.NamedTemporaryFile())
            writer = TableWriter(
                self.master,
                stream or file,  # type: ignore[arg-type]
                machine=self.machine,
                created_ns=self.started_ns,
                generation=generation,
                system=dict(system),
                options={**_plain_options(self.options), "frozen": [*local.frozen]},
            )
            writer.add_all(objects)
            writer.finish(packs, missing=local.missing, losses=local.losses)
            table: bytes | Path
            if stream is not None:
                table = stream.getvalue()
            else:
                assert file is not None, "a table is in memory or in a file"
                file.flush()
                table = Path(file.name)
            info = self.repository.commit(
                self.machine,
                table,
                [pack.digest for pack in packs],
                0,  # the policy decides what stays
                parent=previous.id or None,
                missing=local.missing,
            )
        result = self.result
        result.data_set = info
        result.bytes_read = sent.bytes_read
        result.bytes_sent = sent.bytes_sent + info.table_size
        result.packs_sent = sent.packs_sent
        result.warnings += local.warnings
        result.notes += local.notes
        result.missing += local.missing
        result.mixed += local.mixed

    def _count(
        self, local: LocalSet, objects: Sequence[BackupObject], previous: PreviousSet
    ) -> None:
        """Say what is new, changed, unchanged and removed against the previous set."""
        result = self.result
        result.objects = len(objects)
        result.size = sum(
            obj.size for obj in objects if type(obj) is NodeObject and obj.kind is ObjectKind.FILE
        )
        result.unchanged, result.changed = local.unchanged, local.changed
        for place, signature in local.former.items():
            if local.objects[place].signature == signature:
                result.unchanged += 1
            else:
                result.changed += 1
        left = {
            (old.volume, previous.directories.get(old.parent), old.name)
            for old in (*previous.iter_left(), *local.replaced)
        }
        by_path = Counter((parent, name) for _, parent, name in left)
        replaced = 0
        for place in local.fresh:
            if place + 1 in local.lost:
                continue
            node = local.objects[place]
            assert isinstance(node, NodeObject), "only nodes are fresh"
            parent = local.lookup(node.parent) if node.parent else None
            source = parent.source_number if isinstance(parent, NodeObject) else None
            if parent is not None and source is None:
                continue  # all below a new directory is new
            if by_path[source, node.name]:
                by_path[source, node.name] -= 1
                replaced += 1
        result.changed += replaced
        result.new += len(local.fresh) - replaced
        result.removed = len(left) - replaced
        signatures = dict(previous.signatures)
        for obj in objects:
            if isinstance(obj, NodeObject):
                continue
            old = signatures.pop(identification(obj, local.lookup), None)
            if old is None:
                result.new += 1
            elif old == obj.signature:
                result.unchanged += 1
            else:
                result.changed += 1
        result.removed += len(signatures)

    def lists_damage(self) -> bool:
        """Tell whether the last commit listed packs that the repository found damaged since."""
        return not {pack.digest for pack in self.listed}.isdisjoint(self.repository.damage().packs)

    def _end_phase(self, name: str) -> None:
        """Note how long a phase took."""
        now = time.perf_counter()
        self.result.phases_s[name] = now - self._mark
        self._mark = now


def _blank_disks(objects: Sequence[BackupObject]) -> list[Problem]:
    """Return a problem for each disk if there is nothing but zeros on any of them.

    Such a set would take the place of good ones, and nothing could be restored from it.
    """
    if any(isinstance(obj, VolumeObject) for obj in objects):
        return []
    disks = [obj for obj in objects if isinstance(obj, DiskObject)]
    if any(disk.scheme != "none" for disk in disks):
        return []
    return [Problem(disk.name, "there is nothing to back up: it is blank") for disk in disks]


def _compact_packs(
    objects: Sequence[BackupObject], packs: Sequence[PackInfo | None]
) -> list[PackInfo]:
    """Number the packs anew so that only those in use are left; return them."""
    used: set[int] = set()
    for obj in objects:
        if type(obj) is NodeObject:
            for piece in obj.pieces:
                used.add(piece.pack)
            if obj.streams:
                used.update(piece.pack for piece in iter_pieces(obj))
        elif not isinstance(obj, LabelObject | SecurityObject | NodeObject):
            used.update(piece.pack for piece in obj.pieces)
    kept = [index for index in range(len(packs)) if index in used]
    numbers = {index: number for number, index in enumerate(kept)}
    if any(index != number for index, number in numbers.items()):
        for obj in objects:
            if not isinstance(obj, LabelObject | SecurityObject) and obj.pieces:
                obj.pieces = tuple(_moved(piece, numbers) for piece in obj.pieces)
            if isinstance(obj, NodeObject) and obj.streams:
                obj.streams = tuple(
                    stream._replace(pieces=tuple(_moved(p, numbers) for p in stream.pieces))
                    for stream in obj.streams
                )
    listed = []
    for index in kept:
        pack = packs[index]
        assert pack is not None, "pieces lie in packs that were sent"
        listed.append(pack)
    return listed


def _moved(piece: Piece, numbers: dict[int, int]) -> Piece:
    """Return a piece with the new number of its pack."""
    number = numbers[piece.pack]
    return piece if number == piece.pack else piece._replace(pack=number)


def _plain_options(options: BackupOptions) -> dict[str, Plain]:
    """Return the options that a reader of the set may want to know."""
    return {
        "allow_raw": options.allow_raw,
        "exclude": list(options.exclude),
        "snapshot": options.snapshot.value,
        "before": list(options.hooks.before),
        "after": list(options.hooks.after),
    }
