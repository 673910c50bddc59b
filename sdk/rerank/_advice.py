"""What to do about a connection that failed, read off gRPC's own words.

These words are nobody's contract, so nothing but the advice depends on them; a test
makes each of these failures with a real socket and reads the advice.
"""

import re

from rerank._settings import ClientSettings

__all__ = ["connection_advice"]

WITH_TLS = (
    (
        r"WRONG_VERSION_NUMBER|HTTP_REQUEST|PACKET_LENGTH_TOO_LONG|RECORD_LAYER",
        "the server speaks plain text there; pass tls=False",
    ),
    (
        r"Hostname Verification|not match|is not in peer certificate",
        "the certificate is for another name; pass tls=TLSConfig(server_name=...) with the name in it",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|self.signed|unable to get local issuer",
        "the certificate isn't from an authority known here; "
        "pass tls=TLSConfig(root_certificates='ca.pem') with the one that signed it",
    ),
    (
        r"CERTIFICATE_REQUIRED|BAD_CERTIFICATE|HANDSHAKE_FAILURE|UNKNOWN_CA",
        "the server wants another client certificate; "
        "pass tls=TLSConfig(client_certificate=..., client_key=...)",
    ),
    (
        r"ALPN",
        "the server offers TLS without HTTP/2; with Nginx, add `http2 on;` to that server",
    ),
    # A plain-text gRPC server takes a TLS greeting for garbage and hangs up, in whichever
    # of these ways the race ends.
    (
        r"Socket closed|Connection reset|Broken pipe|[Hh]andshake|Endpoint closing",
        "the server hung up during the TLS handshake; if it wants a client certificate, pass "
        "tls=TLSConfig(client_certificate=..., client_key=...); if it speaks plain text, pass tls=False",
    ),
)

WITHOUT_TLS = (
    (
        r"http1\.x|HTTP status 400",
        "HTTP/1 was answered there; if it is a TLS port, pass tls=True, else check the port",
    ),
    (
        r"Socket closed|Connection reset|Broken pipe|Endpoint closing|GOAWAY|settings frame",
        "the connection was cut at once; if the server speaks TLS there, pass tls=True",
    ),
)

ALWAYS: tuple[tuple[str, str], ...] = (
    (r"Connection refused", "nothing listens there; check host and port, and that the server is up"),
    (r"DNS resolution failed|Domain name not found", "the name does not resolve; check the host"),
    (r"No such file", "the socket does not exist; check the path"),
    (r"No route|Network is unreachable|[Tt]imed? ?out", "the host can't be reached from here"),
)


def connection_advice(details: str, settings: ClientSettings) -> str:
    """Return "; what to do" for a failure to connect, or nothing for any other."""
    advices = ALWAYS
    # A connection that worked and broke later says some of the same words.
    if "failed to connect" in details:
        advices += WITH_TLS if settings.tls else WITHOUT_TLS
    for pattern, advice in advices:
        if re.search(pattern, details):
            return f"; {advice}"
    return ""
