# SPDX-License-Identifier: Apache-2.0
"""The thin server: an HTTP API over a store directory.

`run` serves until it is told to stop; `ServerProcess` runs it in a process of its own.
"""

from backup.server.process import ServerProcess
from backup.server.run import ServerStartError, parse_address, run

__all__ = ["ServerProcess", "ServerStartError", "parse_address", "run"]
