"""Ask everybody, decide, tell Nginx; again and again."""

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import structlog

from server.errors import ConfigurationError
from server.healthgate.addresses import MAX_SERVERS, read_servers
from server.healthgate.names import Names
from server.healthgate.nginx import Nginx
from server.healthgate.probe import Probe
from server.healthgate.rotation import Answer, Rotation, RotationPolicy

__all__ = ["Gate", "GateOptions"]

# Of a gate that starts: a name that it doesn't know yet would take its healthy server out.
FIRST_LOOKUPS_S = 30.0

_log = structlog.get_logger("rerank.healthgate")


@dataclass(frozen=True, slots=True)
class GateOptions:
    """What to watch, and whom to tell."""

    upstream_file: Path
    nginx_pid_file: Path
    servers: Sequence[str] = ()
    servers_file: Path | None = None
    """Instead of `servers`: one HOST:PORT a line, read again when it changes."""
    interval_s: float = 0.5
    timeout_s: float = 1.0
    credentials: grpc.ChannelCredentials | None = None
    policy: RotationPolicy = field(default_factory=RotationPolicy)


class Gate:
    """Keeps Nginx's members to the servers that serve."""

    def __init__(self, options: GateOptions, names: Names | None = None) -> None:
        self._options = options
        self._rotation = Rotation(options.policy)
        self._names = names or Names()
        self._names_settled = False
        self._nginx = Nginx(options.upstream_file, options.nginx_pid_file)
        self._listed: list[str] = list(dict.fromkeys(options.servers))
        self._complaint = ""
        self._probes: dict[str, Probe] = {}
        self._asking: dict[str, asyncio.Task[Answer]] = {}
        self._failed_open = False
        self._members: dict[str, str] = {}

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                started_s = time.monotonic()
                await self.step()
                await asyncio.sleep(max(0.0, self._options.interval_s - (time.monotonic() - started_s)))
        finally:
            await self.close()

    async def close(self) -> None:
        """Hang up on everybody."""
        for task in self._asking.values():
            task.cancel()
        for probe in self._probes.values():
            await probe.close()

    async def step(self) -> None:
        """One round. A slow server delays its own answer and nobody else's."""
        first_round = not self._members
        # Before the first answers nothing is known, and nothing should change.
        patience_s = self._options.timeout_s * 2 if first_round else self._options.interval_s
        self._read_list()
        if self._listed and not self._names_settled:
            await self._names.settle(self._listed, FIRST_LOOKUPS_S)
            self._names_settled = True
        await self._follow_servers()
        for address, probe in self._probes.items():
            if address not in self._asking:
                self._asking[address] = asyncio.create_task(probe.check())
        if self._asking:
            await asyncio.wait(self._asking.values(), timeout=patience_s)
        now_s = time.monotonic()
        for address, task in list(self._asking.items()):
            if task.done():
                self._rotation.observe(address, task.result(), now_s)
                del self._asking[address]
        self._tell_nginx(now_s)

    async def _follow_servers(self) -> None:
        found = self._names.endpoints(self._listed, time.monotonic())
        endpoints = dict(itertools.islice(found.items(), MAX_SERVERS))
        if list(self._probes) == list(endpoints):
            return
        for address in [address for address in self._probes if address not in endpoints]:
            task = self._asking.pop(address, None)
            if task is not None:
                task.cancel()
            await self._probes.pop(address).close()
        options = self._options
        self._probes = {
            address: self._probes.get(address) or Probe(address, host, options.credentials, options.timeout_s)
            for address, host in endpoints.items()
        }
        self._rotation.set_servers(endpoints)
        _log.info("watching", servers=len(endpoints), too_many=len(found) - len(endpoints))

    def _read_list(self) -> None:
        """Follow the file; while it makes no sense the old list stays."""
        if self._options.servers_file is None:
            return
        try:
            addresses, wrong = read_servers(self._options.servers_file)
            complaint = f"no addresses of servers: {', '.join(wrong[:3])}" if wrong else ""
        except ConfigurationError as error:
            addresses, complaint = [], str(error)
        if self._listed:
            remedy = "the old one stays"
        else:
            # What makes sense of the new one is better than to watch nobody.
            remedy = "its good lines are taken" if addresses else "nobody is watched"
        if addresses and (not complaint or not self._listed):
            self._listed = addresses
        if complaint and complaint != self._complaint:
            _log.error(f"list of servers is wrong; {remedy}", reason=complaint)
        self._complaint = complaint

    def _tell_nginx(self, now_s: float) -> None:
        members = self._rotation.members()
        for address, reason in members.items():
            before = self._members.get(address)
            if before is None or bool(before) != bool(reason):
                _log.info("out" if reason else "in", server=address, reason=reason)
        if self._rotation.fails_open and not self._failed_open:
            _log.error("no server serves: all stay in rotation", servers=len(members))
        self._failed_open = self._rotation.fails_open
        self._members = members
        if members:
            self._nginx.tell(members, now_s)
