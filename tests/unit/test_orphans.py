"""The workers of a killed master of Nginx are ended, and nobody else."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.balancer import end_orphans
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

TITLE = "nginx: worker process"
# What a worker does when it is told to finish.
ENDS = "exit 0"
STAYS = ":"
# Its number is another process's now: that can't be waited for, so it becomes another one itself.
BECOMES_ANOTHER = "exec sleep 60"


@pytest.fixture
def master() -> Iterator[subprocess.Popen[bytes]]:
    """A process that led a group of its own, and is dead."""
    with subprocess.Popen(["true"], process_group=0) as dead:
        wait_until(lambda: f"{dead.pid} (true) Z" in Path(f"/proc/{dead.pid}/stat").read_text(), "its end")
        yield dead


@pytest.mark.parametrize(("when_told", "outcome"), [(ENDS, 0), (STAYS, -9), (BECOMES_ANOTHER, None)])
def test_orphans_end_and_nobody_else(
    tmp_path: Path, master: subprocess.Popen[bytes], when_told: str, outcome: int | None
) -> None:
    """By themselves if they can, else by force; a number that is somebody else's by then gets no signal."""
    pid_file = tmp_path / "nginx.pid"
    pid_file.write_text(str(master.pid))
    ready = tmp_path / "ready"
    script = f"trap '{when_told}' QUIT; : >{ready}; while :; do sleep 0.05; done"
    with subprocess.Popen(
        [TITLE, "-c", script], executable=shutil.which("bash"), process_group=master.pid
    ) as worker:
        try:
            wait_until(ready.exists, "the worker to run")
            assert end_orphans(pid_file) == [worker.pid]
            assert (worker.poll() if outcome is None else worker.wait(10)) == outcome
        finally:
            worker.kill()
