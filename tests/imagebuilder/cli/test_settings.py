# SPDX-License-Identifier: Apache-2.0
"""What is said once counts for all commands: init, the profile, the environment; doctor, status."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from pathlib import Path

import pytest

from imagebuilder.cli import settings
from imagebuilder.cli.doctor import findings_on_hardware
from imagebuilder.cli.main import main
from tests.imagebuilder.terminal import Terminal
from tests.programs import run
from tests.scenario import PASSWORD, USER, Server

pytestmark = pytest.mark.tools


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new computer: no profile yet, a password in a file, a disk."""
    monkeypatch.setenv("REBUILDKIT_PROFILE", str(tmp_path / "etc" / "profile.toml"))
    monkeypatch.setenv("REBUILDKIT_STATE", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "password").write_text(PASSWORD + "\n")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(b"content")
    run("mke2fs", "-q", "-t", "ext4", "-d", tmp_path / "tree", tmp_path / "disk", "8M")
    return tmp_path


def set_up(home: Path, *more: str) -> int:
    """Run init for a store."""
    password = ("--password-file", str(home / "password"))
    return main(["init", "--store", "store", "--user", USER, "--machine", "desk", *password, *more])


def test_init_once_then_short_commands(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After init neither place nor id nor machine nor password is given again, from anywhere."""
    assert set_up(home, "--new") == 0
    said = capsys.readouterr().out
    assert "rebuildkit backup  " in said
    assert "rebuildkit image build" in said
    assert PASSWORD not in settings.profile_path().read_text()
    (home / "else").mkdir()
    os.chdir(home / "else")

    assert main(["backup", "--disk", "../disk"]) == 0
    assert main(["snapshots", "--json"]) == 0
    assert main(["ls"]) == 0
    assert "desk" in capsys.readouterr().out
    assert main(["dump", "/file"]) == 0
    assert main(["restore", "--disk", "new", "--yes"]) == 0
    assert "Result: complete." in capsys.readouterr().out


def test_init_tries_the_password(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong password is found at once, and nothing is remembered."""
    assert set_up(home, "--new") == 0
    settings.profile_path().unlink()
    (home / "password").write_text("another password, 1234\n")

    assert set_up(home) == 12

    assert not settings.profile_path().exists()
    (home / "password").write_text(PASSWORD + "\n")
    assert set_up(home) == 0
    assert "there are 0 backups of desk" in capsys.readouterr().out


def test_a_profile_is_not_replaced_unasked(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second init needs --replace; the first profile stays as it was."""
    assert set_up(home, "--new") == 0
    before = settings.profile_path().read_bytes()

    assert set_up(home) == 24
    assert "--replace" in capsys.readouterr().err
    assert settings.profile_path().read_bytes() == before
    assert set_up(home, "--replace") == 0


def test_init_says_what_is_missing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal nobody can be asked: the option is named."""
    assert main(["init", "--user", USER]) == 2
    assert "--store is missing" in capsys.readouterr().err
    assert main(["init", "--store", str(home / "store")]) == 2
    assert "--user is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "message"),
    [("a/b\n", "--user: a valid name"), ("", "the input has ended"), ("\n", "--user is missing")],
)
def test_init_takes_only_answers(
    typed: str,
    message: str,
    home: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name that is none, no answer, and the end of the input are sentences."""
    monkeypatch.setattr("sys.stdin", Terminal(typed))

    assert main(["init", "--store", str(home / "store")]) == 2
    assert message in capsys.readouterr().err


def test_a_server_is_compared_before_it_is_trusted(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where nobody can be asked, init names the fingerprint that it saw, and trusts nothing."""
    (home / "server").mkdir()
    password = ("--password-file", str(home / "password"))
    with Server(home / "server") as server:
        asked = ["init", "--server", server.url, "--user", USER, "--machine", "desk", *password]
        assert main([*asked, "--new"]) == 2
        assert server.fingerprint in capsys.readouterr().err
        assert main(["snapshots", "--server", server.url, "--user", USER, *password]) == 1
        assert server.fingerprint in capsys.readouterr().err
        assert not settings.profile_path().exists()

        plain = ["--server", server.url.replace("https", "http"), "--user", USER, *password]
        assert main(["snapshots", *plain]) == 1  # at once: nobody waits an hour for it
        assert "try https://" in capsys.readouterr().err

        assert main([*asked, "--new", "--fingerprint", server.fingerprint.lower()]) == 0
        assert main(["snapshots"]) == 0
        assert main(["status"]) == 0
    assert "There is no backup of desk." in capsys.readouterr().out
    assert main([*asked, "--replace"]) == 2
    assert "cannot be reached" in capsys.readouterr().err


def test_a_client_of_a_server_needs_no_database(home: Path) -> None:
    """A machine that backs up to a server has no SQLAlchemy: nothing of a store is imported."""
    (home / "server").mkdir()
    program = (
        "import sys; sys.modules['sqlalchemy'] = None\n"
        "from imagebuilder.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    with Server(home / "server") as server:
        place = ["--server", server.url, "--fingerprint", server.fingerprint, "--user", USER]
        place += ["--password-file", str(home / "password")]
        for command in (
            ["register", *place],
            ["backup", *place, "--machine", "desk", "--disk", str(home / "disk")],
            ["snapshots", *place],
            ["ls", *place],
            ["status", *place],
            ["policy", "show", *place],
        ):
            run(sys.executable, "-c", program, *command)


def test_another_service_behind_the_port_is_said(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What greets in plain text, as SSH does, is no server of ours."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def greet() -> None:
            with listening.accept()[0] as connection:
                connection.sendall(b"SSH-2.0-OpenSSH_9.2p1\r\n")
                connection.recv(1000)

        thread = threading.Thread(target=greet)
        thread.start()
        url = f"https://127.0.0.1:{listening.getsockname()[1]}"
        password = ("--password-file", str(home / "password"), "--retry-for", "0s")
        assert main(["snapshots", "--server", url, "--user", USER, *password]) == 1
        thread.join()
    assert "is it the right port?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "environment", "profile", "found"),
    [
        ({}, {}, {"server": "p", "user": "u"}, {"server": "p", "user": "u"}),
        ({}, {"store": "e"}, {"server": "p", "user": "u"}, {"store": "e", "user": "u"}),
        ({"server": "t"}, {"store": "e"}, {"server": "p"}, {}),
        # A fingerprint is that of one server.
        ({"server": "t"}, {}, {"server": "p", "fingerprint": "f"}, {}),
        ({"server": "p"}, {}, {"server": "p", "fingerprint": "f"}, {"fingerprint": "f"}),
        ({"server": "t"}, {"fingerprint": "f"}, {}, {"fingerprint": "f"}),
        ({"store": "t"}, {"fingerprint": "f"}, {}, {}),
        # A credential says who, and which machine.
        ({"credential": "c"}, {"user": "u", "machine": "m"}, {"password_file": "w"}, {}),
        ({}, {"machine": "e"}, {"machine": "p"}, {"machine": "e"}),
        ({}, {}, {"password_file": "w"}, {"password_file": "w"}),
    ],
)
def test_what_comes_first(
    typed: dict[str, str],
    environment: dict[str, str],
    profile: dict[str, str],
    found: dict[str, str],
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is typed, then the environment, then the profile; a place is never mixed."""
    for name, value in environment.items():
        monkeypatch.setenv(f"REBUILDKIT_{name.upper()}", value)
    settings.write_profile(home / "etc" / "profile.toml", profile)

    assert settings.find_settings(typed, dict.fromkeys(settings.NAMES)) == found


def test_what_is_restored_is_of_one_place(home: Path) -> None:
    """Without --from it is the profile's; what is typed has neither its fingerprint nor machine."""
    profile = {"server": "p", "fingerprint": "f", "machine": "m"}
    settings.write_profile(home / "etc" / "profile.toml", profile)
    wanted = dict.fromkeys(("source", "fingerprint", "machine"))

    found = {"source": "p", "fingerprint": "f", "machine": "m"}
    assert settings.find_settings({}, wanted) == found
    assert settings.find_settings({"source": "disc.iso"}, wanted) == {}
    assert settings.find_settings({"source": "p"}, wanted) == {"fingerprint": "f", "machine": "m"}


def test_a_password_in_the_environment_counts_before_that_of_the_profile(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that gives the password is not passed over for a file of the profile."""
    settings.write_profile(home / "etc" / "profile.toml", {"password_file": "w"})
    monkeypatch.setenv("REBUILDKIT_PASSWORD_COMMAND", "echo secret")

    assert settings.find_settings({}, dict.fromkeys(settings.NAMES)) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version = 1\nserver = 5\n", "'server'"),
        ("version = 1\npassword = 'x'\n", "'password'"),
        ("version = 2\n", "not a profile"),
        ("server", "cannot read the profile"),
        ("\0", "cannot read the profile"),
    ],
)
def test_a_bad_profile_is_said(
    text: str, message: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence that names the file, and the exit code of usage errors."""
    path = settings.profile_path()
    path.parent.mkdir()
    path.write_text(text)

    assert main(["snapshots"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert str(path) in said


@pytest.mark.parametrize("text", ['a "b"', "back\\slash", "tab\t", "ümlaut", "\x7f", "😀"])
def test_any_text_comes_back(text: str, home: Path) -> None:
    """What is written is read."""
    path = home / "profile.toml"
    settings.write_profile(path, {"store": text})
    assert settings.read_profile(path) == {"store": text}


def test_doctor_and_status(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is missing is named with what to do; the exit code is for monitoring."""
    assert set_up(home, "--new") == 0
    capsys.readouterr()
    assert main(["doctor", "--json"]) in (10, 23)  # 23: this machine could not be backed up
    found = json.loads(capsys.readouterr().out)
    assert found["newest"] is None
    assert found["is_well"] is False
    assert "desk was never backed up." in [item["text"] for item in found["findings"]]

    assert main(["backup", "--disk", "disk"]) == 0
    capsys.readouterr()
    assert main(["status"]) == 0
    said = capsys.readouterr().out
    assert f"as {USER}" in said
    assert "1 backup; the newest is number 1 of" in said
    main(["doctor", "--json", "--max-age", "1h"])
    found = json.loads(capsys.readouterr().out)
    texts = [item["text"] for item in found["findings"]]
    assert "No recovery disc was built on this computer." in texts
    assert not any("old" in text for text in texts)
    assert found["newest"]["generation"] == 1


def test_doctor_names_what_depends_on_hardware(tmp_path: Path) -> None:
    """What the machine cannot start without, and what to do."""
    (tmp_path / "etc/initramfs-tools").mkdir(parents=True)
    (tmp_path / "etc/fstab").write_text("/dev/vda1 / ext4\n/dev/vda2 none swap\n")
    (tmp_path / "etc/initramfs-tools/initramfs.conf").write_text("MODULES=dep\n")
    found = [(item.text, item.advice) for item in findings_on_hardware(bytes(tmp_path))]
    words = "On another computer this machine may not start: /etc/"
    assert found == [
        (f"{words}fstab mounts / by /dev/vda1", "UUID= would do everywhere; a restore does it"),
        (
            f"{words}initramfs-tools/initramfs.conf leaves drivers out of the initramfs by "
            "MODULES=dep",
            "MODULES=most would do everywhere; a restore says so, too",
        ),
    ]
