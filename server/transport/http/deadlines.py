"""How long a caller waits: `x-request-timeout-ms: 1500`, or gRPC's own `grpc-timeout: 1500m`."""

import math
import re
import time
from collections.abc import Mapping

from server.errors import InvalidRequest

__all__ = ["TIMEOUT_HEADER", "deadline_s"]

TIMEOUT_HEADER = "x-request-timeout-ms"
GRPC_TIMEOUT_HEADER = "grpc-timeout"

_MILLISECONDS = re.compile(r"\d{1,12}")
_GRPC_TIMEOUT = re.compile(r"(?P<number>\d{1,8})(?P<unit>[HMSmun])")
_UNIT_S = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


def deadline_s(headers: Mapping[str, str]) -> float:
    """The caller's deadline on the monotonic clock; infinite when no header names one.

    Raises:
        InvalidRequest: a header is there and makes no sense.
    """
    milliseconds = headers.get(TIMEOUT_HEADER)
    if milliseconds is not None:
        if not _MILLISECONDS.fullmatch(milliseconds.strip()):
            raise InvalidRequest(TIMEOUT_HEADER, "must be a whole number of milliseconds, such as 1500")
        return time.monotonic() + int(milliseconds) / 1000
    timeout = headers.get(GRPC_TIMEOUT_HEADER)
    if timeout is not None:
        parsed = _GRPC_TIMEOUT.fullmatch(timeout.strip())
        if parsed is None:
            raise InvalidRequest(
                GRPC_TIMEOUT_HEADER, "must be digits and a unit of H, M, S, m, u or n, such as 1500m"
            )
        return time.monotonic() + int(parsed["number"]) * _UNIT_S[parsed["unit"]]
    return math.inf
