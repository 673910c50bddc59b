"""HTTP and gRPC through the shipped Nginx, on one address."""

import signal
import ssl
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from deploy.local.certificate import CertificateFiles
from tests.compat.front_door import FrontDoor, front_door
from tests.support.calls import served_by
from tests.support.waiting import wait_until

PLAIN = {"query": "red fox", "documents": ["a cat", "the red fox"]}


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory, certificate: CertificateFiles) -> Iterator[FrontDoor]:
    with front_door(tmp_path_factory.mktemp("door"), certificate, MAX_REQUEST_SIZE="1m") as opened:
        yield opened


@pytest.fixture
def http(door: FrontDoor) -> Iterator[httpx.Client]:
    trusting = ssl.create_default_context(cafile=str(door.certificate.root))
    with httpx.Client(base_url=door.url, verify=trusting, trust_env=False, timeout=20) as client:
        yield client


def test_both_protocols_are_answered_on_one_address(door: FrontDoor, http: httpx.Client) -> None:
    """gRPC by its paths, HTTP beside it, and HTTP without TLS where that was asked for."""
    with door.channel() as channel:
        assert served_by(channel).startswith("server-")
    assert http.post("/rerank", json=PLAIN).json()["ranked_results"][0]["text"] == "the red fox"
    plain = httpx.post(door.plain_url + "/rerank", json=PLAIN, trust_env=False)
    assert plain.json()["ranked_results"][0]["text"] == "the red fox"


def test_requests_are_spread_over_the_servers(http: httpx.Client) -> None:
    """One client's requests reach all of them."""
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: http.post("/rerank", json=PLAIN), range(40)))
    served = Counter(answer.headers["x-served-by"] for answer in answers)
    assert set(served) == {"server-0", "server-1"}
    assert min(served.values()) >= 8


def test_ids_pass_through_and_reach_the_access_log(door: FrontDoor, http: httpx.Client) -> None:
    """One id in all logs."""
    answer = http.post("/rerank", json=PLAIN, headers={"x-request-id": "through-1"})
    assert answer.headers["x-request-id"] == "through-1"
    # Nginx writes its line once the answer is out, so the client may have it first.
    wait_until(
        lambda: "through-1" in [entry["request_id"] for entry in door.calls("/rerank")], "the access log"
    )


def test_the_balancers_own_errors_have_the_servers_shape(http: httpx.Client) -> None:
    """413 names the limit, in a body that all readers of errors understand."""
    answer = http.post("/rerank", content=b"x" * 1_100_000)
    assert answer.status_code == 413
    assert "1m" in answer.json()["message"] == answer.json()["error"]["message"]
    assert http.get("/metrics").status_code == 404


def test_a_stopped_server_costs_no_request(
    tmp_path_factory: pytest.TempPathFactory, certificate: CertificateFiles
) -> None:
    """While a server drains and when it is gone, requests go to the other; with none left it is 503."""
    folder = tmp_path_factory.mktemp("stop")
    with front_door(folder, certificate) as door, httpx.Client(trust_env=False, timeout=20) as client:
        url = door.plain_url + "/rerank"
        first, second = door.servers
        first.signal(signal.SIGTERM)
        while first.running:
            assert client.post(url, json=PLAIN).status_code == 200
        assert {client.post(url, json=PLAIN).headers["x-served-by"] for _ in range(6)} == {second.name}
        second.kill()
        answer = client.post(url, json=PLAIN)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert "no server can answer" in answer.json()["message"]
