# SPDX-License-Identifier: Apache-2.0
"""Errors of the filesystem and partition drivers.

FilesystemError
├── NotRecognisedError          the probe said no
├── CorruptError                the medium breaks its own format
├── UnsupportedError            valid, but not implemented; never reported as corrupt
│   └── PartlyUnsupportedError  only some objects are, which a walk leaves out
├── NoSpaceError                the volume or device is too small; carries the numbers
├── InvalidNameError            the name cannot be stored in this filesystem
├── NotFoundError               also FileNotFoundError
├── AlreadyExistsError          also FileExistsError
├── NotADirectoryError_         also NotADirectoryError
├── IsADirectoryError_          also IsADirectoryError
└── DirectoryNotEmptyError      a directory to be removed has something in it
DeviceError(OSError)            the medium failed: position, length, errno

What several drivers refuse has one sentence: the functions at the end make those errors.
"""

from __future__ import annotations

import os

from fsdrivers.printable import printable


class FilesystemError(Exception):
    """Base of every error that speaks of a filesystem or a partition table."""


class NotRecognisedError(FilesystemError):
    """No driver knows what is on the device."""


class CorruptError(FilesystemError):
    """The medium breaks its own format.

    Attributes:
        position: bytes from the start of the volume (or of the record, where only that is known).
    """

    def __init__(
        self,
        what: str,
        position: int | None = None,
        expected: object = None,
        actual: object = None,
    ) -> None:
        self.what = what
        self.position = position
        self.expected = expected
        self.actual = actual
        message = what
        if position is not None:
            message += f" at byte {position:#x}"
        if expected is not None or actual is not None:
            message += f": expected {expected}, found {actual}"
        super().__init__(message)


class UnsupportedError(FilesystemError):
    """The medium is valid but uses `feature`, which this driver does not implement."""

    def __init__(self, feature: str) -> None:
        self.feature = feature
        super().__init__(f"not supported: {feature}")


class PartlyUnsupportedError(UnsupportedError):
    """Some objects of a volume cannot be made again; a walk tells which and goes past them."""


class NoSpaceError(FilesystemError):
    """What is to be stored needs more than there is.

    Attributes:
        needed: bytes needed at least.
        available: bytes there are.
    """

    def __init__(self, what: str, needed: int, available: int) -> None:
        self.needed = needed
        self.available = available
        super().__init__(f"{what}: {needed} bytes needed, {available} available")


class InvalidNameError(FilesystemError):
    """The filesystem cannot hold this name."""


class NotFoundError(FilesystemError, FileNotFoundError):
    """No such object."""


class AlreadyExistsError(FilesystemError, FileExistsError):
    """The name is taken."""


class NotADirectoryError_(FilesystemError, NotADirectoryError):
    """A directory was expected."""


class IsADirectoryError_(FilesystemError, IsADirectoryError):
    """Something other than a directory was expected."""


class DirectoryNotEmptyError(FilesystemError):
    """A directory is to be removed or replaced, and something is in it."""


class DeviceError(OSError):
    """The medium failed to read or write.

    Attributes:
        position: bytes from the start of the device.
        length: bytes of the failed request; 0 where it was about the whole device.
        reason: why, in a few words: those of the system unless others were given.
    """

    def __init__(
        self, action: str, position: int, length: int, error: int, name: str, reason: str = ""
    ) -> None:
        where = f" {length} bytes at byte {position:#x}" if length else ""
        self.reason = reason or os.strerror(error)
        super().__init__(error, f"cannot {action}{where}: {self.reason}", name)
        self.position = position
        self.length = length

    def __str__(self) -> str:
        """Return a sentence, without the number that OSError puts before it."""
        return f"{self.filename}: {self.strerror}"


def not_found(what: bytes | int) -> NotFoundError:
    """Return the error for an object that is not there, given by its name or number."""
    return NotFoundError(f"{_subject(what)}: no such file or directory")


def already_exists(name: bytes) -> AlreadyExistsError:
    """Return the error for a name that is taken."""
    return AlreadyExistsError(f"{_subject(name)}: already exists")


def not_a_directory(what: bytes | int) -> NotADirectoryError_:
    """Return the error for an object that should have been a directory."""
    return NotADirectoryError_(f"{_subject(what)}: not a directory")


def is_a_directory(what: bytes | int) -> IsADirectoryError_:
    """Return the error for a directory that should have been something else."""
    return IsADirectoryError_(f"{_subject(what)}: is a directory")


def not_a_file(what: bytes | int) -> IsADirectoryError_:
    """Return the error for an object without content."""
    return IsADirectoryError_(f"{_subject(what)}: not a file, so it has no content")


def not_empty(name: bytes) -> DirectoryNotEmptyError:
    """Return the error for a directory that has something in it."""
    return DirectoryNotEmptyError(f"{_subject(name)}: directory not empty")


def one_name_only(what: bytes | int) -> IsADirectoryError_:
    """Return the error for a directory that should get a second name."""
    return IsADirectoryError_(f"{_subject(what)}: a directory cannot have a second name")


def into_itself(name: bytes) -> InvalidNameError:
    """Return the error for a directory that should move into itself or below."""
    return InvalidNameError(f"{_subject(name)}: a directory cannot be moved into itself")


def name_too_long(name: bytes, most: int, unit: str) -> InvalidNameError:
    """Return the error for a name of more than `most` bytes, or what else `unit` counts."""
    shown = printable(name[:40]) + "..." * (len(name) > 40)
    return InvalidNameError(f"{shown}: a name has at most {most} {unit}")


def no_attribute(name: bytes) -> NotFoundError:
    """Return the error for an extended attribute that an object does not have."""
    return NotFoundError(f"{_subject(name)}: no such extended attribute")


def bad_link_target(target: bytes) -> InvalidNameError:
    """Return the error for what a symbolic link cannot lead to."""
    return InvalidNameError(f"a link cannot lead to '{printable(target[:80])}'")


def _subject(what: bytes | int) -> str:
    return f"object {what}" if isinstance(what, int) else printable(what)
