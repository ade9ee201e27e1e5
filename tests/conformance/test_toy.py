# SPDX-License-Identifier: Apache-2.0
"""A driver that is new goes through the suite as its siblings do: by one class."""

from __future__ import annotations

import pytest

from fsdrivers.volume import Plain
from tests.conformance.volume import PlanningConformance
from tests.toy.row import toy_driver

__all__ = ["toy_driver"]


@pytest.mark.usefixtures("toy_driver")
class TestToy(PlanningConformance):
    """Files in one piece each, names of 100 bytes."""

    type = "toy"
    frame_size = 1 << 20
    longest_name = b"n" * 100

    def description(self) -> dict[str, Plain]:
        return {"uuid": bytes(range(16)), "label": b"t", "version": 1}

    def size_of(self, description: dict[str, Plain]) -> int:
        return 1 << 20
