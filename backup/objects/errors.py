# SPDX-License-Identifier: Apache-2.0
"""Errors of keys, packs and tables.

    ObjectsError
    ├── UnknownVersionError         made by another generation of the format; nothing was read
    ├── InvalidCredentialsError     an id or password that cannot be used at all (empty, not text)
    ├── InvalidRecoveryKeyError     a mistyped recovery key, told by its check characters
    ├── WrongPasswordError          id, password or recovery key do not open this key file
    ├── DamagedError                bytes are not what was written, by accident or on purpose
    ├── OtherKeyError               sealed with a key that this machine has not
    ├── BindingError                key file and object table do not belong together
    ├── MissingPackError            a pack that the table lists is not on the medium
    ├── InsufficientMemoryError     not enough for the key derivation
    └── UnstorableError             a value that the format cannot hold

`DamagedError` is also raised for data sealed under another master key: the two cannot be told
apart.
"""

from __future__ import annotations


class ObjectsError(Exception):
    """Base of every error of the object formats.  Its text is one sentence for the user."""


class UnknownVersionError(ObjectsError):
    """The format's major version is not the one that this release reads.

    Attributes:
        found: major version in the file.
        supported: major version that this release reads.
    """

    def __init__(self, what: str, found: int, supported: int) -> None:
        self.what = what
        self.found = found
        self.supported = supported
        if found > supported:
            origin = f"was made by a newer rebuildkit (format {found})"
        else:
            origin = f"has the unknown format {found}"
        super().__init__(f"{what} {origin}; this release reads format {supported}")


class InvalidCredentialsError(ObjectsError):
    """The id or password cannot be used: empty, or not Unicode text."""


class InvalidRecoveryKeyError(ObjectsError):
    """The recovery key is mistyped.

    Attributes:
        group: number of the first wrong group, from 1; None when the length is wrong.
    """

    def __init__(self, message: str, group: int | None = None) -> None:
        self.group = group
        super().__init__(message)


class WrongPasswordError(ObjectsError):
    """The id and password, or the recovery key, do not open this key file."""

    def __init__(self, message: str = "the id or the password is wrong") -> None:
        super().__init__(message)


class DamagedError(ObjectsError):
    """Bytes are not what was written.

    Attributes:
        what: what is damaged, in words.
        position: bytes from the start of the file, where known.
    """

    def __init__(self, what: str, reason: str = "is damaged", position: int | None = None) -> None:
        self.what = what
        self.reason = reason
        self.position = position
        place = "" if position is None else f" at byte {position:#x}"
        super().__init__(f"{what} {reason}{place}")


class OtherKeyError(ObjectsError):
    """The data set is sealed with a key that does not follow from the one at hand."""


class BindingError(ObjectsError):
    """The key file belongs to another backup than the object table beside it."""


class MissingPackError(ObjectsError):
    """A pack that the object table lists is not on the medium.

    Attributes:
        index: place in the data set's list of packs.
        digest: SHA-256 of the pack, 32 bytes.
    """

    def __init__(self, index: int, digest: bytes) -> None:
        self.index = index
        self.digest = digest
        super().__init__(f"pack {index} ({digest.hex()[:16]}) is missing from the medium")


class InsufficientMemoryError(ObjectsError):
    """There is not enough memory to derive a key from the password.

    Attributes:
        needed: bytes.
    """

    def __init__(self, needed: int) -> None:
        self.needed = needed
        super().__init__(f"checking the password needs {needed >> 20} MiB of memory")


class UnstorableError(ObjectsError):
    """A value does not fit the format."""
