# SPDX-License-Identifier: Apache-2.0
"""`python -m backup.server`: the server without the rest of the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from backup.repository import InvalidRequestError, RepositoryError
from backup.server.front import parse_network
from backup.server.limits import Limits
from backup.server.run import parse_address, run


def main() -> int:
    """Run the server; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m backup.server", description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DIR", help="where everything is kept")
    add("--listen", default="127.0.0.1", metavar="HOST[:PORT]", help="default: 127.0.0.1:8443")
    add("--no-tls", action="store_true", help="for local clients only")
    add("--log-requests", action="store_true", help="print one line for every request")
    add("--trust-proxy", action="append", default=[], metavar="ADDRESS", help="believe its headers")
    add("--open-registration", action="store_true", help="let anyone register")
    add(
        "--limit",
        action="append",
        default=[],
        metavar="NAME=NUMBER",
        help="see backup/server/limits.py",
    )
    options = parser.parse_args()
    try:
        host, port = parse_address(options.listen)
        run(
            options.data,
            host,
            port,
            tls=not options.no_tls,
            show=_print_line,
            report=_report_line,
            logs_requests=options.log_requests,
            limits=_limits_of(options.limit),
            is_open=options.open_registration,
            proxies=[parse_network(text) for text in options.trust_proxy],
        )
    except RepositoryError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _limits_of(settings: Sequence[str]) -> Limits:
    """Return the limits with some of them changed, each NAME=NUMBER."""
    known = asdict(Limits())
    changed = {}
    for setting in settings:
        name, _, number = setting.partition("=")
        if name not in known:
            raise InvalidRequestError(f"there is no limit {name!r}; there are {', '.join(known)}")
        try:
            changed[name] = type(known[name])(number)
        except ValueError as error:
            raise InvalidRequestError(f"{setting!r}: the limit must be a number") from error
    return Limits(**changed)


def _print_line(line: str) -> None:
    print(line, flush=True)


def _report_line(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
