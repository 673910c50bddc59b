"""Ask everybody, decide, tell Nginx; again and again."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import structlog

from server.errors import ConfigurationError
from server.healthgate.nginx import is_address, reload_nginx, write_members
from server.healthgate.probe import Probe
from server.healthgate.rotation import Answer, Rotation, RotationPolicy

__all__ = ["Gate", "GateOptions"]

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

    def __init__(self, options: GateOptions) -> None:
        self._options = options
        self._rotation = Rotation(options.policy)
        self._probes: dict[str, Probe] = {}
        self._asking: dict[str, asyncio.Task[Answer]] = {}
        self._reload_pending = False
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
            for task in self._asking.values():
                task.cancel()
            for probe in self._probes.values():
                await probe.close()

    async def step(self) -> None:
        """One round. A slow server delays its own answer and nobody else's."""
        await self._follow_servers()
        for address, probe in self._probes.items():
            if address not in self._asking:
                self._asking[address] = asyncio.create_task(probe.check())
        first_round = not self._members
        if self._asking:
            # Before the first answers nothing is known, and nothing should change.
            patience_s = self._options.timeout_s * 2 if first_round else self._options.interval_s
            await asyncio.wait(self._asking.values(), timeout=patience_s)
        now_s = time.monotonic()
        for address, task in list(self._asking.items()):
            if task.done():
                self._rotation.observe(address, task.result(), now_s)
                del self._asking[address]
        self._tell_nginx()

    async def _follow_servers(self) -> None:
        addresses = self._listed()
        if addresses is None or list(self._probes) == addresses:
            return
        for address in [address for address in self._probes if address not in addresses]:
            task = self._asking.pop(address, None)
            if task is not None:
                task.cancel()
            await self._probes.pop(address).close()
        options = self._options
        self._probes = {
            address: self._probes.get(address) or Probe(address, options.credentials, options.timeout_s)
            for address in addresses
        }
        self._rotation.set_servers(addresses)
        _log.info("watching", servers=len(addresses))

    def _listed(self) -> list[str] | None:
        """The servers of the options or of the file; None while the file makes no sense."""
        if self._options.servers_file is None:
            return list(dict.fromkeys(self._options.servers))
        try:
            lines = self._options.servers_file.read_text().splitlines()
        except OSError as error:
            _log.error("list of servers not read; the old one stays", error=str(error))
            return None
        addresses = [line.partition("#")[0].strip() for line in lines]
        addresses = list(dict.fromkeys(filter(None, addresses)))
        wrong = [address for address in addresses if not is_address(address)]
        if wrong or not addresses:
            _log.error("list of servers is wrong; the old one stays", wrong=wrong[:3])
            return None
        return addresses

    def _tell_nginx(self) -> None:
        members = self._rotation.members()
        for address, reason in members.items():
            before = self._members.get(address)
            if before is None or bool(before) != bool(reason):
                _log.info("out" if reason else "in", server=address, reason=reason)
        if self._rotation.fails_open and not self._failed_open:
            _log.error("no server serves: all stay in rotation", servers=len(members))
        self._failed_open = self._rotation.fails_open
        self._members = members
        if not members:
            return
        if write_members(self._options.upstream_file, members):
            self._reload_pending = True
        if self._reload_pending:
            try:
                reload_nginx(self._options.nginx_pid_file)
                self._reload_pending = False
            except ConfigurationError as error:
                # Nginx may be restarting; it reads the file then anyway, and a reload more does no harm.
                _log.warning("nginx not reloaded; trying again", error=str(error))
