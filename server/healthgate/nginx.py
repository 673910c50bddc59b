"""The two things that Nginx needs to hear: the file of members, and when to read it."""

import os
import re
import signal
from collections.abc import Mapping
from pathlib import Path

from server.errors import ConfigurationError

__all__ = ["is_address", "reload_nginx", "write_members"]

_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}")


def is_address(text: str) -> bool:
    """Whether the text is HOST:PORT, and so safe to write into a configuration."""
    return _ADDRESS.fullmatch(text) is not None


def write_members(path: Path, members: Mapping[str, str]) -> bool:
    """Write the upstream's members (address: why it is out, or ""); False when nothing changed.

    Atomic: Nginx reads the old file or the new one. Servers that are out stay listed as
    `down`, so that a person who opens the file sees the whole fleet.
    """
    lines = []
    for address, reason in members.items():
        lines.append(f"server {address} max_fails=0{' down' if reason else ''};")
        if reason:
            lines[-1] += f"  # {reason}"
    text = "\n".join(lines) + "\n"
    if path.exists() and _without_comments(path.read_text()) == _without_comments(text):
        return False
    scratch = path.with_name(f"{path.name}.new")
    scratch.write_text(text)
    os.replace(scratch, path)
    return True


def reload_nginx(pid_file: Path) -> None:
    """Tell Nginx's master process to read its configuration again.

    Raises:
        ConfigurationError: there is no such process; the message names the file.
    """
    try:
        os.kill(int(pid_file.read_text()), signal.SIGHUP)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"--nginx-pid-file {pid_file}: {error}") from None


def _without_comments(text: str) -> list[str]:
    return [line.partition("#")[0].strip() for line in text.splitlines()]
