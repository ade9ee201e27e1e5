# SPDX-License-Identifier: Apache-2.0
"""`python -m backup.server`: the server without the rest of the command line."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from backup.repository import RepositoryError
from backup.server.run import parse_address, run
from backup.server.sessions import FIRST_DELAY_S


def main() -> int:
    """Run the server; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m backup.server", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--listen", default="127.0.0.1", metavar="HOST:PORT")
    parser.add_argument("--no-tls", action="store_true", help="for local clients only")
    parser.add_argument("--log-requests", action="store_true")
    parser.add_argument("--first-delay", type=float, default=FIRST_DELAY_S, metavar="SECONDS")
    options = parser.parse_args()
    try:
        host, port = parse_address(options.listen)
        run(
            options.data,
            host,
            port,
            tls=not options.no_tls,
            print=_print_line,
            report=_report_line,
            logs_requests=options.log_requests,
            first_delay_s=options.first_delay,
        )
    except RepositoryError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _print_line(line: str) -> None:
    print(line, flush=True)


def _report_line(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
