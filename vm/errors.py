# SPDX-License-Identifier: Apache-2.0
"""Errors of the virtual machines."""

from __future__ import annotations


class MachineError(Exception):
    """A machine could not be started, or did not do what was waited for; says what it showed."""
