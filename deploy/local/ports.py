"""Which ports of this machine are free."""

import random
import socket
from itertools import islice

__all__ = ["LOOPBACK", "free_port", "free_port_prefixes", "is_free"]

LOOPBACK = "127.0.0.1"
# Blocks of a hundred ports below those that systems give to outgoing connections.
PREFIXES = range(200, 320)


def is_free(port: int) -> bool:
    """Whether nobody listens on the port."""
    with socket.socket() as probe:
        # As the servers do: a port that was closed a moment ago is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port that nobody uses."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
    return port


def free_port_prefixes(blocks: int, count: int) -> list[int]:
    """Prefixes such as 271 whose first `count` ports, 27100 and up, are free; fewer if there are no more."""
    # In random order: servers listen only once their model is loaded, so that another
    # fleet which starts meanwhile finds the same ports free.
    candidates = random.sample(PREFIXES, len(PREFIXES))
    free = (each for each in candidates if all(is_free(each * 100 + index) for index in range(count)))
    return list(islice(free, blocks))
