# SPDX-License-Identifier: Apache-2.0
"""Recognise ISO 9660.  Source: [ECMA-119] 8.1."""

from __future__ import annotations

from fsdrivers.device import Device


def probe(device: Device, head: bytes) -> str:
    """Return "iso9660", or nothing."""
    return "iso9660" if head[0x8001:0x8006] == b"CD001" else ""
