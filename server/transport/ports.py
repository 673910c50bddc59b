"""The ports of a server: bound in one place, with one wording when that is not possible."""

import socket

from server.config import Settings
from server.errors import ConfigurationError

__all__ = ["bound_socket", "cannot_listen", "try_ports"]


def bound_socket(host: str, port: int, option: str) -> socket.socket:
    """A socket that is bound and does not listen yet.

    Raises:
        ConfigurationError: the address is taken or is not one of this machine; names `option`.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is said because asyncio switches Nagle's algorithm off only where it is.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    # A host name that can't be encoded is a UnicodeError.
    except (OSError, UnicodeError) as error:
        bound.close()
        why = error.strerror if isinstance(error, OSError) else "not a host name"
        raise cannot_listen(host, port, option, why or str(error)) from None
    return bound


def try_ports(settings: Settings) -> None:
    """Bind every port of the settings once, before a model is loaded for nothing.

    They stay closed until the model is ready, so that a balancer's connection attempt
    fails at once and goes to another server.

    Raises:
        ConfigurationError: one can't be listened on, or two options name the same one.
    """
    owners: dict[int, str] = {}
    for option, port in (
        ("--port", settings.port),
        ("--http-port", settings.http_port),
        ("--metrics-port", settings.metrics_port),
    ):
        if port and port in owners:
            raise ConfigurationError(f"{option} {port}: is {owners[port]} as well; give each its own port")
        if port or option == "--port":
            owners[port] = option
            bound_socket(settings.host, port, option).close()


def cannot_listen(host: str, port: int, option: str, why: str) -> ConfigurationError:
    """The error that says which option to change."""
    return ConfigurationError(
        f"{option} {port}: can't listen on {host}:{port}: {why}; "
        f"stop what listens there, or choose another {option} or --host"
    )
