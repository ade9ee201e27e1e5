# SPDX-License-Identifier: Apache-2.0
"""Is a volume the one that was recorded, and what starts from it: boot sector and boot code?

Its driver says what has to be as it was, from the description that was recorded and that of the
volume found.  What fix-ups change is expected as they leave it.

Not done: a copy of the boot sector outside what a description holds, as at the end of NTFS.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from fsdrivers.volume import Kept, KeptKind
from rebuild.fixups.protocol import RestoredFile, VolumeChanges
from rebuild.text import cut

_SHOWN_WIDTH: Final = 80  # columns of a value


@dataclass(frozen=True, slots=True)
class Expected:
    """What fix-ups did to what starts from a volume."""

    changes: VolumeChanges
    files: Mapping[int, RestoredFile]  # by number, those that they may have changed

    def code(self, recorded: bytes) -> bytes:
        """Return boot code as they left it."""
        return self.changes.boot_code_after(recorded, self.files)


def kept_differences(kept: Iterable[Kept], expected: Expected) -> Iterator[str]:
    """Yield in what a volume differs that should be as it was, each the end of a sentence.

    Args:
        kept: what its driver says must be as it was.
        expected: what fix-ups did.
    """
    first: bytes | None = None  # of the boot codes: it and its copies are what fix-ups change
    for name, want, have, kind in kept:
        if kind is KeptKind.BOOT_CODE:
            code = _bytes_of(want)
            is_changed = first is None or (code == first and any(code))
            first = code if first is None else first
            yield from _code_differences(
                expected.code(code) if is_changed else code, _bytes_of(have), name
            )
            continue
        is_field = kind is KeptKind.BOOT_FIELD
        if want != have and not (is_field and expected.changes.accepts(name, have)):
            where = " of the boot sector" if is_field else ""
            texts = [cut(repr(value), _SHOWN_WIDTH) for value in (have, want)]
            yield f"{name}{where} is {texts[0]}, not {texts[1]}"


def recorded_code(kept: Iterable[Kept]) -> list[bytes]:
    """Return the boot code that was recorded."""
    return [_bytes_of(item.recorded) for item in kept if item.kind is KeptKind.BOOT_CODE]


def _code_differences(want: bytes, have: bytes, name: str) -> Iterator[str]:
    """Yield where code differs first, if it does; zeros at the end do not count."""
    size = max(len(want), len(have))
    want, have = want.ljust(size, b"\0"), have.ljust(size, b"\0")
    if want != have:
        position = next(at for at in range(size) if want[at] != have[at])
        yield f"boot code differs at byte {position} of the {name}"


def _bytes_of(value: object) -> bytes:
    """Return the bytes of a description; none where there are none."""
    return value if isinstance(value, bytes) else b""
