"""The names that gRPC gives to a connection that broke.

A peer that dies, a proxy that resets a stream and a socket that closes are UNAVAILABLE most
of the time, which is what they are. They are INTERNAL or UNKNOWN when the peer reset the
stream rather than the connection (as Nginx does when its server dies in the middle of an
answer), ended it without a status, or died in the middle of a frame; and grpc.aio loses the
status altogether when a stream breaks under a write (grpc#36066). The details tell these from
a server's own INTERNAL. A test makes them all with a real socket.
"""

import re

import grpc

__all__ = ["is_broken_connection"]

AMBIGUOUS_CODES = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)

# From the beginning, since a server's own words may hold any of these further on.
NAMES = re.compile(
    r"Stream removed"  # grpcio 1.85 puts the reason behind it, 1.80 does not
    r"|Internal error from Core"  # grpc.aio
    r"|(Received |stream terminated by )?RST_STREAM"  # grpcio up to 1.80 at least, grpc-go and others
    r"|(recv|send)msg:|Socket closed|Connection reset|Broken pipe|Endpoint (read|write) failed"
    r"|GOAWAY|[Tt]ransport (is )?clos|Failed parsing HTTP/2|Received unexpected EOS"
)


def is_broken_connection(code: grpc.StatusCode, details: str) -> bool:
    """Whether these are gRPC's words for UNAVAILABLE under another code."""
    return code in AMBIGUOUS_CODES and NAMES.match(details) is not None
