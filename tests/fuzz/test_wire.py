"""Bad bytes, briefly."""

from pathlib import Path

from tests.fuzz.attacks import ATTACKS, Attack, Target
from tests.fuzz.frames import PREFACE, frame, settings
from tests.fuzz.wire import attack_server
from tests.support.server_process import ServerProcess

OPTIONS = ("--max-tokens", "512", "--pair-cache-mib", "0")
RARE = tuple(Attack(attack.name, 1, attack.run) for attack in ATTACKS if attack.share <= 15)


def test_nothing_on_the_wire_ends_the_server(tmp_path: Path) -> None:
    """The server lives, tells nothing of its insides, and answers a proper client meanwhile."""
    with ServerProcess(tmp_path, *OPTIONS) as server:
        campaign = attack_server(server, 500, seed=1)
        assert campaign.server_held, campaign
        assert server.stop() == 0


def test_rare_and_costly_attacks(tmp_path: Path) -> None:
    """Bombs, floods and half-open connections, each a few times, cost neither memory nor descriptors."""
    with ServerProcess(tmp_path, *OPTIONS) as server:
        campaign = attack_server(server, 30, seed=2, attacks=RARE)
        assert campaign.server_held, campaign
        assert campaign.rss_growth_mib < 200


def test_a_peer_can_not_write_into_the_log(tmp_path: Path) -> None:
    """What a client says when it leaves does not become a line of the server's log."""
    with ServerProcess(tmp_path) as server:
        forged = b'\n{"event": "forged", "level": "info"}\n'
        goaway = frame(0x7, 0, 0, bytes(4) + b"\x00\x00\x00\x02" + forged)
        Target("127.0.0.1", server.port).send(PREFACE + settings() + goaway, patience_s=0.5)
        assert server.stop() == 0
    assert "forged" not in server.log.read_text(errors="replace")
