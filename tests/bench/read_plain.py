# SPDX-License-Identifier: Apache-2.0
"""Hash every file below a directory, one after the other: the bar for reading a volume.

python read_plain.py DIRECTORY
"""

from __future__ import annotations

import hashlib
import os
import sys


def main() -> None:
    """Print a hash and a path for each file."""
    for base, _, names in os.walk(sys.argv[1]):
        for name in names:
            path = os.path.join(base, name)
            if os.path.isfile(path) and not os.path.islink(path):
                with open(path, "rb") as file:
                    print(hashlib.file_digest(file, "sha256").hexdigest(), path)


if __name__ == "__main__":
    main()
