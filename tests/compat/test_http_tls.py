"""TLS on the HTTP port: for clients, between Nginx and the servers, and renewed without a restart."""

import os
import ssl
from pathlib import Path

import httpx
import pytest

from deploy.local.certificate import CertificateFiles, make_certificate
from nginx.render import upstream_servers
from tests.support.nginx import NginxProcess
from tests.support.ports import free_port
from tests.support.tls_server import TlsServer
from tests.support.waiting import wait_until

PLAIN = {"query": "red fox", "documents": ["a cat", "the red fox"]}


class HttpsServer(TlsServer):
    """A server that speaks TLS on both of its ports."""

    def __init__(
        self, folder: Path, files: CertificateFiles, *options: str, client: CertificateFiles
    ) -> None:
        self.http_port = free_port()
        super().__init__(folder, files, "--http-port", str(self.http_port), *options, client=client)

    @property
    def url(self) -> str:
        """Where HTTP is answered."""
        return f"https://localhost:{self.http_port}"


def trusting(root: str, client: CertificateFiles | None = None) -> httpx.Client:
    """A client that trusts one authority, in PEM, and perhaps shows a certificate."""
    context = ssl.create_default_context(cadata=root)
    if client is not None:
        context.load_cert_chain(client.certificate, client.key)
    return httpx.Client(verify=context, trust_env=False, timeout=20)


def answers(url: str, client: httpx.Client) -> bool:
    """Whether a connection of its own is let in."""
    try:
        return client.post(f"{url}/rerank", json=PLAIN).status_code == 200
    except httpx.TransportError:
        return False


def test_http_speaks_tls_where_grpc_does(tmp_path: Path, certificate: CertificateFiles) -> None:
    """Keys never travel in the clear because of a second port."""
    with (
        HttpsServer(tmp_path, certificate, client=certificate) as server,
        trusting(certificate.root.read_text()) as client,
    ):
        wait_until(lambda: answers(server.url, client), "HTTPS to answer")
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://localhost:{server.http_port}/health", trust_env=False)


def test_certificates_are_renewed_without_a_restart(tmp_path: Path) -> None:
    """New connections see the new files; a broken file changes nothing; clients' are checked all along."""
    live = make_certificate(tmp_path / "live")
    old_root = live.root.read_text()
    with HttpsServer(tmp_path, live, "--tls-client-authority", str(live.root), client=live) as server:
        with trusting(old_root, live) as client:
            wait_until(lambda: answers(server.url, client), "HTTPS to answer")
        with trusting(old_root) as nobody:
            assert not answers(server.url, nobody)
        whole = live.certificate.read_bytes()
        live.certificate.write_text("not a certificate")
        (tmp_path / "kept").mkdir()
        kept = CertificateFiles(live.root, tmp_path / "kept" / "server.crt", live.key)
        kept.certificate.write_bytes(whole)
        with trusting(old_root, kept) as client:
            assert answers(server.url, client)
        renewed = make_certificate(tmp_path / "renewed")
        for name in ("root.crt", "server.key", "server.crt"):
            os.replace(renewed.root.parent / name, live.root.parent / name)
        new_root = live.root.read_text()
        with trusting(new_root, live) as client:
            assert answers(server.url, client)
        with trusting(new_root) as nobody:
            assert not answers(server.url, nobody)
        with trusting(old_root, live) as old:
            assert not answers(server.url, old)


def test_an_authority_may_have_comments_in_any_language(tmp_path: Path) -> None:
    """At start and after a renewal; clients without its certificate stay out."""
    live = make_certificate(tmp_path / "live")
    root = live.root.read_text()
    live.root.write_text(f"# Autorité des clients\n{root}", encoding="utf-8")
    with HttpsServer(tmp_path, live, "--tls-client-authority", str(live.root), client=live) as server:
        with trusting(root, live) as client:
            wait_until(lambda: answers(server.url, client), "HTTPS to answer")
        live.root.write_bytes(f"# Autorité, renouvelée\n{root}".encode("latin-1"))
        with trusting(root, live) as client:
            assert answers(server.url, client)
        with trusting(root) as nobody:
            assert not answers(server.url, nobody)
    assert "certificates reloaded" in server.log.read_text()


@pytest.mark.parametrize(("name", "status"), [("localhost", 200), ("rerank-server", 503)])
def test_nginx_and_servers_prove_themselves_to_each_other(
    tmp_path: Path, certificate: CertificateFiles, name: str, status: int
) -> None:
    """Over HTTP as over gRPC; a server without the expected name gets nothing."""
    authority = ("--tls-client-authority", str(certificate.root))
    upstream = {
        "HTTP_UPSTREAM_SCHEME": "https",
        "UPSTREAM_TLS_ROOT": str(certificate.root),
        "UPSTREAM_TLS_NAME": name,
        "UPSTREAM_TLS_CERTIFICATE": str(certificate.certificate),
        "UPSTREAM_TLS_CERTIFICATE_KEY": str(certificate.key),
    }
    root = certificate.root.read_text()
    with HttpsServer(tmp_path, certificate, *authority, client=certificate) as server:
        with trusting(root, certificate) as client:
            wait_until(lambda: answers(server.url, client), "HTTPS to answer")
        folder = tmp_path / "nginx"
        nginx = NginxProcess("l7", folder, certificate, [server.address], upstream)
        (folder / "http_servers.conf").write_text(upstream_servers([f"localhost:{server.http_port}"]))
        with nginx, trusting(root) as client:
            assert client.post(f"https://{nginx.address}/rerank", json=PLAIN).status_code == status
