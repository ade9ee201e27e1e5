# SPDX-License-Identifier: Apache-2.0
"""Answers given beforehand: by a file on the disc or on the kernel command line.

They settle questions of the dialogue; every check stays.  Id and password are never among
them: what may be on the disc must be worth nothing to who finds it.

    keymap   keyboard layout
    verify   1 to read everything back after the restore
    after    "reboot", "poweroff" or "halt" after a complete restore
    target   disk to erase, by serial number or name; for several recorded disks as many, with
             commas between, in their order; "only" for the only one there is
    grow     number of the partition that takes the room of a larger disk; 0: no partition grows

Whoever writes to a disc can write answers, too.  So the last two, which decide what is erased,
count only in the answer file, and only once its code proves that someone with the master key
put it on the disc of this data set.  Until then the questions are asked.

Source: docs/formats.md "The disc".
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backup.objects.keys import MasterKey

ENDS = ("reboot", "poweroff", "halt")
ONLY = "only"
NEEDS_PROOF = ("target", "grow")
_PREFIX = "rebuildkit."
_NOT_FOR_US = ("set",)  # arguments of ours that are not answers
_TRUE, _FALSE = ("1", "yes", "true"), ("", "0", "no", "false")


@dataclass(frozen=True, slots=True)
class AnswerFile:
    """The answer file of a disc, and the code beside it."""

    data: bytes
    code: bytes = b""

    def is_proven(self, master: MasterKey, data_set_id: bytes) -> bool:
        """Tell whether someone with the master key wrote it for the disc of this data set."""
        return hmac.compare_digest(master.answers_code(data_set_id, self.data), self.code)


@dataclass(slots=True)
class Answers:
    """What is settled beforehand; the defaults ask."""

    keymap: str = ""
    targets: tuple[str, ...] = ()
    grow: int | None = None
    verify: bool | None = None
    after: str = ""
    given: list[str] = field(default_factory=list)  # what is answered, in words
    problems: list[str] = field(default_factory=list)  # what was not understood, in sentences
    unproven: dict[str, object] = field(default_factory=dict)  # what counts once it is proven
    file: AnswerFile | None = None

    @classmethod
    def collect(cls, file: AnswerFile | None, kernel_arguments: Sequence[str]) -> Answers:
        """Merge the answer file and `rebuildkit.NAME=VALUE` arguments; the latter win.

        Never fails: an answer that cannot be used is asked for, and `problems` says why.
        """
        answers = cls(file=file)
        values = {} if file is None else answers._read_file(file.data)
        answers.unproven = {name: values.pop(name) for name in NEEDS_PROOF if name in values}
        for word in kernel_arguments:
            name, _, value = word.partition("=")
            name = name.removeprefix(_PREFIX) if name.startswith(_PREFIX) else ""
            if name in NEEDS_PROOF:
                answers._refuse(name, "it counts only in the answer file of the disc")
            elif name and name not in _NOT_FOR_US:
                values[name] = value
        answers._take_all(values)
        return answers

    @property
    def claimed(self) -> list[str]:
        """What is answered once it is proven, in words."""
        return [f"{name} {_text_of(value)}" for name, value in self.unproven.items()]

    def prove(self, master: MasterKey, data_set_id: bytes) -> None:
        """Take the answers that decide what is erased, if their file proves to be authentic.

        Otherwise `problems` gains a sentence for each.
        """
        values, self.unproven = self.unproven, {}
        if self.file is not None and self.file.is_proven(master, data_set_id):
            self._take_all(values)
            return
        for name in values:
            self._refuse(name, "the answer file was not made by the owner of this data set")

    def _read_file(self, data: bytes) -> dict[str, object]:
        import json  # most discs have no such file, and the first question should come early

        try:
            loaded = json.loads(data)
        except (ValueError, RecursionError):
            loaded = None
        if isinstance(loaded, dict):
            return loaded
        self.problems.append("The answer file on this disc is not used: it is not a JSON object.")
        return {}

    def _take_all(self, values: Mapping[str, object]) -> None:
        for name, value in values.items():
            try:
                self._take(name, value)
            except ValueError as error:
                self._refuse(name, str(error))
            else:
                self.given.append(f"{name} {_text_of(value)}")

    def _refuse(self, name: str, reason: str) -> None:
        self.problems.append(f"The answer for '{name}' is not used: {reason}.")

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


def _text_of(value: object) -> str:
    """Return an answer as one word."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value).strip()
