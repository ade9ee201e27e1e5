# SPDX-License-Identifier: Apache-2.0
"""Opening what is restored from: a disc, a server, a store, or a mounted disc."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imagebuilder.cli.commands import option
from imagebuilder.cli.common import (
    Credentials,
    StatusLine,
    json_flag,
    machine_option,
    read_password,
)
from imagebuilder.cli.session import (
    OTHER_DATA_SET,
    Place,
    import_during,
    open_session,
    retry_option,
)
from imagebuilder.cli.settings import SOURCE

if TYPE_CHECKING:
    from backup.objects.medium import Medium
    from rebuild.restore import Unlocked

# What every restore uses; the drivers of ext are those most machines need.
RESTORE_MODULES = ("rebuild.restore", "imagebuilder.repository_medium", "fsdrivers.ext.mkfs.plan")
SOURCES = "a disc's image, a server, a store, or a mounted disc"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source(Credentials):
    """Options that say what a restore reads from."""

    source: str = option("DISC|URL|DIR", SOURCES, setting=SOURCE)
    fingerprint: str | None = option(
        "--fingerprint FP",
        "fingerprint of the server's certificate, as the server prints it",
        setting="fingerprint",
    )
    retry_for: float | None = retry_option()
    machine: str | None = machine_option(
        "machine, if the source is a server or a store", setting="machine"
    )
    data_set: str | None = option("--data-set ID", OTHER_DATA_SET)
    json: bool = json_flag()


def open_unlocked(options: Source, stack: ExitStack, status: StatusLine) -> tuple[Medium, Unlocked]:
    """Open what the restore reads from, with id and password.

    Raises:
        WrongPasswordError, NotAuthorisedError, MediumError, NoSuchDataSetError
    """
    stack.callback(status.clear)
    source = options.source
    is_server = source.startswith(("https://", "http://"))
    if not is_server and not os.path.isdir(source):
        from rebuild.disc_image import IsoMedium

        medium: Medium = stack.enter_context(IsoMedium.open(source))
    elif not is_server and os.path.exists(os.path.join(source, "hash.dat")):
        from rebuild.medium import DirectoryMedium

        medium = DirectoryMedium(source)
    else:
        from imagebuilder.repository_medium import RepositoryMedium

        place = Place(
            server=source if is_server else None,
            store=None if is_server else Path(source),
            fingerprint=options.fingerprint,
            user=options.user,
            password_file=options.password_file,
            retry_for=options.retry_for,
        )
        session = stack.enter_context(open_session(place, needed=RESTORE_MODULES))
        from rebuild.restore import unlock

        info = session.choose(options.machine, options.data_set)
        medium = RepositoryMedium(session.repository, session.master, info.id, source)
        return medium, unlock(medium, options.user, "", master=session.master, progress=status.show)
    password = read_password(options)
    from rebuild.restore import unlock

    return medium, import_during(
        lambda: unlock(medium, options.user, password, progress=status.show), RESTORE_MODULES
    )
