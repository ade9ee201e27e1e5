# SPDX-License-Identifier: Apache-2.0
"""Ids, logins and key files, for every kind of repository."""

from __future__ import annotations

import hashlib
import unicodedata

import pytest

from backup.objects import keys
from backup.objects.key_file import login_parameters, unpack_key_file
from backup.repository import (
    AlreadyRegisteredError,
    ConflictError,
    InvalidRequestError,
    NotAuthorisedError,
    Repository,
    RepositoryHost,
)
from tests.backup.repositories import (
    SECRET,
    key_file,
    new_user,
    other_key_file,
)


def test_registered_user_logs_in(host: RepositoryHost) -> None:
    """Who registered logs in with the same secret and finds the key file."""
    user = new_user()
    host.register(user, key_file(), SECRET)
    repository = host.login(user, SECRET)

    assert repository.user == user
    assert repository.key_file() == key_file()
    assert repository.machines() == []
    assert repository.data_sets() == []


def test_id_belongs_to_one_user(host: RepositoryHost) -> None:
    """A taken id is refused, unless it is the same registration once more."""
    user = new_user()
    host.register(user, key_file(), SECRET)
    host.register(user, key_file(), SECRET)

    with pytest.raises(AlreadyRegisteredError):
        host.register(user, key_file(), bytes(32))
    with pytest.raises(AlreadyRegisteredError):
        host.register(user, other_key_file(), SECRET)


def test_wrong_secret_and_unknown_id_look_alike(host: RepositoryHost) -> None:
    """The answer does not tell whether the id or the password was wrong."""
    user = new_user()
    host.register(user, key_file(), SECRET)
    with pytest.raises(NotAuthorisedError) as wrong_secret:
        host.login(user, bytes(32))
    with pytest.raises(NotAuthorisedError) as wrong_id:
        host.login(new_user(), SECRET)

    assert str(wrong_secret.value) == str(wrong_id.value)


def test_login_parameters_of_unknown_ids(host: RepositoryHost) -> None:
    """Every id has login parameters: stable, different, and of the same form."""
    user, unknown, another = new_user(), new_user(), new_user()
    host.register(user, key_file(), SECRET)
    known = host.login_parameters(user)
    invented = host.login_parameters(unknown)

    assert known == login_parameters(key_file())
    assert invented == host.login_parameters(unknown)
    assert invented != host.login_parameters(another)
    assert len(invented) == len(known)
    assert sum(a != b for a, b in zip(invented, known, strict=True)) <= len(
        unpack_key_file(key_file()).parameters.salt
    )


def test_one_argon2id_run_logs_in_and_unlocks(host: RepositoryHost) -> None:
    """From id and password to the master key, as a client does it."""
    user = new_user()
    made = keys.create_key_file(user, "pass word")
    host.register(user, made.data, made.login_secret)
    derived = keys.password_keys(host.login_parameters(user), user, "pass word")
    repository = host.login(user, derived.login_secret)

    assert keys.unlock_with(repository.key_file(), derived) == made.master


def test_recovery_keys_log_in(host: RepositoryHost) -> None:
    """Each that the key file has now, for all that the password is for; no other secret does."""
    user = new_user()
    made = keys.create_key_file(user, "pass word")
    data, text = keys.add_recovery_key(made.data, made.master)
    secret = keys.recovery_login_secret(text)
    host.register(user, data, made.login_secret)
    repository = host.login(user, secret)
    assert keys.unlock_with_recovery_key(repository.key_file(), text) == made.master
    changed, login_secret = keys.change_password(data, made.master, user, "new word")
    repository.replace_key_file(changed, new_login_secret=login_secret, expected=data)
    with pytest.raises(NotAuthorisedError):
        host.login(user, made.login_secret)
    host.login(user, secret)
    repository = host.login(user, login_secret)
    repository.replace_key_file(keys.remove_recovery_keys(changed, made.master), expected=changed)

    for wrong in (secret, bytes(32), hashlib.sha256(secret).digest()):
        with pytest.raises(NotAuthorisedError):
            host.login(user, wrong)


def test_ids_are_compared_in_nfc(host: RepositoryHost) -> None:
    """Composed and decomposed letters name the same user."""
    user = "é" + new_user()
    host.register(unicodedata.normalize("NFD", user), key_file(), SECRET)

    assert host.login(user, SECRET).user == user


@pytest.mark.parametrize("damage", [b"", b"nonsense", None], ids=["empty", "nonsense", "flipped"])
def test_damaged_key_file_is_refused(host: RepositoryHost, damage: bytes | None) -> None:
    """What is not a key file is not kept, neither at first nor later."""
    bad = damage if damage is not None else key_file()[:-1] + b"?"
    user = new_user()
    with pytest.raises(InvalidRequestError):
        host.register(user, bad, SECRET)
    host.register(user, key_file(), SECRET)
    repository = host.login(user, SECRET)
    with pytest.raises(InvalidRequestError):
        repository.replace_key_file(bad)

    assert repository.key_file() == key_file()


def test_login_secret_has_32_bytes(host: RepositoryHost) -> None:
    """A secret of another length is refused as such."""
    with pytest.raises(InvalidRequestError):
        host.register(new_user(), key_file(), b"short")
    with pytest.raises(InvalidRequestError):
        host.login(new_user(), b"short")


def test_replace_key_file_with_the_same_salt(host: RepositoryHost) -> None:
    """A recovery slot can be added without another login secret."""
    made = keys.create_key_file("anyone", "password")
    more, _ = keys.add_recovery_key(made.data, made.master)
    user = new_user()
    host.register(user, made.data, SECRET)
    repository = host.login(user, SECRET)
    repository.replace_key_file(more, expected=made.data)
    repository.replace_key_file(more, expected=made.data)

    assert repository.key_file() == more
    with pytest.raises(ConflictError):
        repository.replace_key_file(made.data, expected=made.data)


def test_new_salt_needs_a_new_login_secret(repository: Repository) -> None:
    """A key file that the old secret does not belong to would lock the user out."""
    with pytest.raises(InvalidRequestError):
        repository.replace_key_file(other_key_file())

    assert repository.key_file() == key_file()


def test_change_of_password(host: RepositoryHost) -> None:
    """Afterwards the new secret counts, the old one does not, and open repositories go on."""
    user = new_user()
    host.register(user, key_file(), SECRET)
    repository = host.login(user, SECRET)
    repository.replace_key_file(other_key_file(), new_login_secret=bytes(32))

    with pytest.raises(NotAuthorisedError):
        host.login(user, SECRET)
    assert host.login(user, bytes(32)).key_file() == other_key_file()
    assert repository.key_file() == other_key_file()
    assert host.login_parameters(user) == login_parameters(other_key_file())
