# SPDX-License-Identifier: Apache-2.0
"""The repository contract on a directory: pack files, tables and a catalogue."""
