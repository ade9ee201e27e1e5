# SPDX-License-Identifier: Apache-2.0
"""Quota files of a new volume: how long they are before anything is placed, their content after.

Source: see `quota`.  Values of attributes in inodes of their own count for every inode that has
them, as blocks and as inodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from fsdrivers.ext.format import records as ext
from fsdrivers.ext.format.flags import InodeNumber
from fsdrivers.ext.mkfs.parameters import Parameters
from fsdrivers.ext.mkfs.shape import Run
from fsdrivers.ext.mkfs.tree import Tree
from fsdrivers.ext.quota import QuotaFacts, QuotaKind, Usage, file_size, pack_file

# The project quota's inode is any that is free.
QUOTA_INODES = {
    QuotaKind.USER: int(InodeNumber.USER_QUOTA),
    QuotaKind.GROUP: int(InodeNumber.GROUP_QUOTA),
}


class OwnerSets:
    """The identifiers that have an entry in each quota file."""

    def __init__(self, quotas: Sequence[QuotaFacts]) -> None:
        self._sets = [(facts.kind, {0, *facts.limits}) for facts in quotas]

    def add(self, uid: int, gid: int, project: int) -> None:
        """Note whom an inode belongs to."""
        owners = (uid, gid, project)
        for kind, found in self._sets:
            found.add(owners[kind])

    def file_sizes(self) -> list[int]:
        """Return the bytes of each file."""
        return [file_size(found) for _, found in self._sets]


@dataclass(slots=True)
class PlannedQuota:
    """One quota file; its inode and blocks are given later."""

    facts: QuotaFacts
    size: int  # bytes
    number: int = 0
    runs: list[Run] = field(default_factory=list)

    @property
    def kind(self) -> QuotaKind:
        return self.facts.kind


class QuotaPlan:
    """The quota files of one volume, in the order of their kinds."""

    def __init__(self, parameters: Parameters, tree: Tree) -> None:
        self._parameters = parameters
        self._tree = tree
        self._numbers = [InodeNumber.ROOT, *range(parameters.first_inode, tree.last_inode + 1)]
        self.files: list[PlannedQuota] = []
        if not parameters.quotas:
            return
        owners = OwnerSets(parameters.quotas)
        for _, uid, gid, project, _ in tree.inodes.iter_owners(self._numbers):
            owners.add(uid, gid, project)
        self.files = [
            PlannedQuota(facts, size)
            for facts, size in zip(parameters.quotas, owners.file_sizes(), strict=True)
        ]

    @property
    def blocks(self) -> list[int]:
        """The blocks of each file."""
        return [-(-quota.size // self._parameters.block_size) for quota in self.files]

    def iter_content(self) -> Iterator[tuple[PlannedQuota, bytes]]:
        """Yield the files in whole blocks; everything on the volume must be placed."""
        usage = self._usage() if self.files else []
        for quota in self.files:
            data = pack_file(quota.facts, usage[quota.kind])
            assert len(data) == quota.size, "the identifiers are those of the plan"
            yield quota, data.ljust(sum(count for _, count in quota.runs)
                                    * self._parameters.block_size, b"\0")  # fmt: skip

    def _usage(self) -> list[dict[int, Usage]]:
        """Return what each identifier uses, by kind."""
        xattrs = self._tree.xattrs
        values = {number: xattrs.charged_inodes(index) for number, index in xattrs.users}
        hidden = set(xattrs.value_numbers.values())
        totals: list[dict[int, list[int]]] = [{} for _ in QuotaKind]
        for number, *owners, sectors in self._tree.inodes.iter_owners(self._numbers):
            if number in hidden:
                continue
            for kind, owner in enumerate(owners):
                found = totals[kind].setdefault(owner, [0, 0])
                found[0] += sectors * ext.SECTOR
                found[1] += 1 + values.get(number, 0)
        return [{owner: Usage(*used) for owner, used in found.items()} for found in totals]
