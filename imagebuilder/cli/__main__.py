# SPDX-License-Identifier: Apache-2.0
"""Where the `rebuildkit` command begins, also as `python -m imagebuilder.cli`.

Imports next to nothing, so that from the start an interruption ends it as it does later.
"""

import os
import signal
import sys

INTERRUPTED = 130  # `rebuild.exit_codes.ExitCode.INTERRUPTED`, which is not imported yet
_SENTENCE = b"rebuildkit: interrupted\n"


def main() -> int:
    """Run the command; return its exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored
        signal.signal(signal.SIGINT, _end_at_once)
    from imagebuilder.cli.main import main as run

    try:
        if signal.getsignal(signal.SIGINT) is _end_at_once:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return run()
    except KeyboardInterrupt:
        _end_at_once()
    return INTERRUPTED


def _end_at_once(*_: object) -> None:
    """End while modules are imported, when there is nothing to clean up."""
    os.write(2, _SENTENCE)
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
