# SPDX-License-Identifier: Apache-2.0
"""Whether everything that a restore needs is there and whole, wherever it lies."""
