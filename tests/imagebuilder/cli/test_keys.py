# SPDX-License-Identifier: Apache-2.0
"""Ids are made on purpose; passwords are typed twice and judged; recovery keys are offered."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from imagebuilder.cli.main import main
from imagebuilder.cli.strength import weakness_of
from tests.backup.server_process import ServerProcess
from tests.imagebuilder.small_disk import make_disk
from tests.imagebuilder.terminal import Terminal
from tests.programs import run

STRONG = "wolke gitarre tisch"
WEAK = "hunter22"
RECOVERY_KEY = re.compile(r"\b(?:[0-9A-Z]{5}-){7}[0-9A-Z]{5}\b")
Output = pytest.CaptureFixture[str]
Typing = Callable[..., None]


@pytest.fixture
def typing(monkeypatch: pytest.MonkeyPatch) -> Typing:
    """Have somebody type secrets, and answers to questions."""

    def type_in(secrets: Sequence[str], *answers: str) -> None:
        left = list(secrets)
        monkeypatch.setattr("getpass.getpass", lambda _: left.pop(0))
        monkeypatch.setattr("sys.stdin", Terminal("".join(f"{answer}\n" for answer in answers)))

    return type_in


@pytest.fixture
def store(tmp_path: Path) -> list[str]:
    """The options for a store that is not there yet."""
    return ["--store", str(tmp_path / "store"), "--user", "anna"]


def test_an_unattended_set_up_makes_its_store(
    tmp_path: Path, store: list[str], capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the password in the environment a store that is not there is made, and said at the end;
    in one that is there an unknown id is refused all the same."""
    (tmp_path / "password").write_text(STRONG)
    run("mke2fs", "-q", "-t", "ext4", tmp_path / "disk.img", "4M")
    monkeypatch.setenv("REBUILDKIT_PASSWORD_FILE", str(tmp_path / "password"))
    backup = ["backup", "--machine", "pc", "--disk", str(tmp_path / "disk.img")]

    assert main([*backup, *store]) == 0
    said = capsys.readouterr().err
    assert "was made, and the id anna in it" in said
    assert main([*backup, *store]) == 0
    assert "was made" not in capsys.readouterr().err
    assert main([*backup, *store[:2], "--user", "anan"]) == 12
    assert "does not know the id anan" in capsys.readouterr().err


def test_a_backup_makes_no_id(tmp_path: Path, store: list[str], capsys: Output) -> None:
    """A slip in the directory or the id is refused, says what makes one, and leaves nothing."""
    password = tmp_path / "password"
    password.write_text(STRONG)
    secret = ["--password-file", str(password)]
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    backup = ["backup", *secret, "--machine", "pc", "--disk", str(disk)]

    assert main([*backup, *store]) == 2
    assert "rebuildkit register --store" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()
    assert main(["register", *store, *secret]) == 0
    for command in (backup, ["snapshots", *secret]):
        capsys.readouterr()
        assert main([*command, *store[:2], "--user", "anan"]) == 12
        said = capsys.readouterr().err
        assert "does not know the id anan" in said
        assert "rebuildkit register" in said
        assert said.count("\n") == 1


def test_a_new_password_is_typed_twice(
    tmp_path: Path, store: list[str], typing: Typing, capsys: Output
) -> None:
    """If the two differ no id is made."""
    typing([STRONG, STRONG + "x"])

    assert main(["register", *store]) == 2
    assert "the two passwords differ" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_a_recovery_key_is_offered(store: list[str], typing: Typing, capsys: Output) -> None:
    """At once, and with the words that say where it is kept; no is an answer."""
    typing([STRONG, STRONG], "yes")
    assert main(["register", *store]) == 0
    said = capsys.readouterr().out
    assert RECOVERY_KEY.search(said)
    assert "do not keep it on this machine" in said

    typing([STRONG, STRONG], "no")
    assert main(["register", *store[:2], "--user", "bert"]) == 0
    said = capsys.readouterr().out
    assert not RECOVERY_KEY.search(said)
    assert "rebuildkit key export" in said


def test_a_recovery_key_is_made_when_scripts_ask(
    tmp_path: Path, store: list[str], capsys: Output
) -> None:
    """With --recovery-key, and without it none is."""
    password = tmp_path / "password"
    password.write_text(STRONG)
    secret = ["--password-file", str(password)]
    assert main(["register", *store, *secret]) == 0
    assert not RECOVERY_KEY.search(capsys.readouterr().out)
    assert main(["register", *store[:2], "--user", "bert", *secret, "--recovery-key"]) == 0

    assert RECOVERY_KEY.search(capsys.readouterr().out)


