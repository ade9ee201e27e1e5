# SPDX-License-Identifier: Apache-2.0
"""What is closed when the `with` block that it is used in ends."""

from __future__ import annotations

from typing import Self


class Closing:
    """Its own context manager."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back what is held: nothing, unless a subclass says what."""
