"""Nginx as a supervisor handles it: reloaded, and stopped and started again."""

import signal
import subprocess

from tests.support.nginx import RETIRED, WORKERS, NginxProcess
from tests.support.waiting import wait_until

__all__ = ["ChaosNginx"]

# Connections of layer 4 never end by themselves; deploy/local gives Nginx 5 s as well.
PATIENCE_S = 3.0


class ChaosNginx(NginxProcess):
    """The balancer of a fleet that is being broken."""

    def reload(self) -> None:
        """Read the configuration again; return when every old worker has stopped listening."""
        retired = self._workers(RETIRED)
        self.signal(signal.SIGHUP)
        wait_until(lambda: self._workers(RETIRED) >= retired + WORKERS, "Nginx to reload")

    def restart(self) -> None:
        """Finish what is under way, end, and start again; for a moment nobody listens."""
        self.signal(signal.SIGQUIT)
        try:
            self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGTERM)
            self.process.wait()
        self.start_again()

    def start_again(self) -> None:
        """Start once more, after whatever has ended it; return when it listens."""
        self.start()
        wait_until(self._accepts, f"Nginx to listen on port {self.port}")