def test_a_weak_password_is_confirmed(store: list[str], typing: Typing, capsys: Output) -> None:
    """The sentence says why, how long it holds, and how to do better."""
    typing([WEAK, WEAK], "no")
    assert main(["register", *store]) == 2
    said = capsys.readouterr().err
    assert "weak (this is similar to a commonly used password)" in said
    assert "Add another word or two." in said

    typing([WEAK, WEAK], "yes", "no")
    assert main(["register", *store]) == 0
    typing([WEAK, "12345678", "12345678"], "no")
    assert main(["key", "passwd", *store]) == 2
    typing([WEAK])
    assert main(["snapshots", *store]) == 0


@pytest.mark.parametrize(
    ("password", "is_weak"),
    [
        (STRONG, False),
        (STRONG * 20, False),
        ("Tr3pp3nhaus-Lampe-9", False),
        ("anna1985", True),
        ("AnnaAnna", True),
        ("x" * 200, True),
    ],
)
def test_strength_is_what_a_guesser_needs(password: str, is_weak: bool) -> None:
    """Not how many kinds of characters there are; the id is guessed first; length is no trap."""
    assert bool(weakness_of(password, "anna")) == is_weak


@pytest.fixture(params=["server", "store"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[str]]:
    """The options for a server, and for a store without one."""
    if request.param == "store":
        yield ["--store", str(tmp_path / "store"), "--user", "anna"]
        return
    with ServerProcess.start(tmp_path / "data", log=tmp_path / "log") as server:
        assert server.fingerprint is not None
        yield ["--server", server.url, "--fingerprint", server.fingerprint, "--user", "anna"]


def test_a_forgotten_password_is_replaced_with_the_recovery_key(
    tmp_path: Path, place: list[str], capsys: Output
) -> None:
    """It does all that the password does, until it is revoked; a typing error is located."""

    def secret(name: str, text: str) -> str:
        (tmp_path / name).write_text(text + "\n")
        return str(tmp_path / name)

    first, second = secret("first", STRONG), secret("second", "kanne insel funken")
    assert main(["register", *place, "--password-file", first, "--recovery-key"]) == 0
    found = RECOVERY_KEY.search(capsys.readouterr().out)
    assert found is not None
    key = secret("key", found[0])
    disk = str(make_disk(tmp_path))
    backup = ["backup", *place, "--machine", "pc", "--disk", disk]
    assert main([*backup, "--password-file", key]) == 0
    passwd = ["key", "passwd", *place, "--password-file", key, "--new-password-file"]
    assert main([*passwd, key]) == 2
    assert "this is a recovery key" in capsys.readouterr().err
    assert main([*passwd, second]) == 0
    snapshots = ["snapshots", *place, "--password-file"]
    assert [main([*snapshots, file]) for file in (first, second, key)] == [12, 0, 0]
    assert main(["forget", *place, "--yes", "--password-file", key]) == 0
    assert main(["policy", "set", *place, "--keep-last", "1", "--password-file", key]) == 0
    mistyped = secret("mistyped", found[0][:-1] + ("0" if found[0][-1] != "0" else "1"))
    capsys.readouterr()
    assert main([*snapshots, mistyped]) == 12
    assert "; perhaps group 8 of the recovery key is mistyped\n" in capsys.readouterr().err

    assert main(["key", "revoke", *place, "--password-file", key]) == 24
    assert main(["key", "revoke", *place, "--password-file", second]) == 0
    capsys.readouterr()
    assert [main([*snapshots, file]) for file in (second, key)] == [0, 12]
    assert capsys.readouterr().err.count("\n") == 1


def test_prompts_say_that_a_recovery_key_will_do(
    store: list[str], monkeypatch: pytest.MonkeyPatch, typing: Typing
) -> None:
    """Every prompt but those for a new password."""
    typing([STRONG, STRONG], "no")
    assert main(["register", *store]) == 0
    asked: list[str] = []
    monkeypatch.setattr("getpass.getpass", lambda prompt: asked.append(prompt) or STRONG)
    assert main(["snapshots", *store]) == 0

    assert asked == ["Password or recovery key: "]
