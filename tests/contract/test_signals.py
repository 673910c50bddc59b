"""SIGTERM and SIGINT, sent to a real server at bad moments."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.ports import free_port
from tests.support.server_process import ServerProcess
from tests.support.waiting import wait_until

STALLED = "the loop stands still"

# A server whose event loop stalls once a file appears, while other threads wake it up until
# the pipe that they wake it through is full: what a large request did for seconds.
STALLING = """
import asyncio, pathlib, sys, threading, time
from server import app
from server.__main__ import main

trigger, stall_s = pathlib.Path(sys.argv[1]), float(sys.argv[2])
serve = app.Server.serve

def stall(loop):
    while not trigger.exists():
        time.sleep(0.02)
    stalled = threading.Event()
    loop.call_soon_threadsafe(lambda: (stalled.set(), time.sleep(stall_s)))
    stalled.wait()
    for _ in range(20_000):
        loop.call_soon_threadsafe(int)
    print("the loop stands still", flush=True)

async def serve_and_stall(self):
    threading.Thread(target=stall, args=(asyncio.get_running_loop(),), daemon=True).start()
    return await serve(self)

app.Server.serve = serve_and_stall
sys.exit(main(sys.argv[3:]))
"""


class StallingServer(ServerProcess):
    """A server whose event loop can be made to stand still."""

    def __init__(self, folder: Path, *options: str, stall_s: float) -> None:
        self._trigger = folder / "stall"
        script = folder / "stalling.py"
        script.write_text(STALLING)
        super().__init__(folder, *options)
        self.command[1:3] = [str(script), str(self._trigger), str(stall_s)]

    def stall(self) -> None:
        """Return when the loop stands still and its pipe is full."""
        self._trigger.touch()
        wait_until(lambda: STALLED in self.log.read_text(), "the loop to stall")


def test_a_signal_is_never_lost(tmp_path: Path) -> None:
    """SIGTERM drains a server whose event loop stood still, with a full pipe, when it came."""
    with StallingServer(tmp_path, stall_s=2) as server:
        server.stall()
        server.signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
        assert '"event": "draining"' in server.log.read_text()


def test_a_second_signal_does_not_wait_for_the_event_loop(tmp_path: Path) -> None:
    """A server whose loop stands still for a minute ends at the second signal, and says so."""
    with StallingServer(tmp_path, stall_s=60) as server:
        server.stall()
        server.signal(signal.SIGTERM)
        wait_until(lambda: '"event": "stopping"' in server.log.read_text(), "the first signal to be logged")
        server.signal(signal.SIGINT)
        assert server.process.wait(10) == 1
        assert "second signal" in server.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_loading_ends_the_process_at_once(tmp_path: Path, number: signal.Signals) -> None:
    """There is nothing to drain yet."""
    server = ServerProcess(tmp_path, "--simulated-startup", "60", port=free_port())
    server.start()
    try:
        wait_until(lambda: '"event": "loading"' in server.log.read_text(), "the server to load")
        server.signal(number)
        assert server.process.wait(10) in {-number, 128 + number}
    finally:
        server.stop()


def test_the_first_process_of_a_container_can_be_stopped_while_loading(tmp_path: Path) -> None:
    """Although the system spares a first process the signals that it has no handler for."""
    server = ServerProcess(tmp_path, "--simulated-startup", "60")
    server.command[:0] = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*server.command[:6], "true"], check=False, capture_output=True).returncode:
        pytest.skip("this system lets nobody make a namespace of processes")
    server.start()
    try:
        wait_until(lambda: '"event": "loading"' in server.log.read_text(), "the server to load")
        unshare = server.process.pid
        first = int(Path(f"/proc/{unshare}/task/{unshare}/children").read_text())
        os.kill(first, signal.SIGTERM)
        assert server.process.wait(10) == 128 + signal.SIGTERM
    finally:
        server.kill()


def test_children_can_be_stopped(tmp_path: Path) -> None:
    """Listening to signals leaves no mask that child processes would inherit."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import subprocess, sys\n"
        "from server.ops.signals import listen_to_signals\n"
        "listen_to_signals(print)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "child.terminate()\n"
        "sys.exit(child.wait(10) != -15)\n"
    )
    assert subprocess.run([sys.executable, script], timeout=30, check=False).returncode == 0
