# SPDX-License-Identifier: Apache-2.0
"""One file for each revision.  A revision that was released is never changed."""
