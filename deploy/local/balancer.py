"""Starts Nginx for a supervisor, also after its master process was killed.

    python -m deploy.local.balancer NGINX RUN_DIR

A killed master leaves its workers, which go on and keep the port, so that no successor can
bind it. They are told to finish first. On systems without /proc they are not found.
"""

import contextlib
import grp
import os
import pwd
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = ["end_orphans", "foreground", "main"]

# For their calls in flight: meanwhile nobody listens.
PATIENCE_S = 1.0
POLL_INTERVAL_S = 0.02
PROC = Path("/proc")


def end_orphans(pid_file: Path) -> list[int]:
    """End the workers of the master that wrote the file, if it is dead; returns their process ids."""
    try:
        master = int(pid_file.read_text())
    except (OSError, ValueError):
        return []
    if _state(master) not in {"", "Z"}:
        return []
    found: set[int] = set()
    for number in (signal.SIGQUIT, signal.SIGKILL):
        # Looked for again: the number of one that has ended may be somebody else's by now.
        orphans = _workers_of(master)
        found.update(orphans)
        for pid in orphans:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        give_up_s = time.monotonic() + PATIENCE_S
        while _workers_of(master) and time.monotonic() < give_up_s:
            time.sleep(POLL_INTERVAL_S)
    return sorted(found)


def main(arguments: Sequence[str] | None = None) -> None:
    """Become Nginx, in the foreground."""
    nginx, run_dir = sys.argv[1:] if arguments is None else arguments
    folder = Path(run_dir) / "nginx"
    if orphans := end_orphans(folder / "nginx.pid"):
        print(f"ended the workers of a killed master: {', '.join(map(str, orphans))}", flush=True)
    os.execv(nginx, [nginx, "-p", run_dir, "-c", str(folder / "nginx.conf"), "-g", foreground()])


def foreground() -> str:
    """Directives for Nginx's `-g`: in the foreground, and with workers who can reach their files.

    Workers of a master that is root become nobody, who may not enter root's folders; large bodies
    over HTTP, which are kept in files, would then be answered 500.
    """
    if os.geteuid() != 0:
        return "daemon off;"
    return f"daemon off; user {pwd.getpwuid(0).pw_name} {grp.getgrgid(os.getegid()).gr_name};"


def _workers_of(master: int) -> list[int]:
    """Nginx's workers in the process group of `master`, which a supervisor makes for it alone.

    While one of them lives, the group does, and no other process or group gets its number.
    """
    found = []
    for folder in PROC.glob("[0-9]*"):
        pid = int(folder.name)
        with contextlib.suppress(OSError):
            is_worker = (folder / "cmdline").read_bytes().startswith(b"nginx: worker")
            if is_worker and os.getpgid(pid) == master and _state(pid) != "Z":
                found.append(pid)
    return found


def _state(pid: int) -> str:
    """One letter, Z for a zombie; empty when there is no such process."""
    try:
        # The second field is a name in parentheses, which may contain anything.
        return (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return ""


if __name__ == "__main__":
    main()
