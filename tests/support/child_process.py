"""A real process that a test starts and always ends."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["REPOSITORY", "ChildProcess"]

REPOSITORY = Path(__file__).resolve().parents[2]
SHOWN_LOG_LINES = 30


class ChildProcess:
    """A child in its own process group, with its output in a log file; a context manager.

    Leaving the context ends the process: first as it would be in production, then
    by force, its children with it.
    """

    stop_signal = signal.SIGTERM
    stop_timeout_s = 15.0

    def __init__(
        self, command: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.command = [str(part) for part in command]
        self.log = log
        self.environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process; there is one between `start` and the end of the context."""
        if self._process is None:
            raise RuntimeError(f"{self.command[0]} was not started")
        return self._process

    @property
    def running(self) -> bool:
        """Whether the process has been started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process without waiting until it is ready."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=REPOSITORY,
                env={**os.environ, **self.environment},
                start_new_session=True,
            )

    def wait_ready(self) -> None:
        """Return when the process can be used; subclasses know when that is."""

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process alone."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """End the process without a chance to say goodbye."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int | None:
        """End the process and whatever it started; return its exit code."""
        if self._process is None:
            return None
        if self.running:
            self.signal(self.stop_signal)
            # A frozen process could not act on the signal.
            self.signal(signal.SIGCONT)
            try:
                self._process.wait(self.stop_timeout_s)
            except subprocess.TimeoutExpired:
                self._kill_group()
                self._process.wait()
            # Only now: the number of a process that ended long ago may be somebody else's.
            self._kill_group()
        return self._process.returncode

    def log_tail(self) -> str:
        """The last lines that the process wrote, for messages of failed tests."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-SHOWN_LOG_LINES:])

    def require_running(self) -> None:
        """Fail the test with the process's own words when it has ended."""
        if not self.running:
            raise AssertionError(
                f"{' '.join(self.command)} ended with {self.process.returncode}:\n{self.log_tail()}"
            )

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
