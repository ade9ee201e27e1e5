# SPDX-License-Identifier: Apache-2.0
"""A running Linux machine as a source: volumes read beside the kernel that writes them."""
