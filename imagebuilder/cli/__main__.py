# SPDX-License-Identifier: Apache-2.0
"""`python -m imagebuilder.cli` is the `rebuildkit` command."""

import sys

from imagebuilder.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
