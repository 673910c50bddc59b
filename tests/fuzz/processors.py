"""Whether the machine gave a process the processor when it wanted it; Linux only."""

import os
from pathlib import Path

__all__ = ["ProcessorShare", "processor_s"]

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def processor_s(pid: int) -> float:
    """Processor time that a process has used, on all cores; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


class ProcessorShare:
    """How much of a process's time the machine's other work took, from now on.

    What took 3 s of which the process waited 2 s for a processor takes 1 s where it is alone.
    """

    def __init__(self, pid: int, *companions: int) -> None:
        """Watch `pid`; `companions` would use processors on any machine, so they are not "other work"."""
        self._pid = pid
        self._ours = (pid, *companions)
        self._ran_s, self._waited_s = _scheduled_s(pid)
        self._ours_s = sum(map(processor_s, self._ours))
        self._busy_s, self._idle_s = _machine_s()

    def now(self) -> float:
        """The share, in (0, 1]; 1 on a machine with nothing else to do."""
        ran_s, waited_s = _scheduled_s(self._pid)
        ran_s, waited_s = ran_s - self._ran_s, waited_s - self._waited_s
        busy_s, idle_s = _machine_s()
        busy_s, idle_s = busy_s - self._busy_s, idle_s - self._idle_s
        others_s = busy_s - (sum(map(processor_s, self._ours)) - self._ours_s)
        if ran_s <= 0 or waited_s <= 0 or others_s <= 0:
            return 1.0
        # Threads that wait for each other's processors are the process's own doing, and a machine with
        # processors to spare holds nobody up: it takes both, waiting and others, to blame others.
        return min(1.0, max(ran_s / (ran_s + waited_s), 1 - others_s / (busy_s + idle_s)))


def _scheduled_s(pid: int) -> tuple[float, float]:
    """(time on a processor, time spent waiting for one), of all threads that still run."""
    ran_ns = waited_ns = 0
    for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        try:
            ran, waited, _ = file.read_text().split()
        except OSError:
            continue  # the thread ended just now
        ran_ns += int(ran)
        waited_ns += int(waited)
    return ran_ns / 1e9, waited_ns / 1e9


def _machine_s() -> tuple[float, float]:
    """(busy, idle) time of all processors; what a host took away counts as busy."""
    user, nice, system, idle, io_wait, *more = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + sum(more)) / _TICKS_PER_S, (idle + io_wait) / _TICKS_PER_S
