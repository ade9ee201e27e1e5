# SPDX-License-Identifier: Apache-2.0
"""Standard input as a person has it, for commands that ask."""

from __future__ import annotations

import io


class Terminal(io.StringIO):
    """Standard input with somebody at it, who has typed this."""

    def isatty(self) -> bool:
        return True
