# SPDX-License-Identifier: Apache-2.0
"""Discs of next to no data in virtual machines, and the bare system they are measured against."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imagebuilder.build import build_disc
from imagebuilder.disc.files import DiscOptions
from imagebuilder.environment import python_runtime
from imagebuilder.environment.build import (
    BootEnvironment,
    cache_directory,
    find_boot_packages,
    prepare_boot_environment,
)
from imagebuilder.environment.initramfs import Archive, compress
from imagebuilder.environment.packages import unpacked_packages
from tests.imagebuilder.small_repository import SmallRepository
from vm import marks
from vm.machine import Machine
from vm.qemu import MachineConfig, variables_template

FIRST_QUESTION = marks.pattern("ask-keymap")
BARE_PROMPT = "bare id: "
START_TIMEOUT_S = 240.0
_TTY_S0 = (4, 64)  # Source: linux Documentation/admin-guide/devices.txt


def real_environment() -> BootEnvironment:
    """Return the boot environment, compressed fast."""
    return prepare_boot_environment(compression="zstd-fast")


def make_disc(
    output: Path, environment: BootEnvironment, options: DiscOptions | None = None
) -> SmallRepository:
    """Build a disc of next to no data; return what it was made of."""
    repository = SmallRepository()
    build_disc(
        repository,
        repository.master,
        repository.data_set,
        output,
        environment=environment,
        options=options or DiscOptions(),
    )
    return repository


def bare_environment(environment: BootEnvironment, directory: Path) -> BootEnvironment:
    """Return an environment of the same kernel and Python that does nothing but ask."""
    archive = Archive()
    archive.add_base()
    archive.add_character_device("dev/ttyS0", _TTY_S0)
    with unpacked_packages(find_boot_packages(), cache_directory() / "packages") as trees:
        python_runtime.add_interpreter(archive, trees)
    init = f"""#!/{python_runtime.INTERPRETER} -ISs
import os, time
os.write(os.open("/dev/ttyS0", os.O_RDWR), b"{BARE_PROMPT}")
time.sleep(3600)
"""
    archive.add_file("init", init.encode(), is_executable=True)
    shutil.copytree(environment.directory, directory)
    (directory / "initrd.img").unlink()
    (directory / "initrd.img").write_bytes(compress(archive.pack(), "zstd-fast"))
    return BootEnvironment(directory, environment.kernel_release, environment.versions)


@contextmanager
def machine_of(
    disc: Path, firmware: str = "bios", medium: str = "cd", memory_mib: int = 512, *extra: str
) -> Iterator[Machine]:
    """Start a machine from a disc."""
    with tempfile.TemporaryDirectory(prefix="rebuildkit-") as directory:
        variables = None
        if firmware != "bios":
            variables = Path(directory) / "variables.fd"
            shutil.copyfile(variables_template(firmware), variables)
        config = MachineConfig(
            firmware=firmware,
            memory_mib=memory_mib,
            disc=disc,
            disc_medium=medium,
            variables=variables,
            extra=extra,
        )
        with Machine(config) as machine:
            yield machine
