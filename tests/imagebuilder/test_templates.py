# SPDX-License-Identifier: Apache-2.0
"""The disc's templates, filled in."""

from __future__ import annotations

import jinja2
import pytest

from imagebuilder.disc.files import DiscOptions, kernel_command_line
from templates import render

SET_ID = "00112233445566778899aabbccddeeff"

ISOLINUX = """SAY rebuildkit recovery disc: loading, please wait.
DEFAULT recovery
PROMPT 0
TIMEOUT 0
NOESCAPE 1
ALLOWOPTIONS 0
IMPLICIT 0
LABEL recovery
  KERNEL /boot/vmlinuz
  INITRD /boot/initrd.img
  APPEND a=b c
"""
GRUB = """set superusers="nobody"
export superusers
set pager=0
echo "rebuildkit recovery disc: loading, please wait."
if linux /boot/vmlinuz a=b c; then
  if initrd /boot/initrd.img; then
    boot
  fi
fi
echo "This disc cannot be started: its kernel is damaged, or the machine has too little memory."
sleep 60
halt
"""
SEARCH = "search --no-floppy --file --set=root /.disk/x\n"


def test_isolinux_configuration() -> None:
    """The BIOS loader starts one thing and lets nobody type."""
    assert render("isolinux.cfg.j2", kernel_arguments="a=b c") == ISOLINUX


def test_grub_configuration() -> None:
    """The UEFI loader starts one thing, has no menu, and halts when it cannot."""
    assert render("grub.cfg.j2", kernel_arguments="a=b c", search_file="") == GRUB


def test_grub_configuration_in_the_fat() -> None:
    """The copy in the FAT differs by one line: it looks for its disc."""
    found = render("grub.cfg.j2", kernel_arguments="a=b c", search_file="/.disk/x")

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
        f"console=ttyS0,115200 console=tty0 quiet rebuildkit.set={SET_ID} rebuildkit.keymap=de x=1"
    )
