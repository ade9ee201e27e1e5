# SPDX-License-Identifier: Apache-2.0
"""The screen takes any input, shows any text, and never goes over 80 columns."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from rebuild.dialogue.screen import LINE_LIMIT, InputClosedError, Screen
from rebuild.text import WIDTH, columns_of, pad, tail, wrap
from tests.rebuild.dialogue.terminal import COLUMNS, Background, Terminal, screen_of


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    """A terminal."""
    made = Terminal()
    yield made
    made.close()


def ask(terminal: Terminal, keys: bytes, *, is_secret: bool = False) -> object:
    """Return what `ask` makes of `keys`."""
    screen = screen_of(terminal)
    background = Background(lambda: screen.ask("Id: ", "id", is_secret=is_secret))
    terminal.wait_for("Id: ")
    terminal.type(keys)
    answer = background.result()
    terminal.settle()
    return answer


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        pytest.param(b"anna\r", "anna", id="return"),
        pytest.param(b"anna\n", "anna", id="line feed"),
        pytest.param(b"anm\x7fna\r", "anna", id="delete"),
        pytest.param(b"x\x08\x08\x08anna\r", "anna", id="backspace beyond the start"),
        pytest.param(b"other\x15anna\r", "anna", id="kill line"),
        pytest.param("größe\r".encode(), "größe", id="not ascii"),
        pytest.param("aß\x7f\r".encode(), "a", id="delete a character of two bytes"),
        pytest.param(b"an\x1b[A\x1b[1;5C\x1bOP\x1b[[Ana\r", "anna", id="arrows, function keys"),
        pytest.param(b"an\x1b\rx", "an", id="escape does not swallow the end"),
        pytest.param(b"\x03\x04\x1a\x1c\x00\x11\x13\x12\x16a\x00nna\r", "anna", id="signal keys"),
        pytest.param(b"\xff\xfe\x80\r", "\ufffd\ufffd\ufffd", id="no utf-8"),
        pytest.param(b"\r", "", id="nothing"),
    ],
)
def test_keys_make_a_line(terminal: Terminal, keys: bytes, expected: str) -> None:
    """Editing keys edit; no key is a signal, an end of file, or a stop of the output."""
    assert ask(terminal, keys) == expected
    assert terminal.display.wrapped == 0


def test_endless_line_is_cut(terminal: Terminal) -> None:
    """Input beyond the limit is dropped, and the line still ends."""
    screen = screen_of(terminal)
    background = Background(lambda: screen.ask("Id: ", "id"))
    terminal.wait_for("Id: ")
    for _ in range(20):
        terminal.type(b"y" * 1000)
        terminal.settle()
    terminal.type(b"\r")

    assert background.result() == "y" * LINE_LIMIT


def test_secret_is_neither_shown_nor_kept(terminal: Terminal) -> None:
    """A password shows as asterisks, one for each character, and is not in the log."""
    screen = screen_of(terminal)
    background = Background(lambda: screen.ask("Password: ", "secret", is_secret=True))
    terminal.answer("Password: ", "päss\x7f!")

    assert background.result() == "päs!"
    terminal.settle()
    assert terminal.display.lines == ["Password: ****"]
    assert screen.log == ["Password: "]


KEY = "7QX4P-0B2MD-K3V9A-ZZ8TN-41HRC-8EWSY-PM5DJ-2FGQ6"  # of the form only


@pytest.mark.parametrize("known", [(), ("us", "de"), ("7", "7Q"), ("vda", "SN7QX4P")])
@pytest.mark.parametrize(
    "typed",
    [KEY, KEY.lower(), KEY.replace("-", ""), KEY.replace("-", " "), KEY[:25], "U!" + KEY[2:]],
    ids=["printed", "lower", "plain", "blanks", "half", "mistyped"],
)
def test_recovery_key_is_hidden_at_every_question(
    terminal: Terminal, typed: str, known: tuple[str, ...]
) -> None:
    """A recovery key at the wrong question shows as asterisks and is not in the log."""
    screen = screen_of(terminal)
    background = Background(lambda: screen.ask("Id: ", "id", known=known))
    terminal.wait_for("Id: ")
    for character in typed + "\r":
        terminal.type(character)

    assert background.result() == typed
    terminal.settle()
    assert screen.log == ["Id: "]
    assert terminal.display.lines == ["Id: " + "*" * len(typed)]
    longest_known = 2
    for start in range(len(typed) - longest_known):
        assert typed[start : start + longest_known + 1] not in terminal.text


def test_a_line_shows_when_it_is_known_or_ended(terminal: Terminal) -> None:
    """What is expected shows while it is typed, everything else that is no key at the end."""
    screen = screen_of(terminal)
    serial = "SN12345678901234567890"
    background = Background(lambda: screen.ask("? ", "confirm", known=("vda", serial)))
    terminal.wait_for("[?] ")
    shown = []
    for keys in ("vd", "x", "\x7f", "\x15" + serial, "y"):
        terminal.type(keys)
        terminal.settle()
        shown += terminal.display.lines
    terminal.type("\x15vdc\r")

    assert background.result() == "vdc"
    terminal.settle()
    assert shown == ["? vd", "? ***", "? vd", f"? {serial}", "? " + "*" * (len(serial) + 1)]
    assert terminal.display.lines == ["? vdc"]
    assert screen.log == ["? vdc"]


def test_lines_typed_ahead_answer_in_turn(terminal: Terminal) -> None:
    """Several lines in one piece are several answers; one line end of two bytes is one."""
    screen = screen_of(terminal)
    terminal.type(b"one\r\ntwo\nthree\r")

    assert [screen.ask("? ", "id") for _ in range(3)] == ["one", "two", "three"]


def test_typed_ahead_is_forgotten_on_demand(terminal: Terminal) -> None:
    """What was typed while nobody asked does not answer the next question."""
    screen = screen_of(terminal)
    terminal.type(b"guess\r\nguess\r\nguess\r")
    assert screen.ask("? ", "id") == "guess"
    screen.discard_input()
    background = Background(lambda: screen.ask("Id: ", "id"))
    terminal.answer("Id: ", "anna")

    assert background.result() == "anna"


def test_any_port_answers_and_all_show() -> None:
    """Two terminals show the same; the one where Enter is pressed gives the answer."""
    first, second = Terminal(), Terminal()
    screen = screen_of(first, second)
    background = Background(lambda: screen.ask("Id: ", "id", known=("half a line",)))
    first.wait_for("Id: ")
    first.type("half a li")
    first.wait_for("half a li")
    second.answer("Id: ", "bob")

    assert background.result() == "bob"
    first.settle()
    assert first.text.endswith("bob\r\n")
    for terminal in (first, second):
        terminal.close()


def test_a_port_that_goes_away_is_left_out() -> None:
    """A terminal that hangs up leaves the other; without any, asking ends with an error."""
    first, second = Terminal(), Terminal()
    screen = screen_of(first, second)
    os.close(first.far)
    background = Background(lambda: [screen.ask("Id: ", "id"), screen.ask("Again: ", "id")])
    second.answer("Id: ", "bob")
    second.wait_for("Again: ")
    os.close(second.far)

    with pytest.raises(InputClosedError):
        background.result()
    for terminal in (first, second):
        os.close(terminal.port.fd)


def test_stopped_output_does_not_stop_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that takes nothing any more is passed over."""
    monkeypatch.setattr("rebuild.dialogue.screen.WRITE_PATIENCE_S", 0.05)
    stopped, other = Terminal(), Terminal()
    screen = screen_of(stopped, other)

    def work() -> None:
        for number in range(400):
            screen.line(f"line {number} " + "x" * 60)

    background = Background(work)
    other.wait_for("line 399 ")
    background.result()
    for terminal in (stopped, other):
        terminal.close()


