"""grpcurl, the real binary: a client in another language that knows nothing but reflection."""

import json
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy.local.certificate import CertificateFiles
from tests.support.child_process import REPOSITORY
from tests.support.nginx import NginxProcess
from tests.support.ports import free_port
from tests.support.server_process import ServerProcess

GRPCURL = Path(sysconfig.get_path("scripts")) / "grpcurl"
REQUEST = {"query": "needle in a haystack", "documents": ["hay", "the needle in the haystack", "straw"]}


@dataclass(frozen=True)
class Grpcurl:
    """grpcurl pointed at one address."""

    address: str
    flags: tuple[str, ...]

    def run(self, *arguments: str, data: object = None) -> subprocess.CompletedProcess[str]:
        """Run to the end, whatever it is."""
        flags = [*self.flags, "-max-time", "20", *(("-d", json.dumps(data)) if data is not None else ())]
        return subprocess.run(
            [GRPCURL, *flags, self.address, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def lines(self, *arguments: str) -> list[str]:
        """The lines of a command that must succeed."""
        result = self.run(*arguments)
        assert result.returncode == 0, result.stderr
        return result.stdout.splitlines()

    def call(self, method: str, data: object) -> Any:
        """The JSON answer of a call that must succeed."""
        result = self.run(method, data=data)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)


@dataclass(frozen=True)
class Ways:
    """The ways to one server."""

    directly: Grpcurl
    through_nginx: Grpcurl


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory, certificate: CertificateFiles) -> Iterator[Ways]:
    """One real server, and Nginx with TLS in front of it."""
    folder = tmp_path_factory.mktemp("grpcurl")
    with ExitStack() as stack:
        server = stack.enter_context(ServerProcess(folder, name="curled"))
        nginx = stack.enter_context(NginxProcess("l7", folder / "nginx", certificate, [server.address]))
        yield Ways(Grpcurl(server.address, ("-plaintext",)), _through(nginx))


def _through(nginx: NginxProcess) -> Grpcurl:
    return Grpcurl(nginx.address, ("-cacert", str(nginx.certificate.root)))


@pytest.fixture(params=["directly", "through_nginx"])
def grpcurl(request: pytest.FixtureRequest, ways: Ways) -> Grpcurl:
    """grpcurl by one of the ways."""
    way: Grpcurl = getattr(ways, request.param)
    return way


def test_it_lists_the_services(grpcurl: Grpcurl) -> None:
    """`list` shows the service of the contract, health and reflection."""
    assert {"rerank.v1.RerankService", "grpc.health.v1.Health"} <= set(grpcurl.lines("list"))
    assert grpcurl.lines("list", "rerank.v1.RerankService") == [
        "rerank.v1.RerankService.GetModel",
        "rerank.v1.RerankService.Rerank",
        "rerank.v1.RerankService.RerankStream",
    ]


def test_it_describes_the_contract(grpcurl: Grpcurl) -> None:
    """`describe` shows the methods of the service and the fields of a message."""
    service = "\n".join(grpcurl.lines("describe", "rerank.v1.RerankService"))
    assert "rpc Rerank ( .rerank.v1.RerankRequest ) returns ( .rerank.v1.RerankResponse );" in service
    message = "\n".join(grpcurl.lines("describe", "rerank.v1.RerankRequest"))
    assert "string query = 1;" in message
    assert "repeated string documents = 2;" in message


@pytest.mark.parametrize("service", ["", "rerank.v1.RerankService"])
def test_it_checks_health(grpcurl: Grpcurl, service: str) -> None:
    """Health of the server and of the service is SERVING."""
    assert grpcurl.call("grpc.health.v1.Health/Check", {"service": service}) == {"status": "SERVING"}


def test_it_reranks(grpcurl: Grpcurl) -> None:
    """A query typed as JSON is answered with the right document first."""
    answer = grpcurl.call("rerank.v1.RerankService/Rerank", {**REQUEST, "top_n": 1, "return_documents": True})
    assert [(result["index"], result["document"]) for result in answer["results"]] == [
        (1, "the needle in the haystack")
    ]
    assert 0 <= answer["results"][0]["relevance_score"] <= 1


def test_it_streams(grpcurl: Grpcurl) -> None:
    """A query on a stream is answered under its id."""
    answer = grpcurl.call("rerank.v1.RerankService/RerankStream", {"id": "first", "request": REQUEST})
    assert answer["id"] == "first"
    assert answer["response"]["results"][0]["index"] == 1


def test_it_shows_errors_of_the_server(grpcurl: Grpcurl) -> None:
    """A blank query is InvalidArgument and names the field."""
    result = grpcurl.run("rerank.v1.RerankService/Rerank", data={"query": " ", "documents": ["a"]})
    assert result.returncode != 0
    assert "Code: InvalidArgument" in result.stderr
    assert "query" in result.stderr


def test_it_shows_errors_of_the_balancer(tmp_path: Path, certificate: CertificateFiles) -> None:
    """Without any server a Go client reads Unavailable, since it trusts grpc-status only with HTTP 200."""
    proto = ("-import-path", str(REPOSITORY / "proto"), "-proto", "rerank/v1/rerank.proto")
    with NginxProcess("l7", tmp_path / "nginx", certificate, [f"127.0.0.1:{free_port()}"]) as nginx:
        way = _through(nginx)
        blind = Grpcurl(way.address, (*way.flags, *proto))
        result = blind.run("rerank.v1.RerankService/Rerank", data=REQUEST)
    assert "Code: Unavailable" in result.stderr
    assert "no server can answer" in result.stderr
