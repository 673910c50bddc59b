"""What Nginx itself says to HTTP clients that are wrong: HTTP's statuses, and JSON that says why."""

import json
import re
import socket
from collections.abc import Iterator

import pytest

from deploy.local.certificate import CertificateFiles
from tests.compat.front_door import FrontDoor, front_door
from tests.support.waiting import wait_until

HOST = b"host: localhost\r\n"
LONG = b"x" * 70_000


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory, certificate: CertificateFiles) -> Iterator[FrontDoor]:
    with front_door(tmp_path_factory.mktemp("door"), certificate, servers=1) as opened:
        yield opened


def say(port: int, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send bytes as they are; status, headers and body of what comes back."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(request)
        with connection.makefile("rb") as answer:
            status = int(answer.readline().split()[1])
            lines = iter(lambda: answer.readline().decode("latin-1").strip(), "")
            headers = dict(line.lower().split(": ", 1) for line in lines)
            body = b"" if request.startswith(b"HEAD") else answer.read(int(headers.get("content-length", 0)))
    return status, headers, body


CASES = {
    "no request": (b"nonsense\r\n\r\n", 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n", 400),
    "a broken header": (b"GET / HTTP/1.1\r\n" + HOST + b"x\x00: y\r\n\r\n", 400),
    "a length that is none": (b"POST /rerank HTTP/1.1\r\n" + HOST + b"content-length: x\r\n\r\n", 400),
    "a broken chunk": (
        b"POST /rerank HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
        400,
    ),
    "a path above the root": (b"GET /../x HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "HTTP/2 from nowhere": (b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", 400),
    "a method nobody has": (b"TRACE / HTTP/1.1\r\n" + HOST + b"\r\n", 405),
    "a long path": (b"GET /" + LONG + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414),
    "a long header": (b"GET / HTTP/1.1\r\n" + HOST + b"x: " + LONG + b"\r\n\r\n", 431),
    "a coding nobody knows": (b"POST / HTTP/1.1\r\n" + HOST + b"transfer-encoding: x\r\n\r\n", 501),
    "another HTTP": (b"GET / HTTP/7.0\r\n" + HOST + b"\r\n", 505),
    "a path of gRPC": (b"GET /rerank.v1.RerankService/Rerank HTTP/1.1\r\n" + HOST + b"\r\n", 415),
    "a stream of gRPC": (b"GET /rerank.v1.RerankService/RerankStream HTTP/1.1\r\n" + HOST + b"\r\n", 415),
    "health of gRPC": (b"GET /grpc.health.v1.Health/Check HTTP/1.1\r\n" + HOST + b"\r\n", 415),
    "figures": (b"GET /metrics HTTP/1.1\r\n" + HOST + b"\r\n", 404),
    "a page of errors": (b"GET /@http/internal HTTP/1.1\r\n" + HOST + b"\r\n", 404),
    "too much": (b"POST /rerank HTTP/1.1\r\n" + HOST + b"content-length: 99999999\r\n\r\n", 413),
}


@pytest.mark.parametrize(("request_bytes", "status"), CASES.values(), ids=CASES)
def test_a_wrong_request_gets_its_status_and_a_reason_in_json(
    door: FrontDoor, request_bytes: bytes, status: int
) -> None:
    """In the shape of the servers' errors, with an id, and never 200."""
    answered, headers, body = say(door.plain_port, request_bytes)
    assert (answered, headers["content-type"]) == (status, "application/json")
    error = json.loads(body)
    assert error["message"] == error["detail"] == error["error"]["message"]
    assert error["message"].startswith("load balancer: ")
    assert error["error"]["code"] == status
    assert re.fullmatch(r"[0-9a-f]{32}", headers["x-request-id"])
    assert "grpc-status" not in headers


def test_plain_http_where_tls_is_spoken_says_so(door: FrontDoor) -> None:
    """A client that forgot the s in https reads what to do."""
    status, headers, body = say(door.port, b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
    assert (status, headers["content-type"]) == (400, "application/json")
    assert "https://" in json.loads(body)["message"]


@pytest.mark.parametrize("method", [b"HEAD", b"OPTIONS", b"DELETE"])
@pytest.mark.parametrize("path", [b"/", b"/health", b"/v1/models", b"/rerank"])
def test_every_method_is_the_servers_to_answer(door: FrontDoor, method: bytes, path: bytes) -> None:
    """Nginx passes it on, and the answer back."""
    request = method + b" " + path + b" HTTP/1.1\r\n" + HOST + b"\r\n"
    through, direct = (say(port, request) for port in (door.plain_port, door.servers[0].http_port))
    assert (through[0], through[2]) == (direct[0], direct[2])
    assert through[1].get("content-length") == direct[1].get("content-length")


def test_head_of_nginxs_own_pages_has_no_body(door: FrontDoor) -> None:
    """But the length of the one that GET would bring."""
    status, headers, _ = say(door.plain_port, b"HEAD /metrics HTTP/1.1\r\n" + HOST + b"\r\n")
    assert (status, int(headers["content-length"]) > 0) == (404, True)


def test_the_access_log_has_the_path_that_was_asked_for(door: FrontDoor) -> None:
    """And not the page of the error, nor the query."""
    say(door.plain_port, b"TRACE /some/path?key=secret HTTP/1.1\r\n" + HOST + b"\r\n")
    entry = wait_until(lambda: door.calls("/some/path"), "the access log")[0]
    assert entry["http_status"] == "405"
    assert "secret" not in door.access_log.read_text()
