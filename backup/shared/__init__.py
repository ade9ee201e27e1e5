# SPDX-License-Identifier: Apache-2.0
"""What several layers need, made of the standard library alone."""
