# SPDX-License-Identifier: Apache-2.0
"""The thin server: an HTTP API over a store directory; `run` serves until it is told to stop."""

from backup.server.run import ServerStartError, parse_address, run

__all__ = ["ServerStartError", "parse_address", "run"]
