# SPDX-License-Identifier: Apache-2.0
"""Linux swap areas."""
