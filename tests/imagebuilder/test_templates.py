# SPDX-License-Identifier: Apache-2.0
"""The disc's templates, filled in."""

from __future__ import annotations

import jinja2
import pytest

from imagebuilder.disc.files import DiscOptions, kernel_command_line
from templates import render

SET_ID = "00112233445566778899aabbccddeeff"

ISOLINUX = """SAY rebuildkit recovery disc 00112233: loading, please wait.
SAY If nothing more comes in 5 minutes, this disc or its drive is damaged:
SAY clean the disc, try another drive, or use another copy of it.
SAY The machine needs 256 MiB of memory at least.
DEFAULT recovery
PROMPT 0
TIMEOUT 0
NOESCAPE 1
ALLOWOPTIONS 0
IMPLICIT 0
ONERROR missing
LABEL missing
  CONFIG /isolinux/missing.cfg
LABEL recovery
  KERNEL /boot/vmlinuz
  INITRD /boot/initrd.img
  APPEND a=b c
"""
GRUB = """set superusers="nobody"
export superusers
set pager=0
echo "rebuildkit recovery disc 00112233: loading, please wait."
echo "If nothing more comes in 5 minutes, this disc or its drive is damaged:"
echo "clean the disc, try another drive, or use another copy of it."
echo "The machine needs 256 MiB of memory at least."
if linux /boot/vmlinuz a=b c; then
  if initrd /boot/initrd.img; then
    boot
  fi
fi
echo "The recovery disc 00112233 cannot start: its kernel is missing or damaged, or the machine"
echo "has too little memory. Use another copy of this disc, or a machine with more memory."
sleep 60
halt
"""
SEARCH = "search --no-floppy --file --set=root /.disk/x\n"


def test_isolinux_configuration() -> None:
    """The BIOS loader starts one thing and lets nobody type."""
    assert render("isolinux.cfg.j2", disc=SET_ID[:8], kernel_arguments="a=b c") == ISOLINUX


def test_grub_configuration() -> None:
    """The UEFI loader starts one thing, has no menu, and halts when it cannot."""
    assert render("grub.cfg.j2", disc=SET_ID[:8], kernel_arguments="a=b c", search_file="") == GRUB


def test_grub_configuration_in_the_fat() -> None:
    """The copy in the FAT differs by one line: it looks for its disc."""
    found = render("grub.cfg.j2", disc=SET_ID[:8], kernel_arguments="a=b c", search_file="/.disk/x")

    assert found == GRUB.replace("set pager=0\n", "set pager=0\n" + SEARCH)


def test_missing_variable_is_an_error() -> None:
    """A template never has an empty place where something was forgotten."""
    with pytest.raises(jinja2.UndefinedError):
        render("isolinux.cfg.j2")


def test_readme_fits_a_terminal() -> None:
    """The README names the set and the disc and has no line over 95 characters."""
    text = render(
        "disc_readme.txt.j2",
        label="",
        created="2026-01-02 03:04",
        set_id=SET_ID,
        disc_number=1,
        disc_count=1,
        version="1.2",
    )

    assert text.startswith("REBUILDKIT RECOVERY DISC\n===")
    assert f"Data set: {SET_ID}\n" in text
    assert "Label" not in text
    assert max(map(len, text.splitlines())) <= 95


def test_kernel_command_line() -> None:
    """Both consoles, the data set, and what was asked for, in this order."""
    assert kernel_command_line(SET_ID, DiscOptions(keymap="de", kernel_arguments=("x=1",))) == (
        f"console=ttyS0,115200 console=tty0 quiet REBUILDKIT_SET={SET_ID} "
        f"rebuildkit.set={SET_ID} rebuildkit.keymap=de x=1"
    )
