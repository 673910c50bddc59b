"""A supervisord of our own: start it, ask it, end it with everything that it started."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import xmlrpc.client
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from supervisor.xmlrpc import SupervisorTransport  # type: ignore[import-untyped]

__all__ = ["ProcessState", "Supervisor", "answers", "socket_path"]

CONFIGURATION = Path(__file__).with_name("supervisord.conf")
# A socket's path must be short on every system, and supervisord appends its pid while it starts.
MAX_SOCKET_PATH_BYTES = 90
# Nginx and then the servers each have their `stopwaitsecs`.
STOP_TIMEOUT_S = 30.0
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class ProcessState:
    """What supervisord says of one process."""

    name: str
    state: str
    """STARTING, RUNNING, BACKOFF, STOPPING, STOPPED, EXITED, FATAL or UNKNOWN."""
    pid: int
    """0 when it does not run."""
    log: Path

    @property
    def failed(self) -> bool:
        """Whether the process ended without having been asked to."""
        return self.state in {"BACKOFF", "EXITED", "FATAL", "UNKNOWN"}


def socket_path(run_dir: Path) -> Path:
    """Where supervisorctl reaches supervisord: in the run directory unless its path is too long."""
    inside = run_dir / "supervisor.sock"
    if len(os.fsencode(inside)) <= MAX_SOCKET_PATH_BYTES:
        return inside
    return Path(tempfile.mkdtemp(prefix="rerank-")) / "supervisor.sock"


def answers(path: Path) -> bool:
    """Whether some supervisord listens on the socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


class Supervisor:
    """supervisord in the foreground as a child; leaving the context ends it and all of its processes."""

    def __init__(
        self, environment: Mapping[str, str], *, socket_file: Path, log: Path, directory: Path
    ) -> None:
        self._environment = {**os.environ, **environment}
        self._log = log
        self._directory = directory
        self._socket_file = socket_file
        self._process: subprocess.Popen[bytes] | None = None
        self._pids: set[int] = set()

    def __enter__(self) -> Self:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "supervisor.supervisord", "--configuration", str(CONFIGURATION)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._directory,
                env=self._environment,
                # Ctrl-C on the terminal is ours to handle, in order.
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # An impatient second Ctrl-C must not leave processes behind; this takes bounded time.
        ignored = {
            number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            self._stop()
        finally:
            for number, handler in ignored.items():
                signal.signal(number, handler)

    @property
    def running(self) -> bool:
        """Whether supervisord itself runs."""
        return self._process is not None and self._process.poll() is None

    def states(self) -> list[ProcessState] | None:
        """The state of every process; None while supervisord does not answer."""
        try:
            rows: list[dict[str, Any]] = self._ask("getAllProcessInfo")
        except (OSError, HTTPException, xmlrpc.client.Error):
            return None
        states = [
            ProcessState(row["name"], row["statename"], row["pid"], Path(row["stdout_logfile"]))
            for row in rows
        ]
        # Not those of before: their numbers may be somebody else's by now.
        self._pids = {state.pid for state in states if state.pid}
        return states

    def start(self, name: str) -> None:
        """Start a process that does not start by itself; returns when it runs."""
        self._ask("startProcess", name)

    def _ask(self, method: str, *arguments: object) -> Any:
        # The URL is only there to satisfy the library: the transport knows the socket. A transport
        # that was refused once never recovers, and early on supervisord refuses: one for each call.
        transport = SupervisorTransport(None, None, f"unix://{self._socket_file}")
        proxy = xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport)
        try:
            return getattr(proxy, f"supervisor.{method}")(*arguments)
        finally:
            transport.close()

    def _stop(self) -> None:
        if self._process is None:
            return
        if self.running:
            self.states()
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
                # supervisord gives each process a group of its own, numbered like the process.
                for pid in self._pids:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.killpg(pid, signal.SIGKILL)
        self._socket_file.unlink(missing_ok=True)
        # Empty only when it was made for the socket alone.
        with contextlib.suppress(OSError):
            self._socket_file.parent.rmdir()


def _end_with_parent() -> None:
    """In the child, on Linux: get SIGTERM when the parent dies, however it dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
