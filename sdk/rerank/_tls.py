"""How a channel is secured, and when it may go without."""

import ipaddress
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import grpc

__all__ = ["TLSConfig", "check_target", "is_loopback", "resolve_tls"]

PEM_START = b"-----BEGIN "

PemSource = bytes | str | os.PathLike[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class TLSConfig:
    """Certificates for a TLS channel; bytes are PEM, anything else is the path of a PEM file.

    `root_certificates` is whom to trust (default: gRPC's bundled public authorities).
    `client_certificate` and `client_key` prove who the client is, for servers that ask
    (mutual TLS). `server_name` is the name to expect in the server's certificate, when it
    differs from the target, as with an address or a port-forward.

    Example:
        RerankClient("10.0.0.7:443", tls=TLSConfig(root_certificates="ca.pem", server_name="lb.example"))
    """

    root_certificates: PemSource | None = None
    client_certificate: PemSource | None = None
    client_key: PemSource | None = field(default=None, repr=False)
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.client_certificate is None) != (self.client_key is None):
            missing = "client_key" if self.client_key is None else "client_certificate"
            raise ValueError(f"{missing}: mutual TLS needs both client_certificate and client_key")

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files and return what gRPC needs."""
        return grpc.ssl_channel_credentials(
            root_certificates=_read_pem("root_certificates", self.root_certificates),
            private_key=_read_pem("client_key", self.client_key),
            certificate_chain=_read_pem("client_certificate", self.client_certificate),
        )


def resolve_tls(tls: TLSConfig | bool | None, target: str) -> TLSConfig | None:
    """Return how to secure the channel, or None for plain text.

    Secure unless told otherwise, except on loopback, where nobody has certificates and
    nothing leaves the machine.
    """
    if isinstance(tls, TLSConfig):
        return tls
    if tls is None:
        tls = not is_loopback(target)
    return TLSConfig() if tls else None


def check_target(target: str) -> None:
    """Refuse what gRPC would take for a host name and then fail to resolve, once, obscurely."""
    if not isinstance(target, str):
        raise TypeError(f"target: must be a string such as 'lb:443', not {type(target).__name__}")
    url = re.match(r"^(?:https?|grpcs?)://([^/]*)", target)
    if url:
        raise ValueError(
            f"target: is host:port, not a URL: {url.group(1)!r} "
            "(TLS is the default except on loopback; tls=False turns it off)"
        )
    if not target or target != target.strip():
        raise ValueError(f"target: must be host:port, such as 'lb:443', not {target!r}")


def is_loopback(target: str) -> bool:
    """Return whether every address of a gRPC target stays on this machine.

    Example:
        >>> is_loopback("localhost:50051"), is_loopback("unix:/run/rerank.sock"), is_loopback("lb:443")
        (True, True, False)
    """
    scheme, _, rest = target.partition(":")
    if scheme in ("unix", "unix-abstract"):
        return True
    if scheme in ("ipv4", "ipv6"):
        # These two schemes take a list: ipv4:127.0.0.1:50051,127.0.0.1:50052
        return all(_is_loopback_host(_host(address)) for address in rest.split(","))
    if scheme == "dns":
        # dns:///host:port, dns://resolver/host:port or dns:host:port
        rest = rest.removeprefix("//").partition("/")[2] if rest.startswith("//") else rest
        return _is_loopback_host(_host(rest))
    return _is_loopback_host(_host(target))


def _host(address: str) -> str:
    if address.startswith("["):
        return address[1:].partition("]")[0]
    host, colon, port = address.rpartition(":")
    # More than one colon without brackets is a bare IPv6 address.
    return host if colon and port.isdigit() and ":" not in host else address


def _is_loopback_host(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        # Only a literal address counts: "127.0.0.1.example.org" resolves to anything.
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read_pem(field_name: str, source: PemSource | None) -> bytes | None:
    if source is None:
        return None
    if isinstance(source, str) and source.startswith(PEM_START.decode()):
        raise ValueError(f"{field_name}: is PEM text; pass it as bytes, or the path of a file")
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    if PEM_START not in content:
        where = "the bytes" if isinstance(source, bytes) else str(source)
        raise ValueError(f"{field_name}: {where} holds no PEM block")
    return content
