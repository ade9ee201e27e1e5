# SPDX-License-Identifier: Apache-2.0
"""What every command is told once and for all: by the environment, and by a profile.

What is typed comes first, then the environment (REBUILDKIT_SERVER, _STORE, _CREDENTIAL,
_FINGERPRINT, _USER and _MACHINE), then the profile: a TOML file that `rebuildkit init` writes.  A
place is taken whole from one of them: nobody wants the server of one with the id of another's
fingerprint.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

PLACES = ("credential", "server", "store")  # where data sets are; one of them is needed
NAMES = (*PLACES, "fingerprint", "user", "machine", "password_file")
EVERYBODYS = Path("/etc/rebuildkit/profile.toml")
SOURCE = "source"  # of a restore: a server or a store in one word; never in a profile
VERSION = 1
MAXIMUM_SIZE = 64 << 10  # bytes of a profile
Settings = Mapping[str, str]  # those that are set, by name


class ProfileError(Exception):
    """The profile cannot be read or written; its text is one sentence."""


def profile_path() -> Path:
    """Return where `rebuildkit init` writes the profile; it need not exist.

    REBUILDKIT_PROFILE names it; else it is everybody's if this is root, and the user's own else.
    """
    own = os.environ.get("REBUILDKIT_PROFILE")
    if own:
        return Path(own)
    if os.geteuid() == 0:
        return EVERYBODYS
    shared = os.environ.get("XDG_CONFIG_HOME")
    base = Path(shared) if shared else Path.home() / ".config"
    return base / "rebuildkit" / "profile.toml"


def read_settings() -> Settings:
    """Return what the profile says: the user's own, or everybody's if there is none.

    Raises:
        ProfileError: it cannot be read.
    """
    own = profile_path()
    if os.environ.get("REBUILDKIT_PROFILE") or own.exists():
        return read_profile(own)
    return read_profile(EVERYBODYS)


def read_profile(path: Path) -> Settings:
    """Return what a profile says; nothing if there is none.

    Raises:
        ProfileError: it cannot be read, or is none.
    """
    try:
        with path.open(encoding="utf-8") as stream:
            text = stream.read(MAXIMUM_SIZE)
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ProfileError(f"cannot read the profile {path}: {reason}") from error
    import tomllib

    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ProfileError(f"cannot read the profile {path}: {error}") from error
    if found.pop("version", None) != VERSION:
        raise ProfileError(f"{path} is not a profile that this rebuildkit understands")
    for name, value in found.items():
        if name not in NAMES or not isinstance(value, str):
            raise ProfileError(f"{path} says {name!r}, which is no setting, or not as text")
    return {name: value for name, value in found.items() if value}


def write_profile(path: Path, settings: Settings) -> None:
    """Write a profile, in place of an older one; it holds no secret, so all may read it.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["# Made by `rebuildkit init`; options and REBUILDKIT_... come before it."]
    lines += [f"version = {VERSION}"]
    lines += [f"{name} = {_quoted(settings[name])}" for name in NAMES if settings.get(name)]
    data = ("\n".join(lines) + "\n").encode("utf-8", "replace")
    partial = path.with_name(path.name + ".new")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    with open(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)


def _quoted(text: str) -> str:
    """Return a string of TOML: one of JSON, but for DEL.  Source: TOML 1.0, "String"."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def from_environment() -> Settings:
    """Return what the environment says; passwords are looked for where they are read."""
    values = {name: os.environ.get(f"REBUILDKIT_{name.upper()}", "") for name in NAMES[:-1]}
    return {name: value for name, value in values.items() if value}


def find_settings(typed: Settings, wanted: Mapping[str, object]) -> Settings:
    """Return the settings that a command lacks and that are known from elsewhere.

    Args:
        typed: what was given on the command line, by name of the setting.
        wanted: the settings that the command has.

    Raises:
        ProfileError: the profile cannot be read.
    """
    found = dict(typed)
    for layer in (from_environment(), read_settings()):
        if not any(name in found for name in PLACES):
            place = next((name for name in PLACES if name in wanted and name in layer), None)
            if place is not None:
                found[place] = layer[place]
        if SOURCE in wanted and SOURCE not in found and _place_of(layer):
            found[SOURCE] = _place_of(layer)
        for name in wanted:
            if name in layer and name not in found and _fits(name, layer, found):
                found[name] = layer[name]
    return {name: value for name, value in found.items() if name not in typed}


def _place_of(layer: Settings) -> str:
    return layer.get("server") or layer.get("store") or ""


def _fits(name: str, layer: Settings, found: Settings) -> bool:
    """Tell whether a setting has its use beside what is known already."""
    if name in PLACES:
        return False  # chosen above
    if name == "fingerprint":  # of a server; never of another one
        server = found.get("server", found.get(SOURCE))
        return server is not None and layer.get("server", server) == server
    if "credential" in found:
        return False  # it says who, and which machine
    if name == "machine" and SOURCE in found:
        return found[SOURCE] == _place_of(layer)  # another place has other machines
    if name == "password_file":
        sources = ("REBUILDKIT_PASSWORD_FILE", "REBUILDKIT_PASSWORD_COMMAND")
        return not any(os.environ.get(source) for source in sources)
    return True
