"""The standard health check, grpc.health.v1, without the package of that name.

Two messages of one field each are spelled by hand here, which spares everybody who
installs this SDK a dependency:

    message HealthCheckRequest { string service = 1; }
    message HealthCheckResponse { ServingStatus status = 1; }
"""

from enum import StrEnum

__all__ = ["CHECK_METHOD", "ServingStatus", "encode_request", "status_of"]

CHECK_METHOD = "/grpc.health.v1.Health/Check"
CHECKED_SERVICE = "rerank.v1.RerankService"

STRING_IN_FIELD_1 = 0x0A
VARINT_IN_FIELD_1 = 0x08


class ServingStatus(StrEnum):
    """What a server says about itself: only SERVING means that calls will be answered."""

    UNKNOWN = "unknown"
    SERVING = "serving"
    NOT_SERVING = "not_serving"
    SERVICE_UNKNOWN = "service_unknown"


_STATUS_OF_NUMBER = dict(enumerate(ServingStatus))


def encode_request() -> bytes:
    """Return a serialised HealthCheckRequest about the rerank service."""
    name = CHECKED_SERVICE.encode()
    # One byte of length is enough, since the name is shorter than 128 bytes.
    return bytes((STRING_IN_FIELD_1, len(name))) + name


def status_of(response: bytes) -> ServingStatus:
    """Read a serialised HealthCheckResponse; a field that is absent is 0, as always in proto3."""
    if len(response) >= 2 and response[0] == VARINT_IN_FIELD_1:
        return _STATUS_OF_NUMBER.get(response[1], ServingStatus.UNKNOWN)
    return ServingStatus.UNKNOWN
