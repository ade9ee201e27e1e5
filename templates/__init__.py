# SPDX-License-Identifier: Apache-2.0
"""Text templates of the disc."""
