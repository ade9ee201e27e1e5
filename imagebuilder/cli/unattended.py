# SPDX-License-Identifier: Apache-2.0
"""The first run of a set-up in which nobody types anything."""

from __future__ import annotations

import os

from imagebuilder.cli.common import check_new_password, read_password
from imagebuilder.cli.session import MachinePlace, open_host

PASSWORD_SOURCES = ("REBUILDKIT_PASSWORD_FILE", "REBUILDKIT_PASSWORD_COMMAND")


def make_missing_store(options: MachinePlace) -> str:
    """Make a store that is not there yet, with its one id, where all is set up for a script.

    A password that is typed may be mistyped, and an id in a store that is there may be misspelt:
    those are refused.  What the environment says was said on purpose, and once for all runs.

    Returns:
        What was made, as a sentence for the end of the run; "" if nothing was.

    Raises:
        UsageError: the password cannot be read, or cannot be one.
    """
    is_set_up = options.password_file is None and any(map(os.environ.get, PASSWORD_SOURCES))
    store = options.store
    if not is_set_up or store is None or not options.user:
        return ""
    if store.exists() and not (store.is_dir() and not any(store.iterdir())):
        return ""
    from backup.objects.keys import create_key_file

    password = read_password(options)
    check_new_password(password, options.user)
    made = create_key_file(options.user, password)
    host = open_host(options, create=True)
    try:
        host.register(options.user, made.data, made.login_secret)
    finally:
        host.close()
    return (
        f"{store} was made, and the id {options.user} in it, with the password of the environment; "
        "`rebuildkit key export` makes a recovery key"
    )
