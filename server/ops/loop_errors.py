"""What asyncio reports when nobody can be told: its own words, but not thousands of times a second."""

import asyncio
import errno
import resource
import time
from typing import Any

import structlog

__all__ = ["report_loop_errors"]

# asyncio tries to accept as often as the backlog is long, and reports each attempt.
ACCEPT_INTERVAL_S = 60.0
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

_log = structlog.get_logger("rerank.server")


def report_loop_errors(loop: asyncio.AbstractEventLoop) -> None:
    """Log what the loop reports; that no connection can be accepted, once in a while."""
    quiet_until_s = 0.0

    def report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal quiet_until_s
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in _OUT_OF_RESOURCES and "socket" in context):
            loop.default_exception_handler(context)
        elif time.monotonic() >= quiet_until_s:
            quiet_until_s = time.monotonic() + ACCEPT_INTERVAL_S
            descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            _log.error(
                "no connection can be accepted; raise the limit of descriptors (ulimit -n, LimitNOFILE)",
                reason=error.strerror,
                descriptors=descriptors,
            )

    loop.set_exception_handler(report)
