# SPDX-License-Identifier: Apache-2.0
"""Keys and the key file."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import msgpack
import pytest

from backup.objects import key_file, keys
from backup.objects.errors import (
    BindingError,
    DamagedError,
    InvalidCredentialsError,
    InvalidRecoveryKeyError,
    ObjectsError,
    UnknownVersionError,
    WrongPasswordError,
)
from backup.objects.key_file import KdfParameters, KeyFile, pack_key_file, unpack_key_file
from backup.objects.keys import MasterKey, NewKeyFile, PasswordKeys
from backup.objects.recovery import recovery_secret, recovery_text

USER, PASSWORD = "joé", "päss wörd"


@pytest.fixture(scope="module")
def made() -> NewKeyFile:
    """A key file and what is in it."""
    return keys.create_key_file(USER, PASSWORD)


@pytest.fixture(scope="module")
def derived(made: NewKeyFile) -> PasswordKeys:
    """What the right password derives: Argon2id runs once for many tests."""
    return keys.password_keys(made.data, USER, PASSWORD)


def rechecked(data: bytes) -> bytes:
    """Return the key file with a checksum that fits, as an attacker would make it."""
    return data[:-32] + hashlib.sha256(data[:-32]).digest()


def test_the_password_opens_what_it_made(made: NewKeyFile) -> None:
    """Id and password give back the master key of registration."""
    assert keys.unlock(made.data, USER, PASSWORD) == made.master


def test_unicode_forms_are_the_same_password(made: NewKeyFile) -> None:
    """Decomposed letters and blanks around the id make no difference."""
    assert keys.unlock(made.data, " joe\u0301 ", "pa\u0308ss wo\u0308rd") == made.master


@pytest.mark.parametrize(
    ("user", "password"),
    [(USER, PASSWORD + " "), (USER, PASSWORD.upper()), ("joe", PASSWORD)],
    ids=["blank", "case", "id"],
)
def test_another_password_or_id_is_refused(made: NewKeyFile, user: str, password: str) -> None:
    """Neither a changed password nor a changed id opens the file."""
    with pytest.raises(WrongPasswordError):
        keys.unlock(made.data, user, password)


@pytest.mark.parametrize(
    ("user", "password"),
    [("", "x"), (" \t", "x"), ("x", ""), ("x", "\udcff"), ("\ud800", "x")],
    ids=["no id", "blank id", "no password", "password not text", "id not text"],
)
def test_unusable_credentials_are_refused(user: str, password: str) -> None:
    """What is empty or not text never reaches the key derivation."""
    with pytest.raises(InvalidCredentialsError):
        keys.create_key_file(user, password)


def test_a_key_file_holds_nothing_but_its_fields(made: NewKeyFile) -> None:
    """Neither id, password, master key nor login secret are in the file, nor hashes of them."""
    data = made.data
    fields = msgpack.unpackb(data[12:-64])

    assert set(fields) == {"kdf", "verifier", "wrapped", "recovery"}
    assert set(fields["kdf"]) == {"name", "salt", "memory_kib", "iterations", "lanes"}
    for secret in (USER.encode(), PASSWORD.encode(), made.login_secret, made.master._secret):
        assert secret not in data
        assert hashlib.sha256(secret).digest() not in data


def test_keys_of_a_password_are_unrelated(derived: PasswordKeys) -> None:
    """Login secret, verifier and wrapping key are three different values."""
    assert len({derived.kek, derived.verifier, derived.login_secret}) == 3
    assert repr(derived.login_secret) not in repr(derived)
    assert "kek" not in repr(derived)


def test_two_key_files_share_no_secret(made: NewKeyFile) -> None:
    """The same password registers twice with other salts, other keys."""
    other = keys.create_key_file(USER, PASSWORD)

    assert other.master != made.master
    assert other.login_secret != made.login_secret


def test_login_parameters_give_the_login_secret_and_nothing_else(made: NewKeyFile) -> None:
    """A client that has only the public parameters can log in; they hold no secret."""
    public = key_file.login_parameters(made.data)
    file = unpack_key_file(made.data)

    assert keys.login_secret(public, USER, PASSWORD) == made.login_secret
    assert file.verifier not in public
    assert file.wrapped not in public


def test_one_derivation_serves_login_and_unlocking(made: NewKeyFile) -> None:
    """What the public parameters derive also opens the key file."""
    derived = keys.password_keys(key_file.login_parameters(made.data), USER, PASSWORD)

    assert keys.unlock_with(made.data, derived) == made.master


def test_keys_of_an_older_salt_are_refused(made: NewKeyFile, derived: PasswordKeys) -> None:
    """After the password was changed elsewhere, keys derived before do not fit."""
    changed, _ = keys.change_password(made.data, made.master, USER, PASSWORD)

    with pytest.raises(WrongPasswordError):
        keys.unlock_with(changed, derived)


def test_changing_the_password_keeps_the_rest(made: NewKeyFile) -> None:
    """A new password opens the same master key; recovery keys and binding stay."""
    data, text = keys.add_recovery_key(made.data, made.master)
    data = keys.bind(data, made.master, bytes(16))
    changed, login = keys.change_password(data, made.master, "mia", "other")

    assert keys.unlock(changed, "mia", "other") == made.master
    assert keys.login_secret(changed, "mia", "other") == login != made.login_secret
    assert keys.unlock_with_recovery_key(changed, text) == made.master
    keys.verify_binding(changed, made.master, bytes(16))


def test_every_flipped_bit_of_a_key_file_is_noticed(
    made: NewKeyFile, derived: PasswordKeys
) -> None:
    """Any changed byte is an error of ours, whether or not the checksum was made to fit."""
    data, text = keys.add_recovery_key(made.data, made.master)
    for position in range(len(data)):
        for mask in (1, 0x80, 0xFF):
            bad = bytearray(data)
            bad[position] ^= mask
            for case in (bytes(bad), rechecked(bytes(bad))):
                if case == data:
                    continue
                with pytest.raises((DamagedError, UnknownVersionError, WrongPasswordError)):
                    keys.unlock_with(case, derived)
                with pytest.raises((DamagedError, UnknownVersionError, WrongPasswordError)):
                    keys.unlock_with_recovery_key(case, text)
            assert not key_file.is_intact(bad)


def test_every_truncation_of_a_key_file_is_noticed(made: NewKeyFile, derived: PasswordKeys) -> None:
    """A key file cut anywhere, or with bytes after it, is damaged."""
    for length in range(len(made.data)):
        with pytest.raises(DamagedError):
            keys.unlock_with(made.data[:length], derived)
    with pytest.raises(DamagedError):
        keys.unlock_with(made.data + b"\0", derived)
    assert key_file.is_intact(made.data)


def test_a_newer_version_is_refused_before_anything_else(derived: PasswordKeys) -> None:
    """A key file of another format says so, whatever follows its version."""
    with pytest.raises(UnknownVersionError, match=r"newer rebuildkit \(format 2\)") as caught:
        keys.unlock_with(b"RKHASH\x02\x00 and bytes nobody knows", derived)

    assert (caught.value.found, caught.value.supported) == (2, 1)


@pytest.mark.parametrize(
    "parameters",
    [
        KdfParameters(bytes(16), memory_kib=(1 << 20) + 1),
        KdfParameters(bytes(16), memory_kib=(64 << 10) - 1),
        KdfParameters(bytes(16), memory_kib=2**63),
        KdfParameters(bytes(16), iterations=17),
        KdfParameters(bytes(16), iterations=0),
        KdfParameters(bytes(16), lanes=17),
        KdfParameters(bytes(16), lanes=0),
        KdfParameters(bytes(15)),
        KdfParameters(bytes(16), memory_kib=True),
    ],
    ids=str,
)
def test_hostile_parameters_are_refused(parameters: KdfParameters) -> None:
    """Parameters that would exhaust the machine, or weaken the derivation, are never run."""
    data = pack_key_file(KeyFile(parameters, bytes(32), bytes(48)), lambda _: bytes(32))

    with pytest.raises(DamagedError):
        keys.unlock(data, USER, PASSWORD)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x80",
        b"\xc0",
        b"\x93\x01\x02\x03",
        b"\xc1",
        b"\x91" * 2000,
        b"\xdf\xff\xff\xff\xff",
        msgpack.packb({"kdf": 1, "verifier": b"", "wrapped": b"", "recovery": 3}),
        msgpack.packb({"kdf": {"name": "scrypt"}, "verifier": bytes(32), "wrapped": bytes(48)}),
        msgpack.packb({"recovery": [[bytes(16)]]}),
        msgpack.packb({"recovery": [[]] * 99}),
        msgpack.packb({"recovery_logins": [bytes(32)]}),
        msgpack.packb({"recovery": [[bytes(16), bytes(48)]], "recovery_logins": [bytes(31)]}),
        msgpack.packb({"recovery": [[bytes(16), bytes(48)]], "recovery_logins": [7]}),
    ],
    ids=range(14),
)
def test_nonsense_in_a_key_file_is_damage(body: bytes) -> None:
    """A body that decodes to anything unexpected is damaged, no other error."""
    data = b"RKHASH\x01\x00" + len(body).to_bytes(4, "little") + body + bytes(64)

    with pytest.raises(DamagedError):
        keys.unlock(rechecked(data), USER, PASSWORD)


def test_recovery_key_opens_the_file_however_it_is_typed(made: NewKeyFile) -> None:
    """Lower case, blanks instead of dashes, and look-alike letters are accepted."""
    data, text = keys.add_recovery_key(made.data, made.master)
    typed = text.lower().replace("-", " ").replace("0", "o").replace("1", "l")

    assert keys.unlock_with_recovery_key(data, text) == made.master
    assert keys.unlock_with_recovery_key(data, f"  {typed}\n") == made.master


def test_recovery_keys_add_up_and_go_away(made: NewKeyFile) -> None:
    """Each exported key works until all are removed; one of another user never does."""
    data, first = keys.add_recovery_key(made.data, made.master)
    data, second = keys.add_recovery_key(data, made.master)

    assert keys.unlock_with_recovery_key(data, first) == made.master
    assert keys.unlock_with_recovery_key(data, second) == made.master
    with pytest.raises(WrongPasswordError, match="does not belong"):
        keys.unlock_with_recovery_key(data, recovery_text(bytes(20)))
    with pytest.raises(WrongPasswordError, match="no recovery key"):
        keys.unlock_with_recovery_key(keys.remove_recovery_keys(data, made.master), first)


def test_recovery_keys_of_older_releases_stay_beside_new_ones(made: NewKeyFile) -> None:
    """They have nothing to log in with; each key keeps its own, whatever else changes."""
    data, old = keys.add_recovery_key(made.data, made.master)
    file = unpack_key_file(data)
    silent = replace(file, recovery=tuple(slot._replace(login=b"") for slot in file.recovery))
    data = pack_key_file(silent, made.master.key_file_mac)
    assert key_file.recovery_logins(data) == []
    data, new = keys.add_recovery_key(data, made.master)
    data, _ = keys.change_password(data, made.master, USER, "other")

    assert keys.unlock_with_recovery_key(data, old) == made.master
    assert keys.unlock_with_recovery_key(data, new) == made.master
    logins = key_file.recovery_logins(data)
    assert logins == [hashlib.sha256(keys.recovery_login_secret(new)).digest()]
    assert key_file.recovery_logins(keys.remove_recovery_keys(data, made.master)) == []


def test_every_typing_error_in_a_recovery_key_is_found_and_located() -> None:
    """A wrong character, or two exchanged in a group, names that group."""
    text = recovery_text(hashlib.sha256(b"fixed").digest()[:20])
    for place, character in enumerate(text):
        if character == "-":
            continue
        for other in "0123456789ABCDEFGHJKMNPQRSTVWXYZ":
            if other == character:
                continue
            with pytest.raises(InvalidRecoveryKeyError) as caught:
                recovery_secret(text[:place] + other + text[place + 1 :])
            assert caught.value.group == place // 6 + 1
    for place in range(len(text) - 1):
        a, b = text[place : place + 2]
        if "-" not in (a, b) and a != b:
            with pytest.raises(InvalidRecoveryKeyError):
                recovery_secret(text[:place] + b + a + text[place + 2 :])


def test_exchanged_groups_of_a_recovery_key_are_found() -> None:
    """Two groups typed in the wrong order do not check."""
    groups = recovery_text(bytes(range(20))).split("-")
    groups[2], groups[5] = groups[5], groups[2]

    with pytest.raises(InvalidRecoveryKeyError, match="group 3"):
        recovery_secret("-".join(groups))


@pytest.mark.parametrize("text", ["", "ABCDE", "U" * 40, "é" * 40, "0" * 41], ids=ascii)
def test_what_is_no_recovery_key_is_refused(text: str) -> None:
    """Wrong length or foreign characters are told before anything is derived."""
    with pytest.raises(InvalidRecoveryKeyError):
        recovery_secret(text)


@pytest.mark.parametrize("secret", [bytes(20), b"\xff" * 20, bytes(range(20))], ids=bytes.hex)
def test_recovery_text_round_trips(secret: bytes) -> None:
    """Text and secret stand for each other."""
    assert recovery_secret(recovery_text(secret)) == secret


def test_binding_tells_another_data_set(made: NewKeyFile) -> None:
    """A key file made for one backup's disc refuses the table of another."""
    bound = keys.bind(made.data, made.master, b"A" * 16)

    keys.verify_binding(bound, made.master, b"A" * 16)
    with pytest.raises(BindingError, match="exchanged"):
        keys.verify_binding(bound, made.master, b"B" * 16)
    with pytest.raises(BindingError, match="not made for a disc"):
        keys.verify_binding(made.data, made.master, b"A" * 16)


