# SPDX-License-Identifier: Apache-2.0
"""The repository contract over HTTPS, and what a computer remembers of a repository."""
