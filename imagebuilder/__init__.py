# SPDX-License-Identifier: Apache-2.0
"""The disc builder and the command line."""
