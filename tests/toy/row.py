# SPDX-License-Identifier: Apache-2.0
"""The row of the toy driver, and what puts it into the registry for a test."""

from __future__ import annotations

import pytest

from fsdrivers import registry
from fsdrivers.registry import Can, Driver, Names
from tests.toy.signature import probe

TOY = Driver(
    types=("toy",),
    package="tests.toy",
    probe=probe,
    can=Can.READ | Can.PLAN | Can.CREATE | Can.CHECK,
    names=Names(longest=100),
)


@pytest.fixture
def toy_driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """The driver, registered: the one edit outside its folder."""
    monkeypatch.setattr(registry, "DRIVERS", (*registry.DRIVERS, TOY))
    return TOY
