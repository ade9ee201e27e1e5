# SPDX-License-Identifier: Apache-2.0
"""The version of this release, for the command and for the discs it makes."""

from __future__ import annotations


def version() -> str:
    """Return what the installed package says, for example "0.1.0"."""
    import importlib.metadata  # 20 ms that no other command needs

    try:
        return importlib.metadata.version("rebuildkit")
    except importlib.metadata.PackageNotFoundError:
        return "from its sources"
