# SPDX-License-Identifier: Apache-2.0
"""Answers given beforehand: by a file on the disc or on the kernel command line.

They settle questions of the dialogue; every check stays.  Id and password are never among
them: what may be on the disc must be worth nothing to who finds it.

    keymap   keyboard layout
    target   disk to erase, by serial number or name; for several recorded disks as many, with
             commas between, in their order; "only" for the only one there is
    grow     number of the partition that takes the room of a larger disk; 0: no partition grows
    verify   1 to read everything back after the restore
    after    "reboot", "poweroff" or "halt" after a complete restore

Source: docs/formats.md "The disc".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

ENDS = ("reboot", "poweroff", "halt")
ONLY = "only"
_PREFIX = "rebuildkit."
_NOT_FOR_US = ("set",)  # arguments of ours that are not answers
_TRUE, _FALSE = ("1", "yes", "true"), ("", "0", "no", "false")


@dataclass(slots=True)
class Answers:
    """What is settled beforehand; the defaults ask."""

    keymap: str = ""
    targets: tuple[str, ...] = ()
    grow: int | None = None
    verify: bool | None = None
    after: str = ""
    problems: list[str] = field(default_factory=list)  # what was not understood, in sentences

    @classmethod
    def collect(cls, answer_file: bytes | None, kernel_arguments: Sequence[str]) -> Answers:
        """Merge the answer file and `rebuildkit.NAME=VALUE` arguments; the latter win.

        Never fails: an answer that cannot be used is asked for, and `problems` says why.
        """
        answers = cls()
        values: dict[str, object] = {}
        if answer_file is not None:
            values.update(answers._read_file(answer_file))
        for word in kernel_arguments:
            name, _, value = word.partition("=")
            if name.startswith(_PREFIX) and name.removeprefix(_PREFIX) not in _NOT_FOR_US:
                values[name.removeprefix(_PREFIX)] = value
        for name, content in values.items():
            try:
                answers._take(name, content)
            except ValueError as error:
                answers.problems.append(f"The answer for '{name}' is not used: {error}.")
        return answers

    def _read_file(self, data: bytes) -> dict[str, object]:
        import json  # most discs have no such file, and the first question should come early

        try:
            loaded = json.loads(data)
        except ValueError:
            loaded = None
        if isinstance(loaded, dict):
            return loaded
        self.problems.append("The answer file on this disc is not used: it is not a JSON object.")
        return {}

    def _take(self, name: str, value: object) -> None:
        """Set one answer.

        Raises:
            ValueError: why it cannot be used.
        """
        text = str(value).strip()
        if name == "keymap":
            self.keymap = text
        elif name == "target":
            words = value if isinstance(value, list) else text.split(",")
            self.targets = tuple(str(word).strip() for word in words if str(word).strip())
        elif name == "grow":
            if not text.isdecimal():
                raise ValueError(f"'{text}' is not a partition number")
            self.grow = int(text)
        elif name == "verify":
            if text.lower() not in (*_TRUE, *_FALSE):
                raise ValueError(f"it must be 1 or 0, not '{text}'")
            self.verify = text.lower() in _TRUE
        elif name == "after":
            if text not in ENDS:
                raise ValueError(f"it must be one of {', '.join(ENDS)}, not '{text}'")
            self.after = text
        else:
            raise ValueError("this disc does not ask that")
