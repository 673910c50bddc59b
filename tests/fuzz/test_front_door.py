"""What Nginx keeps from the servers."""

from pathlib import Path
from typing import Any

import grpc
import pytest

from deploy.local.certificate import CertificateFiles
from tests.support.calls import served_by
from tests.support.nginx import NginxProcess
from tests.support.server_process import ServerProcess

NAMES = (
    b"/rerank.v1.\xfd/Rerank",
    b"/x",
    b"/health",
    b"/a.b/c/d",
    b"/rerank.v1.S/\xc3\xa4",
    b"/grpc.health.v1.Health/\xfd",
    b"/rerank.v1.RerankService/Rerank?\xfd",
    b"/rerank.v1.RerankService/RerankStream?\xfd",
)


def test_names_that_no_method_has_reach_no_server(tmp_path: Path, certificate: CertificateFiles) -> None:
    """They are UNIMPLEMENTED at once; grpc.aio would end its server over one that is not UTF-8."""
    with (
        ServerProcess(tmp_path) as server,
        NginxProcess("l7", tmp_path / "nginx", certificate, [server.address]) as nginx,
        nginx.channel() as channel,
    ):
        for name in NAMES:
            call: Any = channel.unary_unary(name)  # type: ignore[arg-type]
            with pytest.raises(grpc.RpcError) as failure:
                call(b"", timeout=10)
            assert failure.value.code() is grpc.StatusCode.UNIMPLEMENTED, name
        assert served_by(channel) == server.name
        assert "gave up" not in server.log.read_text()


def test_without_nginx_the_port_is_opened_again(tmp_path: Path) -> None:
    """A server that grpc.aio gave up answers again at once, in the same process, and drains as ever."""
    with ServerProcess(tmp_path) as server, grpc.insecure_channel(server.address) as channel:
        for _ in range(3):
            call: Any = channel.unary_unary(NAMES[0])  # type: ignore[arg-type]
            with pytest.raises(grpc.RpcError):
                call(b"", timeout=10)
            server.wait_ready()
        assert server.log.read_text().count("opening the port again") == 3
        assert server.stop() == 0
