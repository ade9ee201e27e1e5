# SPDX-License-Identifier: Apache-2.0
"""Boot environments for tests: a hollow one that is made at once, and the real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagebuilder.environment.build import BootEnvironment


@pytest.fixture
def hollow_environment(tmp_path: Path) -> BootEnvironment:
    """Files in place of kernel and boot loaders: enough to master a disc that nothing starts."""
    directory = tmp_path / "environment"
    directory.mkdir()
    for name, size in {
        "vmlinuz": 30_000,
        "initrd.img": 70_001,
        "shimx64.efi": 5000,
        "gcdx64.efi": 9000,
        "isolinux.bin": 38_912,
        "ldlinux.c32": 4001,
    }.items():
        (directory / name).write_bytes((name.encode() * size)[:size])
    # syslinux's code starts so; readers tell a hybrid image by it, and pycdlib then expects
    # more of its system area than a disc of ours has.
    code = b"\x33\xed" + b"\x90" * 30
    (directory / "isohdpfx.bin").write_bytes(code + bytes(range(200)) * 2)
    return BootEnvironment(directory, "6.1.0-0-amd64", {})
