# SPDX-License-Identifier: Apache-2.0
"""Opening a repository with a recovery key in place of the password."""

from __future__ import annotations

from backup.client.repository import HttpServer
from backup.objects.keys import MasterKey, recovery_login_secret, unlock_with_recovery_key
from backup.repository import NotAuthorisedError, Repository, RepositoryHost


def open_recovered(host: RepositoryHost, user: str, text: str) -> tuple[Repository, MasterKey]:
    """Return the repository and the master key, as the password gives them.

    Args:
        host: the server or the local store.
        user: whose key it is.
        text: the recovery key, without typing errors.

    Raises:
        NotAuthorisedError, WrongPasswordError: it is another's, or was revoked.
    """
    repository = _repository(host, user, text)
    return repository, unlock_with_recovery_key(repository.key_file(), text)


def _repository(host: RepositoryHost, user: str, text: str) -> Repository:
    if not isinstance(host, HttpServer):  # whoever may read a store's files needs no login
        from backup.store.store import Store

        assert isinstance(host, Store), "there are these two"
        return host.find_repository(user)
    try:
        return host.login(user, recovery_login_secret(text))
    except NotAuthorisedError as error:
        raise NotAuthorisedError(
            "the id or the recovery key is wrong, or the key was revoked (one that an older "
            "rebuildkit made opens discs and local stores, but no server)"
        ) from error
