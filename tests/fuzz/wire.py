"""A campaign on the wire: many attacks, a server that lives, and a witness."""

import random
import time
from collections import Counter
from dataclasses import dataclass, field

from tests.fleet.chaos.processes import open_descriptors, resident_kib
from tests.fuzz.attacks import ATTACKS, Attack, Target
from tests.fuzz.witness import Witness
from tests.support.server_process import ServerProcess
from tests.support.waiting import wait_until

__all__ = ["INSIDES", "Campaign", "attack_server"]

INSIDES = (b"Traceback", b'File "', b"site-packages", b".py\x22", b"Exception calling")
"""What an answer must not contain."""
# Of a server's connections; those that were attacked are gone soon after.
DESCRIPTOR_SLACK = 8


@dataclass(slots=True)
class Campaign:
    """What was sent, and what it did."""

    cases: Counter[str] = field(default_factory=Counter)
    leaks: list[str] = field(default_factory=list)
    died: str = ""
    witness_answers: int = 0
    witness_wrong: int = 0
    witness_errors: list[str] = field(default_factory=list)
    rss_growth_mib: float = 0.0
    descriptors_left: int = 0
    reopened: int = 0
    """How often grpc.aio gave up and the port was opened again."""
    seconds: float = 0.0

    @property
    def server_held(self) -> bool:
        """Whether the server lived, told nothing, and served the witness."""
        unwell = self.died or self.leaks or self.witness_wrong or self.witness_errors
        return not unwell and self.witness_answers > 0 and self.descriptors_left <= DESCRIPTOR_SLACK


def attack_server(
    server: ServerProcess, cases: int, *, seed: int, attacks: tuple[Attack, ...] = ATTACKS
) -> Campaign:
    """Attack `cases` times, each way by its share, while a witness calls properly."""
    campaign, chance = Campaign(), random.Random(seed)
    target = Target("127.0.0.1", server.port)
    pid = server.process.pid
    descriptors, memory_kib = open_descriptors(pid), resident_kib(pid)
    started_s = time.monotonic()
    with Witness(server.address) as witness:
        for attack in chance.choices(attacks, [attack.share for attack in attacks], k=cases):
            _attack(attack, target, chance.randrange(2**32), server, campaign)
            if campaign.died:
                break
        wait_until(lambda: witness.answered or witness.errors, "the witness")
    campaign.witness_answers, campaign.witness_wrong = witness.answered, witness.wrong
    campaign.witness_errors = witness.errors
    campaign.seconds = time.monotonic() - started_s
    if server.running:
        campaign.rss_growth_mib = (resident_kib(pid) - memory_kib) / 1024
        wait_until(lambda: open_descriptors(pid) <= descriptors + DESCRIPTOR_SLACK, "connections to end")
        campaign.descriptors_left = max(0, open_descriptors(pid) - descriptors)
    campaign.reopened = server.log.read_text(errors="replace").count("opening the port again")
    return campaign


def _attack(attack: Attack, target: Target, seed: int, server: ServerProcess, campaign: Campaign) -> None:
    try:
        answer = attack.run(target, random.Random(seed))
    except ConnectionError:
        # The port is opened again after grpc.aio has given up; longer than that is an outage.
        try:
            wait_until(lambda: server.health() or not server.running, "the port to be open")
        except AssertionError as error:
            campaign.died = f"{attack.name}, seed {seed}: {error}"
        answer = b""
    campaign.cases[attack.name] += 1
    if any(inside in answer for inside in INSIDES):
        campaign.leaks.append(f"{attack.name}, seed {seed}: {answer[-300:]!r}")
    if not server.running:
        campaign.died = (
            f"{attack.name}, seed {seed}: {server.process.returncode}: {server.log_tail()[-1000:]}"
        )
