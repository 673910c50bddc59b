"""HOST:PORT: what is one, and the list of them in a file."""

import ipaddress
import os
import re
import stat
from pathlib import Path

from server.errors import ConfigurationError

__all__ = ["MAX_SERVERS", "is_address", "read_servers", "split"]

MAX_SERVERS = 1000
"""As many as fit into the upstream's shared memory, 1 MiB in nginx/*.conf.template (measured)."""
MAX_FILE_BYTES = 1 << 20

_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):([1-9][0-9]{0,4})")
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")


def is_address(text: str) -> bool:
    """Whether the text is HOST:PORT that could be a server's, and is safe in a configuration.

    The host is a name, an IPv4 address, or an IPv6 address in brackets. nginx/render.py has the
    same rule, since it runs without this package; a test holds the two together.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match[2]) > 65535:
        return False
    host = match[1]
    if _literal(host):
        return True
    labels = host.removesuffix(".").split(".")
    # A last label of digits is an IPv4 address that went wrong.
    return len(host) <= 253 and all(map(_LABEL.fullmatch, labels)) and not labels[-1].isdigit()


def split(address: str) -> tuple[str, int, bool]:
    """Host without brackets, port, and whether the host is a name rather than an IP address."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port), not _literal(host)


def read_servers(path: Path) -> tuple[list[str], list[str]]:
    """The addresses in a file, one a line with comments after #, each once; and the lines that are none.

    Raises:
        ConfigurationError: there is no list in it; the message says why.
    """
    try:
        content = _content(path)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8 at byte {error.start}") from None
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    addresses = dict.fromkeys(filter(None, lines))
    if not addresses:
        raise ConfigurationError(f"{path} lists no server")
    if len(addresses) > MAX_SERVERS:
        raise ConfigurationError(f"{path} lists {len(addresses):,} servers; {MAX_SERVERS:,} are the most")
    return list(filter(is_address, addresses)), [each for each in addresses if not is_address(each)]


def _content(path: Path) -> bytes:
    # Nobody may ever write into a FIFO.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ConfigurationError(f"{path} is not a regular file")
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(MAX_FILE_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(content) > MAX_FILE_BYTES:
        raise ConfigurationError(f"{path} is larger than {MAX_FILE_BYTES:,} bytes")
    return content


def _literal(host: str) -> bool:
    try:
        if host.startswith("["):
            ipaddress.IPv6Address(host[1:-1])
        else:
            ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return True