def test_binding_cannot_be_forged(made: NewKeyFile) -> None:
    """Without the master key nobody can make a key file name another data set."""
    bound = keys.bind(made.data, made.master, b"A" * 16)
    forged = rechecked(bound.replace(b"A" * 16, b"B" * 16))

    with pytest.raises(DamagedError, match="without its key"):
        keys.verify_binding(forged, made.master, b"B" * 16)
    for change in (keys.add_recovery_key, keys.remove_recovery_keys):
        with pytest.raises(DamagedError):
            change(forged, made.master)


def test_fields_of_other_files_cannot_be_mixed_in(made: NewKeyFile, derived: PasswordKeys) -> None:
    """A wrapped key under the right password but of another user's file is refused."""
    other = MasterKey.random()
    file = replace(
        unpack_key_file(made.data),
        wrapped=other.wrapped_by(derived.kek, b"rebuildkit/1/wrapped by password"),
    )
    forged = pack_key_file(file, made.master.key_file_mac)

    with pytest.raises(DamagedError):
        keys.unlock_with(forged, derived)


def test_nothing_shows_a_secret(made: NewKeyFile) -> None:
    """Printing keys prints no key."""
    assert made.master._secret.hex() not in repr(made.master)
    assert repr(made.master) == "MasterKey(...)"


def test_derived_keys_differ_by_purpose() -> None:
    """Every purpose, pack and table has a key of its own."""
    master = MasterKey(bytes(32))
    derived = {
        master.content_id_key,
        master.signature_key,
        master.pack_key(bytes(32)),
        master.pack_key(b"\1" + bytes(31)),
        master.table_key(b"RKOBJT\x01\x00", bytes(16)),
        master.table_key(b"RKOBJT\x01\x01", bytes(16)),
        master.table_key(b"RKOBJT\x01\x00", b"\1" * 16),
        bytes(32),
    }

    assert len(derived) == 8


def test_all_errors_are_one_family() -> None:
    """One except clause catches everything these formats raise."""
    for error in (BindingError, DamagedError, UnknownVersionError, WrongPasswordError):
        assert issubclass(error, ObjectsError)
