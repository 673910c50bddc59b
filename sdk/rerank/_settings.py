"""Everything that is fixed when a client is made, checked once."""

import math
import re
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rerank._errors import InvalidRequestError
from rerank._hedging import HedgePolicy
from rerank._retry import LoadBalancing, RetryPolicy, service_config
from rerank._sharding import DEFAULT_MAX_REQUEST_BYTES, DEFAULT_MAX_REQUEST_DOCUMENTS, ShardLimits
from rerank._tls import TLSConfig, check_target, resolve_tls
from rerank._version import __version__

__all__ = ["Call", "ClientSettings", "MetadataSource", "begin_call", "client_settings"]

DEFAULT_TIMEOUT_S = 30.0
DEFAULT_MAX_IN_FLIGHT = 16

# gRPC keeps what it may have to send again; beyond its default of 256 KiB it quietly
# gives up retrying. This bounds one call and reserves nothing.
RETRY_BUFFER_BYTES = 64 * 1024 * 1024

# An answer takes 39 bytes for each document at most, or the reason why it has no score, and
# some hundred for the rest. A server that sends more fails the call, not the caller's memory.
MAX_RESPONSE_BYTES = 64 * 1024 * 1024
RESPONSE_BYTES = 1024 * 1024
RESPONSE_BYTES_PER_DOCUMENT = 512

KEEPALIVE_INTERVAL_MS = 30_000
KEEPALIVE_TIMEOUT_MS = 10_000

# gRPC would wait one second and then up to two minutes before it connects again, which
# is longer than any server takes to be replaced.
FIRST_RECONNECT_MS = 200
SLOWEST_RECONNECT_MS = 5_000

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
HEADER_NAME = re.compile(r"[a-z0-9._-]+")
HEADER_VALUE = re.compile(r"[\x20-\x7e]*")

# Tells servers that repeats after a lost device are this package's business; see `_repeats.py`.
ATTEMPT_HEADER = "rerank-attempt"

