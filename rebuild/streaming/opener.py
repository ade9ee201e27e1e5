# SPDX-License-Identifier: Apache-2.0
"""What opens sealed pieces, whoever reads them and in whichever process."""

from __future__ import annotations

from collections.abc import Sequence

from backup.objects.data_keys import DataKey
from backup.objects.pack import PackInfo, PackReader


class PieceOpener:
    """Opens pieces of a data set's packs.  Thread-safe."""

    def __init__(self, master: DataKey, packs: Sequence[PackInfo]) -> None:
        self.packs = packs
        self._master = master
        self._readers: dict[int, PackReader] = {}

    def reader(self, index: int) -> PackReader:
        """Return the reader of pack number `index` of the data set."""
        reader = self._readers.get(index)
        if reader is None:
            reader = self._readers[index] = PackReader(self._master, self.packs[index].salt)
        return reader
