# SPDX-License-Identifier: Apache-2.0
"""A running QEMU machine: start, talk on the serial line, press keys, take pictures, stop.

QEMU dies with the process that started it, whatever happens to that one.  Every wait has a
deadline, and what the machine said last is part of the error.

On a host that is busy the emulator may not run for as long as Linux waits for its first timer
ticks; it then takes the board for a broken one and panics.  Such a machine, which has touched no
disk yet, is reset and starts anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from qemu.qmp import QMPClient, QMPError

from vm import screen
from vm.errors import MachineError
from vm.qemu import MachineConfig, arguments_of

START_TIMEOUT_S = 30.0
TAIL = 1500  # characters of serial output quoted in errors
LOST_TIMER = re.compile(r"end Kernel panic - not syncing: IO-APIC \+ timer doesn't work!.*\n")
LINE = 300  # characters at most
REST_S = 0.3  # a screen that stays as it is for so long is at rest
MOST_RESTARTS = 3  # of a machine that lost its timer
PNG_SIZE = slice(16, 24)  # of a PNG file: width and height, in IHDR
TEXT_SIZES = {struct.pack(">II", width, 400) for width in (640, 720)}  # of cells of 8 or 9 by 16
PR_SET_PDEATHSIG = 1  # Source: linux/prctl.h


class Machine:
    """One QEMU process; a context manager that leaves nothing behind."""

    def __init__(self, config: MachineConfig) -> None:
        """Start the machine.

        Raises:
            MachineError: QEMU is missing or refuses to start, with its own words.
        """
        # A Unix socket's path is limited to 108 bytes, so not below a caller's directory.
        self._directory = Path(tempfile.mkdtemp(prefix="rebuildkit-vm-"))
        self._errors = (self._directory / "errors").open("w+b")
        self.log_path = self._directory / "serial.log"
        serial, qmp = self._directory / "serial", self._directory / "qmp"
        arguments = arguments_of(config, serial=serial, qmp=qmp, log=self.log_path)
        self.started = time.monotonic()
        self._loop = asyncio.new_event_loop()
        self._client = QMPClient("rebuildkit")
        self._serial: socket.socket | None = None
        self.text = ""  # everything the machine said on the serial line
        self._seen = 0
        self.restarts = 0  # because the timer was lost
        self._restarted_at = 0  # characters said until then
        self._is_restarting = False
        try:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=self._errors,
                stderr=self._errors,
                preexec_fn=_die_with_parent,
            )
        except OSError as error:
            self._remove()
            reason = error.strerror or "no reason given"
            raise MachineError(f"cannot start QEMU: {reason}") from error
        try:
            self._serial = self._connect(serial)
            self._connect(qmp).close()
            self._loop.run_until_complete(self._client.connect(str(qmp)))
        except (MachineError, OSError, QMPError) as error:
            words = self._words()
            self.close()
            said = error.strerror if isinstance(error, OSError) else error
            raise MachineError(f"cannot talk to QEMU: {said} {words}".rstrip()) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the machine was started."""
        return time.monotonic() - self.started

    @property
    def cpu_s(self) -> float:
        """Processor seconds QEMU has used, steadier than the clock on a busy host."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def wait_for(self, pattern: str, timeout_s: float, what: str = "") -> re.Match[str]:
        """Wait until `pattern` appears in serial output that no earlier wait has taken.

        Args:
            pattern: a regular expression.
            timeout_s: how long to wait.
            what: what that is, for the message when it does not come.

        Raises:
            MachineError: the time is over, or the machine has ended, with what it said last.
        """
        match = self.look_for(pattern, timeout_s)
        if match is None:
            raise MachineError(
                f"waited {timeout_s:.0f} s for {what or repr(pattern)}; the machine said last: "
                f"{self.text[-TAIL:]!r}"
            )
        return match

    def look_for(self, pattern: str, timeout_s: float) -> re.Match[str] | None:
        """Do the same; return None when the time is over.

        Raises:
            MachineError: the machine has ended.
        """
        expression = re.compile(pattern)
        deadline = time.monotonic() + timeout_s
        while True:
            match = expression.search(self.text, self._seen)
            if match is not None:
                self._seen = match.end()
                return match
            if not self._receive(deadline):
                return None

    def wait_until_off(self, timeout_s: float) -> None:
        """Wait until the machine has powered off or, since it starts only once, restarted.

        Raises:
            MachineError: it still runs after `timeout_s` seconds.
        """
        deadline = time.monotonic() + timeout_s
        while self._process.poll() is None:
            if time.monotonic() > deadline:
                raise MachineError(
                    f"still running after {timeout_s:.0f} s; it said last: {self.text[-TAIL:]!r}"
                )
            with contextlib.suppress(MachineError):
                self._receive(min(deadline, time.monotonic() + 0.2))

    def send(self, text: str | bytes) -> None:
        """Type `text` on the serial line, slowly enough for a small receive buffer.

        What the machine says meanwhile is taken: it would stop at an echo nobody takes.
        """
        assert self._serial is not None
        data = text.encode() if isinstance(text, str) else text
        for start in range(0, len(data), 8):
            self._serial.sendall(data[start : start + 8])
            deadline = time.monotonic() + 0.02
            with contextlib.suppress(MachineError):  # it ended, which the next wait tells
                while time.monotonic() < deadline:
                    self._receive(deadline)

    def press(self, *keys: str) -> None:
        """Press keys of the keyboard, each "a", "ret" or a chord such as "ctrl-alt-delete"."""
        for key in keys:
            codes = [{"type": "qcode", "data": name} for name in key.split("-")]
            self.execute("send-key", {"keys": codes})
            time.sleep(0.1)

    def execute(self, command: str, arguments: dict[str, object] | None = None) -> object:
        """Run a monitor command.

        Raises:
            MachineError: QEMU refuses it or has ended.
        """
        try:
            return self._loop.run_until_complete(self._client.execute(command, arguments))
        except QMPError as error:
            raise MachineError(f"QEMU: {command}: {error}") from error

    def screenshot(self, path: Path) -> None:
        """Write what the screen shows to `path` as PNG, which QEMU can since 7.1."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.execute("screendump", {"filename": str(path.absolute()), "format": "png"})

    def screen(self) -> tuple[bytes, str | None]:
        """Return what the screen shows, as PNG and, if it is a text screen, as text."""
        picture, memory = self._directory / "screen.png", self._directory / "screen"
        self.screenshot(picture)
        shown = picture.read_bytes()
        if shown[PNG_SIZE] not in TEXT_SIZES:
            return shown, None
        place: dict[str, object] = {"val": screen.TEXT_ADDRESS, "size": screen.TEXT_SIZE}
        self.execute("pmemsave", {**place, "filename": str(memory)})
        return shown, screen.text_of(memory.read_bytes())

    def screenshot_at_rest(self, path: Path, timeout_s: float = 3.0) -> None:
        """Do the same once the screen has changed no more for a moment.

        What a program says on the serial line may come before what it draws on the screen.
        """
        deadline = time.monotonic() + timeout_s
        self.screenshot(path)
        while time.monotonic() < deadline:
            before = path.read_bytes()
            time.sleep(REST_S)
            self.screenshot(path)
            if path.read_bytes() == before:
                return

    def close(self) -> None:
        """End QEMU at once and remove its directory.  Idempotent."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        with contextlib.suppress(Exception):  # the other end is gone; nothing to be said
            self._loop.run_until_complete(self._client.disconnect())
        self._loop.close()
        if self._serial is not None:
            self._serial.close()
        self._remove()

    def _words(self) -> str:
        """Return what QEMU had to say on its standard error."""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace").strip()

    def _remove(self) -> None:
        self._errors.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _connect(self, path: Path) -> socket.socket:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            link = socket.socket(socket.AF_UNIX)
            try:
                link.connect(str(path))
                return link
            except OSError:
                link.close()
            if self._process.poll() is not None:
                raise MachineError("QEMU ended at once")
            if time.monotonic() > deadline:
                raise MachineError(f"QEMU did not open {path.name}")
            time.sleep(0.02)

    def _receive(self, deadline: float) -> bool:
        """Take what the serial line has; False when `deadline` passed with nothing."""
        assert self._serial is not None
        self._serial.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            data = self._serial.recv(65536)
        except TimeoutError:
            return False
        except OSError:
            data = b""
        if not data:
            if self._process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
                return True
            raise MachineError(f"the machine ended; it said last: {self.text[-TAIL:]!r}")
        self.text += data.decode("utf-8", "replace")
        if self._is_restarting:
            self._set_reboot("shutdown")
        unseen = max(self._restarted_at, len(self.text) - len(data) - LINE)
        if self.restarts < MOST_RESTARTS and LOST_TIMER.search(self.text, unseen):
            self.restarts += 1
            self._restarted_at = len(self.text)
            self._set_reboot("reset")
            self.execute("system_reset")
        return True

    def _set_reboot(self, action: str) -> None:
        """Say what a restart does: "shutdown" ends the machine, as always but after our own.

        A BIOS restarts the machine once more by itself after the reset button was pressed, so
        that the usual is set again when the machine has something to say.
        """
        self.execute("set-action", {"reboot": action})
        self._is_restarting = action == "reset"


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
