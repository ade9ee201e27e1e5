# SPDX-License-Identifier: Apache-2.0
"""Linux swap areas, version 1 with 4 KiB pages: identity and size, no content."""
