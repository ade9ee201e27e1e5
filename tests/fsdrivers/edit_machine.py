# SPDX-License-Identifier: Apache-2.0
"""Random edits beside a model: what is the same whichever filesystem is edited.

The model holds objects by number and directories as dicts of numbers by name.  A test of a
driver extends `EditMachine` by its own operations, sets `editor`, and says what is clean.
"""

from __future__ import annotations

from typing import Protocol

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine

from fsdrivers.editing import Editor
from fsdrivers.errors import (
    AlreadyExistsError,
    DirectoryNotEmptyError,
    FilesystemError,
    InvalidNameError,
    IsADirectoryError_,
    NoSpaceError,
    NotADirectoryError_,
    NotFoundError,
)
from fsdrivers.volume import Kind

INDEXES = st.integers(0, 1000)


class Modelled(Protocol):
    """What the model holds of an object."""

    kind: Kind
    content: bytes

    def shown(self) -> tuple[object, ...]:
        """Return it in the form in which a volume is compared."""
        ...


class EditMachine(RuleBasedStateMachine):
    """See the module."""

    editor: Editor

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[int, dict[bytes, int]] = {}
        self.items: dict[int, Modelled] = {}

    def a_directory(self, index: int) -> int:
        """Return the number of some directory."""
        return sorted(self.names)[index % len(self.names)]

    def an_object(self, index: int, kind: Kind | None = None) -> int | None:
        """Return the number of some object, None if there is none of the kind."""
        numbers = [n for n, item in sorted(self.items.items()) if kind in (None, item.kind)]
        return numbers[index % len(numbers)] if numbers else None

    def is_below(self, number: int, directory: int) -> bool:
        """Tell whether `directory` is in the directory `number`, or is it."""
        if number == directory:
            return True
        return any(
            self.is_below(number, parent)
            for parent, names in self.names.items()
            if directory in names.values()
        )

    def forget(self, number: int) -> None:
        """Take an object that has no name any more out of the model."""
        if not any(number in names.values() for names in self.names.values()):
            del self.items[number]
            self.names.pop(number, None)

    def expected(self) -> dict[bytes, object]:
        """Return what the volume must hold, by path."""
        made: dict[bytes, object] = {}
        pending = [(b"", self.editor.root)]
        while pending:
            path, parent = pending.pop()
            for name, number in self.names[parent].items():
                made[path + name] = self.items[number].shown()
                if number in self.names:
                    pending.append((path + name + b"/", number))
        return made

    def do_remove_many(self, parent: int, step: int) -> None:
        """Remove each `step`th of the names in a directory, but those of directories."""
        for name, number in list(self.names[parent].items())[::step]:
            if number not in self.names:
                self.editor.unlink(parent, name)
                del self.names[parent][name]
                self.forget(number)

    def do_write(self, number: int, offset: int, data: bytes) -> None:
        """Write content; a full volume takes none of it."""
        try:
            self.editor.write(number, offset, data)
        except NoSpaceError:
            return
        old, end = self.items[number].content, offset + len(data)
        self.items[number].content = old.ljust(offset, b"\0")[:offset] + data + old[end:]

    def do_truncate(self, number: int, size: int) -> None:
        """Cut content or make it longer."""
        try:
            self.editor.truncate(number, size)
        except NoSpaceError:
            return
        self.items[number].content = self.items[number].content[:size].ljust(size, b"\0")

    def do_link(self, number: int, parent: int, name: bytes) -> None:
        """Give an object another name; a directory cannot have one."""
        if number in self.names:
            with pytest.raises(IsADirectoryError_):
                self.editor.link(number, parent, name)
        elif name not in self.names[parent]:
            self.editor.link(number, parent, name)
            self.names[parent][name] = number

    def do_unlink(self, parent: int, name: bytes, called: bytes | None = None) -> None:
        """Take a name away, which may be called otherwise."""
        number = self.names[parent].get(name)
        if number is None:
            with pytest.raises(NotFoundError):
                self.editor.unlink(parent, name)
        elif number in self.names:
            with pytest.raises(IsADirectoryError_):
                self.editor.unlink(parent, name)
        else:
            self.editor.unlink(parent, called or name)
            del self.names[parent][name]
            self.forget(number)

    def do_rmdir(self, parent: int, name: bytes) -> None:
        """Remove a directory if it is empty."""
        number = self.names[parent].get(name)
        if number is None or number not in self.names:
            with pytest.raises((NotFoundError, NotADirectoryError_)):
                self.editor.rmdir(parent, name)
        elif self.names[number]:
            with pytest.raises(DirectoryNotEmptyError):
                self.editor.rmdir(parent, name)
        else:
            self.editor.rmdir(parent, name)
            del self.names[parent][name]
            self.forget(number)

    def do_rename(self, parent: int, name: bytes, target: int, new: bytes, replace: bool) -> None:
        """Move a name, or find out why that is refused."""
        number, taken = self.names[parent].get(name), self.names[target].get(new)
        refusal = self._refusal(parent, name, target, new, replace)
        if refusal is not None:
            with pytest.raises(refusal):
                self.editor.rename(parent, name, target, new, replace=replace)
            return
        moved = self.editor.rename(parent, name, target, new, replace=replace)
        assert moved.number == number
        if taken == number:
            return
        del self.names[parent][name]
        self.names[target][new] = moved.number
        if taken is not None:
            self.forget(taken)

    def _refusal(
        self, parent: int, name: bytes, target: int, new: bytes, replace: bool
    ) -> type[FilesystemError] | None:
        """Return the error that renaming must raise, None for none."""
        number, taken = self.names[parent].get(name), self.names[target].get(new)
        if number is None:
            return NotFoundError
        if taken == number:
            return None if replace or (parent, name) == (target, new) else AlreadyExistsError
        if taken is not None and not replace:
            return AlreadyExistsError
        if number in self.names and self.is_below(number, target):
            return InvalidNameError
        if taken is not None and (taken in self.names) != (number in self.names):
            return IsADirectoryError_ if taken in self.names else NotADirectoryError_
        if taken is not None and self.names.get(taken):
            return DirectoryNotEmptyError
        return None


def run_machine(machine: type[EditMachine], examples: int, steps: int) -> None:
    """Run a machine with so many examples of so many steps."""
    machine.TestCase.settings = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        phases=(Phase.generate,),  # steps are few; shrinking them costs minutes
        suppress_health_check=list(HealthCheck),
    )
    machine.TestCase().runTest()