MetadataSource = Mapping[str, str] | Callable[[], Mapping[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """The checked arguments of a client's constructor, but for the API key."""

    target: str
    tls: TLSConfig | None
    timeout_s: float
    retry: RetryPolicy
    hedge: HedgePolicy | None
    limits: ShardLimits
    max_in_flight: int
    load_balancing: LoadBalancing
    metadata: MetadataSource | None = field(repr=False)
    grpc_options: tuple[tuple[str, Any], ...]

    def channel_options(self) -> list[tuple[str, Any]]:
        """Return the options of the channel; the caller's own win over the defaults."""
        options: dict[str, Any] = {
            "grpc.service_config": service_config(self.retry, self.load_balancing),
            "grpc.per_rpc_retry_buffer_size": RETRY_BUFFER_BYTES,
            "grpc.max_receive_message_length": min(
                MAX_RESPONSE_BYTES, RESPONSE_BYTES + RESPONSE_BYTES_PER_DOCUMENT * self.limits.max_documents
            ),
            "grpc.keepalive_time_ms": KEEPALIVE_INTERVAL_MS,
            "grpc.keepalive_timeout_ms": KEEPALIVE_TIMEOUT_MS,
            # A long call carries no data while the model works; ping throughout.
            "grpc.http2.max_pings_without_data": 0,
            "grpc.initial_reconnect_backoff_ms": FIRST_RECONNECT_MS,
            "grpc.max_reconnect_backoff_ms": SLOWEST_RECONNECT_MS,
            "grpc.primary_user_agent": f"rerank-sdk/{__version__}",
        }
        if self.tls and self.tls.server_name:
            options["grpc.ssl_target_name_override"] = self.tls.server_name
            options["grpc.default_authority"] = self.tls.server_name
        return list((options | dict(self.grpc_options)).items())


@dataclass(frozen=True, slots=True)
class Call:
    """What all requests of one call share: its id, its deadline and its headers."""

    request_id: str
    timeout_s: float
    ends_at: float
    metadata: tuple[tuple[str, str], ...] = field(repr=False)

    def attempt_metadata(self, number: int) -> tuple[tuple[str, str], ...]:
        """Return the headers of this attempt at one of the call's requests, counted from 0."""
        return (*self.metadata, (ATTEMPT_HEADER, str(number)))

    def remaining_s(self) -> float:
        """Return the time left; gRPC answers DEADLINE_EXCEEDED at once when there is none."""
        return max(0.0, self.ends_at - time.monotonic())


def client_settings(
    target: str,
    *,
    tls: TLSConfig | bool | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    retry: RetryPolicy | None = None,
    hedge: HedgePolicy | None = None,
    max_request_bytes: int = DEFAULT_MAX_REQUEST_BYTES,
    max_request_documents: int = DEFAULT_MAX_REQUEST_DOCUMENTS,
    max_in_flight: int = DEFAULT_MAX_IN_FLIGHT,
    load_balancing: LoadBalancing = "pick_first",
    metadata: MetadataSource | None = None,
    grpc_options: Iterable[tuple[str, Any]] = (),
) -> ClientSettings:
    """Check the arguments that both clients' constructors take."""
    check_target(target)
    check_timeout(timeout_s)
    if max_in_flight < 1:
        raise ValueError(f"max_in_flight: must be at least 1, not {max_in_flight}")
    if load_balancing not in ("pick_first", "round_robin"):
        raise ValueError(f"load_balancing: must be 'pick_first' or 'round_robin', not {load_balancing!r}")
    return ClientSettings(
        target=target,
        tls=resolve_tls(tls, target),
        timeout_s=timeout_s,
        retry=retry or RetryPolicy(),
        hedge=hedge,
        limits=ShardLimits(max_bytes=max_request_bytes, max_documents=max_request_documents),
        max_in_flight=max_in_flight,
        load_balancing=load_balancing,
        metadata=metadata,
        grpc_options=tuple(grpc_options),
    )


def begin_call(
    settings: ClientSettings, *, timeout_s: float | None, request_id: str | None, api_key: str | None
) -> Call:
    """Start the clock of a call and write its headers."""
    if timeout_s is not None:
        check_timeout(timeout_s)
    chosen_s = settings.timeout_s if timeout_s is None else timeout_s
    if request_id is not None and not REQUEST_ID.fullmatch(request_id):
        raise InvalidRequestError(
            f"request_id: must be 1 to 128 characters of A-Z a-z 0-9 . _ -, not {request_id!r}",
            field="request_id",
        )
    chosen_id = request_id or uuid.uuid4().hex
    metadata = _own_headers(settings.metadata)
    metadata.append(("x-request-id", chosen_id))
    if api_key is not None:
        metadata.append(("authorization", f"Bearer {api_key}"))
    return Call(chosen_id, chosen_s, time.monotonic() + chosen_s, tuple(metadata))


def check_timeout(timeout_s: float) -> None:
    """Refuse a wait without end, since gRPC has no deadline of its own."""
    if not (isinstance(timeout_s, int | float) and timeout_s > 0 and math.isfinite(timeout_s)):
        raise ValueError(f"timeout_s: must be a number of seconds above 0, not {timeout_s!r}")


def _own_headers(source: MetadataSource | None) -> list[tuple[str, str]]:
    own = source() if callable(source) else (source or {})
    headers = [(name.lower(), value) for name, value in own.items()]
    for name, value in headers:
        # gRPC's two kinds of channel fail on these in two ways, neither of which says so.
        if not HEADER_NAME.fullmatch(name) or name.endswith("-bin"):
            raise ValueError(f"metadata: {name!r} is no name of a text header")
        if not isinstance(value, str) or not HEADER_VALUE.fullmatch(value):
            raise ValueError(f"metadata: the value of {name!r} must be printable ASCII")
    return headers
