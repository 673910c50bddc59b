"""What Nginx keeps from the servers."""

from pathlib import Path

import grpc
import pytest

from deploy.local.certificate import CertificateFiles
from tests.support.calls import served_by
from tests.support.nginx import NginxProcess
from tests.support.server_process import ServerProcess


@pytest.mark.parametrize("method", [b"/rerank.v1.\xfd/Rerank", b"/x", b"/a.b/c/d", b"/rerank.v1.S/\xc3\xa4"])
def test_names_that_no_method_has_reach_no_server(
    tmp_path: Path, certificate: CertificateFiles, method: bytes
) -> None:
    """They are UNIMPLEMENTED at once; grpc.aio would end its server over one that is not UTF-8."""
    with (
        ServerProcess(tmp_path) as server,
        NginxProcess("l7", tmp_path / "nginx", certificate, [server.address]) as nginx,
        nginx.channel() as channel,
    ):
        call = channel.unary_unary(method)  # type: ignore[arg-type]
        with pytest.raises(grpc.RpcError) as failure:
            call(b"", timeout=10)
        assert failure.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert served_by(channel) == server.name
        assert "gave up" not in server.log.read_text()
