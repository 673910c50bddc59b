"""Files that an operator names: read whole, and never waited for."""

import os
import stat
from pathlib import Path

from server.errors import ConfigurationError

__all__ = ["Stamp", "read_file", "stamp_of"]

Stamp = tuple[int, int, int]
"""Changes when a file does: its time of change in ns, its size in bytes, and which file it is."""


def read_file(path: Path, option: str, *, max_bytes: int) -> bytes:
    """The content of a regular file.

    A pipe or a device in its place would be waited for, by the event loop if need be, and a
    disk image would fill the memory.

    Raises:
        ConfigurationError: it can't be read, is no regular file, or exceeds `max_bytes`; names `option`.
    """
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigurationError(f"{option} {path}: is not a regular file; give the path of one")
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise ConfigurationError(f"{option} {path}: {error.strerror}") from None
    if len(content) > max_bytes:
        raise ConfigurationError(
            f"{option} {path}: is larger than {max_bytes:,} bytes; is it the right file?"
        )
    return content


def stamp_of(path: Path, option: str) -> Stamp:
    """What tells whether the file has changed.

    Raises:
        ConfigurationError: there is no such file, or nobody may look at it; names `option`.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise ConfigurationError(f"{option} {path}: {error.strerror}") from None
    return (status.st_mtime_ns, status.st_size, status.st_ino)


def _without_waiting(path: str, flags: int) -> int:
    # Otherwise opening a pipe waits for somebody to write into it.
    return os.open(path, flags | os.O_NONBLOCK)
