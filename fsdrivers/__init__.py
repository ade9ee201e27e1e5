# SPDX-License-Identifier: Apache-2.0
"""Filesystem and partition drivers; they import nothing else of this project.

probe(device) -> str              what is on it, by signature
open_volume(device) -> Volume     opens it with the driver that knows it
driver_of(kind) -> Driver         what the driver of a type can do, see `fsdrivers.registry`
find_driver(kind)                 the same, None where there is none
"""

from __future__ import annotations

from fsdrivers import registry
from fsdrivers.device import Device
from fsdrivers.errors import CorruptError, DeviceError, NotRecognisedError
from fsdrivers.probing import probe
from fsdrivers.registry import (
    EMPTY,
    UNKNOWN,
    Can,
    Driver,
    Names,
    Starts,
    driver_of,
    find_driver,
    types_that,
)
from fsdrivers.volume import Volume

__all__ = [
    "EMPTY",
    "UNKNOWN",
    "Can",
    "Driver",
    "Names",
    "Starts",
    "driver_of",
    "find_driver",
    "open_volume",
    "probe",
    "types_that",
]


def open_volume(device: Device) -> Volume:
    """Open the filesystem or swap area on `device` for reading.

    Raises:
        NotRecognisedError: nothing known is there.
        UnsupportedError: it is known, but not implemented; `feature` names it.
        CorruptError: it breaks its own format.
        DeviceError: the medium failed.
    """
    kind = probe(device)
    if kind not in (EMPTY, UNKNOWN):
        return driver_of(kind).open_volume(device)
    # Of a volume whose start is damaged there may be copies, which no probe looks for.
    failure: DeviceError | None = None
    for driver in registry.DRIVERS:
        if driver.has_copies:
            try:
                return driver.open_volume(device)
            except (NotRecognisedError, CorruptError):
                continue
            except DeviceError as error:
                failure = error
    if failure is not None:
        raise failure
    what = "is empty" if kind == EMPTY else "holds nothing that any driver knows"
    raise NotRecognisedError(f"{device.name} {what}")
