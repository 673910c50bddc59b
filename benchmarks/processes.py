"""Child processes of a benchmark: servers behind a port, and Python objects in a process of their own."""

import multiprocessing
import os
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.protocol import Unavailable

__all__ = ["REPOSITORY", "Isolated", "ServerProcess", "free_port"]

REPOSITORY = Path(__file__).resolve().parents[1]
# Beside the environments of peers, and ignored by git like them.
LOGS = REPOSITORY / "benchmarks" / ".peers" / "logs"
READY_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 20.0
POLL_INTERVAL_S = 0.05
SHOWN_LOG_LINES = 15


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class ServerProcess:
    """A server started by a command, ready when `is_ready` says so; ended by its id.

    What it prints stays in `LOGS`, under its name, until the next run.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        is_ready: Callable[[], bool],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._command = [str(part) for part in command]
        self._is_ready = is_ready
        self._environment = {**os.environ, **(environment or {})}
        LOGS.mkdir(parents=True, exist_ok=True)
        self._log = LOGS / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    self._command,
                    cwd=REPOSITORY,
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
        except OSError as error:
            raise Unavailable(f"{self._command[0]} can't be started: {error.strerror}") from error
        try:
            self._wait_ready(self._process)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    @property
    def pid(self) -> int:
        """The id of the process, also after its end."""
        if self._process is None:
            raise RuntimeError(f"{self._command[0]} was not started")
        return self._process.pid

    def _wait_ready(self, process: subprocess.Popen[bytes]) -> None:
        give_up_at_s = time.monotonic() + READY_TIMEOUT_S
        while not self._is_ready():
            if process.poll() is not None:
                raise Unavailable(f"it ended with code {process.returncode}: {self._log_tail()}")
            if time.monotonic() > give_up_at_s:
                raise Unavailable(f"it was not ready within {READY_TIMEOUT_S:.0f} s: {self._log_tail()}")
            time.sleep(POLL_INTERVAL_S)

    def _stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _log_tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-SHOWN_LOG_LINES:])


class Isolated:
    """A Python object that lives in a fresh process, so that its threads are the only ones there.

    `factory` must be importable by name. A context manager; `call` runs a method of the
    object and returns what it returns. An exception there is raised here as `Unavailable`.
    """

    def __init__(self, factory: Callable[..., Any], *arguments: object) -> None:
        self._factory = factory
        self._arguments = arguments
        self._connection: Connection[Any, Any]
        self._process: multiprocessing.process.BaseProcess

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        # A daemon: it can't outlive this process.
        self._process = context.Process(
            target=_serve, args=(theirs, self._factory, self._arguments), daemon=True
        )
        self._process.start()
        theirs.close()
        try:
            self._answer()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._connection.close()
        self._process.join(STOP_TIMEOUT_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def call(self, method: str, *arguments: object) -> Any:
        """Run a method of the object over there."""
        self._connection.send((method, arguments))
        return self._answer()

    def _answer(self) -> Any:
        try:
            succeeded, value = self._connection.recv()
        except EOFError:
            self._process.join()
            raise Unavailable(f"its process ended with code {self._process.exitcode}") from None
        if not succeeded:
            raise Unavailable(value)
        return value


def _serve(
    connection: "Connection[Any, Any]", factory: Callable[..., Any], arguments: Sequence[object]
) -> None:
    """Build the object, then answer calls until the other end closes; run in the child."""
    try:
        subject = factory(*arguments)
        connection.send((True, None))
    except Exception as error:
        connection.send((False, f"{type(error).__name__}: {error}"))
        return
    while True:
        try:
            method, method_arguments = connection.recv()
        except EOFError:
            break
        try:
            connection.send((True, getattr(subject, method)(*method_arguments)))
        except Exception as error:
            connection.send((False, f"{type(error).__name__}: {error}"))
    close = getattr(subject, "close", None)
    if close is not None:
        close()
