# SPDX-License-Identifier: Apache-2.0
"""Recognise NTFS.  Source: [ntfs-3g] layout.h."""

from __future__ import annotations

from fsdrivers.device import Device


def probe(device: Device, head: bytes) -> str:
    """Return "ntfs", or nothing."""
    return "ntfs" if head[3:11] == b"NTFS    " else ""
