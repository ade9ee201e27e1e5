# SPDX-License-Identifier: Apache-2.0
"""The retention policies of an id and of its machines; inside transactions of the catalogue."""

from __future__ import annotations

import json

from sqlalchemy import Connection, delete, insert, select

from backup.retention import DEFAULT_POLICY, Policies, Policy
from backup.store.schema import data_sets, held_data_sets, id_policies, machine_policies


def policies_of(connection: Connection, user_id: int) -> Policies:
    """Return what a user has set."""
    query = select(id_policies.c.policy).where(id_policies.c.user_id == user_id)
    default: str | None = connection.scalar(query)
    rows = select(machine_policies.c.machine, machine_policies.c.policy)
    rows = rows.where(machine_policies.c.user_id == user_id)
    own = {name: _unpack(text) for name, text in connection.execute(rows)}
    held = select(data_sets.c.name).join(
        held_data_sets, held_data_sets.c.data_set_id == data_sets.c.id
    )
    names = connection.scalars(held.where(data_sets.c.user_id == user_id))
    return Policies(None if default is None else _unpack(default), own, tuple(sorted(names)))


def set_policy(
    connection: Connection, user_id: int, machine: str | None, policy: Policy | None
) -> None:
    """Set the policy of a machine, or of the id; None: as if none had ever been set."""
    table = id_policies if machine is None else machine_policies
    mine: dict[str, int | str] = {"user_id": user_id}
    if machine is not None:
        mine["machine"] = machine
    is_mine = (table.c[column] == value for column, value in mine.items())
    connection.execute(delete(table).where(*is_mine))
    if policy is not None:
        connection.execute(insert(table).values(**mine, policy=json.dumps(policy.fields())))


def adopt_keep(
    connection: Connection, user_id: int, machine: str, count: int, *, is_first: bool
) -> None:
    """Take what a commit says of how many data sets to keep, where nothing else was ever said.

    Clients of earlier releases say it in each commit.  It becomes the machine's policy if it
    takes nothing away: nobody shortens retention without the password.

    Args:
        connection: in the transaction of the commit.
        user_id: whose commit it is.
        machine: whose data set it is.
        count: of data sets; 0: the client leaves it to the policy.
        is_first: whether the machine has no other data set.
    """
    policies = policies_of(connection, user_id)
    is_open = policies.default is None and machine not in policies.machines
    if count and is_open and (is_first or count > DEFAULT_POLICY.last):
        set_policy(connection, user_id, machine, Policy(last=count))


def _unpack(text: str) -> Policy:
    return Policy.of(json.loads(text))
