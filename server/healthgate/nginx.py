"""The two things that Nginx needs to hear: the file of members, and when to read it."""

import contextlib
import os
import signal
from collections.abc import Mapping
from pathlib import Path

import structlog

from server.errors import ConfigurationError

__all__ = ["Nginx", "members_text", "reload_nginx"]

# Nginx has read its configuration and started new workers by then, or has refused it.
RELOAD_TIMEOUT_S = 5.0
# After a refusal, doubled with each: something else may be wrong with the configuration, and
# somebody may mend it.
FIRST_RETRY_S, LAST_RETRY_S = 5.0, 60.0
PROC = Path("/proc")

_log = structlog.get_logger("rerank.healthgate")


class Nginx:
    """Keeps Nginx on the members that it is told, in a file with which it can always start.

    A reload that Nginx refuses it only writes into its log, and goes on as before. Here it is
    seen by the workers: a reload that was taken has new ones. If there are none, the file that
    Nginx took last is put back, and the new one is offered again later. Where processes can't
    be looked at (there is no /proc), every reload counts as taken.
    """

    def __init__(self, upstream_file: Path, pid_file: Path) -> None:
        self._upstream_file = upstream_file
        self._pid_file = pid_file
        self._taken = self._on_disk()
        self._old_workers: frozenset[int] | None = None
        """While a reload's outcome is awaited: the workers of before."""
        self._reloaded_s = 0.0
        self._not_before_s = 0.0
        self._retry_s = FIRST_RETRY_S
        # A predecessor may have ended between writing the file and the reload.
        self._reload_pending = True
        self._complaint = ""

    def tell(self, members: Mapping[str, str], now_s: float) -> None:
        """Have Nginx use these members (address: why it is out, or ""); call it again and again."""
        if self._old_workers is not None and not self._outcome(self._old_workers, now_s):
            return
        if now_s < self._not_before_s:
            return
        text = members_text(members)
        try:
            if _directives(text) != _directives(self._on_disk()):
                self._write(text)
                self._reload_pending = True
            if self._reload_pending:
                self._old_workers = reload_nginx(self._pid_file)
                self._reloaded_s, self._reload_pending = now_s, False
                if self._old_workers is None:
                    self._accepted()
        except (OSError, ConfigurationError) as error:
            # Nginx may be restarting; it reads the file then anyway, and a reload more does no harm.
            self._complain("nginx not reloaded; trying again", str(error))

    def _outcome(self, old_workers: frozenset[int], now_s: float) -> bool:
        """Whether the last reload's outcome is known; a refused file is taken back."""
        try:
            refused = not _workers(_master(self._pid_file)) - old_workers
        except ConfigurationError:
            # It ended meanwhile. Whatever is there next has read the file, or will be told.
            self._old_workers, self._reload_pending = None, True
            return True
        if refused and now_s < self._reloaded_s + RELOAD_TIMEOUT_S:
            return False
        self._old_workers = None
        if not refused:
            self._accepted()
            return True
        self._not_before_s, self._reload_pending = now_s + self._retry_s, True
        self._retry_s = min(2 * self._retry_s, LAST_RETRY_S)
        self._complain(
            "nginx refuses its configuration and keeps the members it had; trying again",
            f"no new workers within {RELOAD_TIMEOUT_S:g} s of the reload; see nginx's error log, or nginx -t",
        )
        if self._taken:
            with contextlib.suppress(OSError):
                self._write(self._taken)
        return True

    def _complain(self, event: str, reason: str) -> None:
        """Once, and not each round."""
        if event != self._complaint:
            self._complaint = event
            _log.error(event, reason=reason)

    def _accepted(self) -> None:
        self._taken, self._retry_s = self._on_disk(), FIRST_RETRY_S
        if self._complaint:
            self._complaint = ""
            _log.info("nginx reloaded")

    def _on_disk(self) -> str:
        try:
            return self._upstream_file.read_text(errors="replace")
        except OSError:
            return ""

    def _write(self, text: str) -> None:
        """Nginx reads the old file or the new one, even when the machine loses its power."""
        scratch = self._upstream_file.with_name(f"{self._upstream_file.name}.new")
        with scratch.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, self._upstream_file)


def members_text(members: Mapping[str, str]) -> str:
    """The upstream's members (address: why it is out, or ""), one a line.

    Servers that are out stay listed as `down`, so that a person who opens the file sees the
    whole fleet.
    """
    return "".join(
        f"server {address} max_fails=0{f' down;  # {reason}' if reason else ';'}\n"
        for address, reason in members.items()
    )


def reload_nginx(pid_file: Path) -> frozenset[int] | None:
    """Tell Nginx's master process to read its configuration again; returns its workers of before.

    None where processes can't be looked at.

    Raises:
        ConfigurationError: there is no such process; the message names the file.
    """
    master = _master(pid_file)
    workers = _workers(master) if PROC.joinpath(str(master)).exists() else None
    try:
        os.kill(master, signal.SIGHUP)
    except OSError as error:
        raise ConfigurationError(f"--nginx-pid-file {pid_file}: {error}") from None
    return workers


def _master(pid_file: Path) -> int:
    """The process id in the file, if it is Nginx's: the file of one that was killed stays behind."""
    try:
        pid = int(pid_file.read_text())
        if pid < 1:  # several processes, to kill()
            raise ValueError(f"{pid} is no process")
        os.kill(pid, 0)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"--nginx-pid-file {pid_file}: {error}") from None
    with contextlib.suppress(OSError):
        if not PROC.joinpath(str(pid), "cmdline").read_bytes().startswith(b"nginx: master process"):
            raise ConfigurationError(f"--nginx-pid-file {pid_file}: process {pid} is not Nginx's master")
    return pid


def _workers(master: int) -> frozenset[int]:
    """The children of a process."""
    found = set()
    for status in PROC.glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The second field is a name in parentheses, which may contain anything; then state, parent.
            if int(status.read_text(errors="replace").rpartition(")")[2].split()[1]) == master:
                found.add(int(status.parent.name))
    return frozenset(found)


def _directives(text: str) -> list[str]:
    """Without comments: another reason is no reason to reload."""
    return [line.partition("#")[0].strip() for line in text.splitlines()]
