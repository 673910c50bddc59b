"""Structured logs on standard error: for people on a terminal, JSON otherwise.

Nobody waits for whoever reads the log: lines are written by a thread of their own
(`log_writer`), and what can't be written is dropped and counted.
"""

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Literal

import structlog
from structlog.typing import EventDict, Processor

from server.ops.log_lines import Repetition, bound_values
from server.ops.log_writer import LogWriter

__all__ = ["configure_logging", "dropped_log_lines", "flush_logs"]

STANDARD_ERROR = 2
FLUSH_TIMEOUT_S = 1.0
# Enough to tell what is repeated, and little enough to leave out an address or a number at its end.
KIND_CHARACTERS = 80
GRPC_LOGGER = "grpc._cython.cygrpc"
WRITE_FAILED = "ExecuteBatchError raised in core by servicer method"


def configure_logging(level: str, log_format: Literal["auto", "console", "json"]) -> None:
    """Route structlog, the standard library's loggers and warnings to one format on standard error."""
    console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if console else "iso", utc=not console),
        # Here and not on the writing thread: only here is the exception the current one.
        structlog.processors.format_exc_info,
        bound_values,
    ]
    renderers: list[Processor] = (
        [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
        ]
        if console
        else [structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers[:] = [_Handler(shared, renderers)]
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    logging.getLogger(GRPC_LOGGER).addFilter(_calm)
    # Libraries talk at INFO about their own affairs (hub requests, connections); warnings still show.
    for name in ("httpx", "httpcore", "urllib3", "sentence_transformers", "transformers", "asyncio"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def flush_logs() -> None:
    """Wait until the log is written, but not for a reader that has stopped; before any `os._exit`."""
    for handler in _handlers():
        handler.flush()


def dropped_log_lines() -> int:
    """Lines that were not written because nobody took them."""
    return sum(handler.writer.dropped for handler in _handlers())


def _calm(record: logging.LogRecord) -> bool:
    """Make no error of a client that hangs up.

    When it cancels while its answer is being written, grpc.aio may see the failed write first
    and report that as an error, with a traceback; the call has a line of its own.
    """
    if not (isinstance(record.msg, str) and record.msg.startswith(WRITE_FAILED)):
        return True
    record.levelno, record.levelname = logging.DEBUG, logging.getLevelName(logging.DEBUG)
    return logging.getLogger(record.name).isEnabledFor(logging.DEBUG)


class _Handler(logging.Handler):
    """Hands records to a `LogWriter`; of warnings and errors that repeat, the first few a second."""

    def __init__(self, shared: Sequence[Processor], renderers: Sequence[Processor]) -> None:
        super().__init__()
        self._shared = shared
        self._renderers = renderers
        self._repetition = Repetition()
        self.writer = LogWriter(STANDARD_ERROR, self._render, more=self._left_out, lost=self._lost)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._emit(record)
        except Exception as error:  # a log call that is wrong must not fail its caller
            event: EventDict = {
                "event": "a log line could not be rendered",
                "logger": record.name,
                "error": error,
                "where": f"{record.pathname}:{record.lineno}",
            }
            self.writer.put(self._completed(record.levelname.lower(), event))

    def _emit(self, record: logging.LogRecord) -> None:
        # wrap_for_formatter leaves the finished event here; other loggers leave a text.
        finished: EventDict | None = record.msg if hasattr(record, "_logger") else None  # type: ignore[assignment]
        # Not what is logged in the normal course: whoever counts calls wants every line of them.
        if record.levelno >= logging.WARNING:
            said = finished["event"] if finished else record.msg
            if not self._repetition.admits(f"{record.name}: {said}"[:KIND_CHARACTERS], time.monotonic()):
                return
        if finished is not None:
            self.writer.put(finished)
        else:
            event: EventDict = {"event": record.getMessage(), "logger": record.name}
            if record.exc_info:
                event["exc_info"] = record.exc_info
            self.writer.put(self._completed(record.levelname.lower(), event))

    def flush(self) -> None:
        """Wait a moment for what was logged; `logging` calls it when the process ends."""
        self.writer.flush(FLUSH_TIMEOUT_S)

    def _completed(self, level: str, event: EventDict) -> EventDict:
        return _through(self._shared, level, event)

    def _render(self, event: EventDict) -> str:
        return str(_through(self._renderers, "", dict(event)))

    def _left_out(self) -> Iterator[EventDict]:
        for said, lines in self._repetition.take_left_out().items():
            yield self._completed(
                "warning", {"event": "repeated lines left out", "said": said, "lines": lines}
            )

    def _lost(self, lines: int) -> EventDict:
        return self._completed("warning", {"event": "log lines dropped: nobody took them", "lines": lines})


def _through(processors: Sequence[Processor], name: str, event: EventDict) -> EventDict:
    for processor in processors:
        event = processor(None, name, event)  # type: ignore[assignment]
    return event


def _handlers() -> list[_Handler]:
    return [handler for handler in logging.getLogger().handlers if isinstance(handler, _Handler)]
