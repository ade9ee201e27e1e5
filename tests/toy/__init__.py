# SPDX-License-Identifier: Apache-2.0
"""A filesystem of our own invention, as small as one can be: read, plan and check.

It stands for the next driver: nothing but this folder and one row knows of it.  One sector of
superblock, a table of records, then content, each file in one piece.  Objects are numbered by
their place in the table, from 1, the root; parents come before what is in them.
"""
