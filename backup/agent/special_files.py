# SPDX-License-Identifier: Apache-2.0
"""Files that are kept otherwise than others, known by their names on volumes of each kind.

Blank ones are zeros by design: swap files, which come back with their size and no content.  Placed
ones are found by their sectors, so it is kept where they are.  Shadow copies are left out.

Source: EP1168174A1 [0073], [0074]; [libvshadow] "Store".
"""

from __future__ import annotations

import re

from fsdrivers import Driver, Starts
from fsdrivers.volume import Entry

BLANK_FILE, PLACED_FILE = "blank-file", "placed-file"  # names of their markers
PLACED_FILES = frozenset((b"ldlinux.sys", b"extlinux.sys"))  # of syslinux, on every volume
_SWAP_FILES = (b"win386.swp", b"swapper.dat")  # of Windows 3 and OS/2, in any directory
_NT_SWAP_FILES = (b"pagefile.sys", b"hiberfil.sys")  # in the root directory
_SNAPSHOT_DIRECTORY = b"system volume information"
_GUID = rb"\{[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\}"
_SNAPSHOT = re.compile(rb"(%b)?\{3808876b-c176-4e48-b7ae-04046e6cc752\}" % _GUID, re.IGNORECASE)


class SpecialFiles:
    """Knows which files of a volume get a marker.

    `names` are all of them, in lower case where the filesystem ignores it.
    """

    def __init__(self, driver: Driver) -> None:
        self._blank: tuple[bytes, ...] = ()
        self._blank_in_root: tuple[bytes, ...] = ()
        if Starts.DOS in driver.starts:
            self._blank = _SWAP_FILES
            self._blank_in_root = (b"386spart.par", *_NT_SWAP_FILES)
        elif Starts.WINDOWS in driver.starts:
            self._blank_in_root = (b"swapfile.sys", *_NT_SWAP_FILES)
        self.names = PLACED_FILES.union(self._blank, self._blank_in_root)

    def marker_of(self, name: bytes, *, is_in_root: bool) -> str:
        """Return the name of the marker that a file called one of `names` gets, empty for none."""
        if name in PLACED_FILES:
            return PLACED_FILE
        is_blank = name in self._blank or (is_in_root and name in self._blank_in_root)
        return BLANK_FILE if is_blank else ""


class Snapshots:
    """Knows the files in which Windows keeps what its shadow copies need.

    Of a restored volume they would be changes of something else.
    """

    def __init__(self) -> None:
        self.count = 0  # of those left out
        self._directory = 0  # number of the directory that has them

    @classmethod
    def on(cls, driver: Driver) -> Snapshots | None:
        """Return what knows those of a volume, None where there are none."""
        is_windows = Starts.WINDOWS in driver.starts and Starts.DOS not in driver.starts
        return cls() if is_windows else None

    def leaves_out(self, entry: Entry, *, is_in_root: bool) -> bool:
        """Tell whether an entry is such a file, and count it; sees every entry once."""
        if is_in_root and entry.name.lower() == _SNAPSHOT_DIRECTORY:
            self._directory = entry.node.number
        elif entry.parent == self._directory and _SNAPSHOT.fullmatch(entry.name):
            self.count += 1
            return True
        return False
