# SPDX-License-Identifier: Apache-2.0
"""Which names of this host a filesystem has a place for.

Where names are stored as Windows has them, those count that it can reach.  Names that DOS takes for
devices are let through, as Windows itself can have them.
"""

from __future__ import annotations

from fsdrivers import Names
from fsdrivers.fat.codepage import fold


class SeenNames:
    """The names of one directory, as far as they were taken."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._taken: set[str] = set()

    @classmethod
    def of(cls, names: Names) -> SeenNames | None:
        """Return what looks at the names of a directory, None where any name of a host will do."""
        return None if names == Names() else cls(names)

    def reason_against(self, name: bytes) -> str | None:
        """Return why a name cannot be in the directory, None if it can."""
        names = self._names
        try:
            text = name.decode("utf-8", "surrogatepass" if names.is_utf16 else "surrogateescape")
        except UnicodeDecodeError:
            return "its name is not UTF-8"
        if len(name) > names.longest:
            if not names.is_utf16:
                return f"its name is longer than {names.longest} bytes"
            if len(text.encode("utf-16-le", "surrogatepass")) > 2 * names.longest:
                return f"its name is longer than {names.longest} UTF-16 units"
        is_trimmed = names.is_trimmed and name.endswith((b" ", b"."))
        if is_trimmed or name.translate(None, names.forbidden) != name:
            return "the filesystem does not allow its name"
        is_taken = names.ignores_case and fold(text) in self._taken
        return "its name differs from another only in case" if is_taken else None

    def take(self, name: bytes) -> None:
        """Remember a name that `reason_against` has nothing against."""
        if self._names.ignores_case:
            self._taken.add(fold(name.decode("utf-8", "surrogatepass")))