NAMES = (
    "/usr/share/" + "d/" * 60 + "file",
    "/日本語/" * 20,
    "/größe/" * 20,
    "/e\u0301" * 60,
    "/\x1b[2J",
)


@pytest.mark.parametrize("name", NAMES, ids=["long", "wide", "umlauts", "accents", "control"])
def test_status_takes_two_lines_and_leaves_none(terminal: Terminal, name: str) -> None:
    """However long the path, a status stays in its two lines; the next line replaces it."""
    screen = screen_of(terminal)
    screen.line("before")
    for phase in range(30):  # each its own phase, so that every one is drawn
        screen.status(f"{phase} ext4 root: 12%, 1.0 MiB of 9.0 MiB\n{name}")
    terminal.settle()
    shown = terminal.display.lines
    screen.line("after")
    terminal.settle()

    assert terminal.display.wrapped == 0
    assert [line.split(":")[0] for line in shown[:2]] == ["before", "29 ext4 root"]
    assert len(shown) == 3
    assert terminal.display.lines == ["before", "after"]
    assert screen.log == ["before", "after"]


def test_long_lines_are_wrapped(terminal: Terminal) -> None:
    """A line too long is broken at blanks, its continuation indented; the log keeps it whole."""
    screen = screen_of(terminal)
    text = "FAILED 2:" + "/name" * 30 + ": its content on the medium is damaged"
    screen.line(text)
    terminal.settle()

    assert terminal.display.wrapped == 0
    assert "".join(line.strip() for line in terminal.display.lines).replace(" ", "") == (
        text.replace(" ", "")
    )
    assert screen.log == [text]


def test_pages_go_forwards_and_back(terminal: Terminal) -> None:
    """The pager shows a page at a time, goes back, ends at the end or when told."""
    screen = screen_of(terminal)
    texts = [f"line {number}." for number in range(50)]
    background = Background(lambda: screen.page(texts))
    terminal.wait_for(r"line 21\.")
    terminal.answer("page 1 of 3: ", "")
    terminal.wait_for(r"line 43\.")
    terminal.answer("page 2 of 3: ", "b")
    terminal.wait_for(r"line 0\.")
    terminal.answer("page 1 of 3: ", "")
    terminal.answer("page 2 of 3: ", "")
    terminal.wait_for(r"line 49\.")
    terminal.answer("page 3 of 3: ", "q")
    background.result()

    assert terminal.display.wrapped == 0
    assert screen.log == []


@pytest.mark.parametrize("width", [20, 37, WIDTH])
def test_text_keeps_to_its_columns(width: int) -> None:
    """Cutting, padding and wrapping count columns, not characters."""
    for text in (*NAMES, "plain words in a row " * 9, "", "日" * 100):
        assert columns_of(tail(text, width)) <= width
        assert columns_of(pad(text, width)) == width
        assert all(columns_of(line) <= width for line in wrap(text, width, "  "))


def test_the_last_column_stays_free() -> None:
    """Lines end one column before the terminal does."""
    assert COLUMNS == WIDTH + 1


def test_no_terminal_is_an_error() -> None:
    """Without any terminal that can be opened, the error of the last one is raised."""
    with pytest.raises(OSError, match="No such file"):
        Screen.open(["/nonexistent/tty"])
