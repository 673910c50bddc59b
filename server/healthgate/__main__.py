"""`python -m server.healthgate`: the sidecar's command line."""

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import grpc

from server.errors import ConfigurationError
from server.healthgate.addresses import is_address
from server.healthgate.gate import Gate, GateOptions
from server.ops.logging import configure_logging

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Watch until a signal; returns the process's exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    configure_logging("info", options.log_format)
    try:
        gate = Gate(_gate_options(options))
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(_until_signal(gate))
    return 0


async def _until_signal(gate: Gate) -> None:
    task = asyncio.create_task(gate.run())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    await task


def _gate_options(options: argparse.Namespace) -> GateOptions:
    if bool(options.server) == bool(options.servers_file):
        raise ConfigurationError("give --server HOST:PORT, repeated, or --servers-file FILE, one of the two")
    for address in options.server:
        if not is_address(address):
            raise ConfigurationError(f"--server {address!r}: write HOST:PORT")
    if not options.upstream_file.parent.is_dir():
        raise ConfigurationError(f"--upstream-file {options.upstream_file}: its folder does not exist")
    return GateOptions(
        upstream_file=options.upstream_file,
        nginx_pid_file=options.nginx_pid_file,
        servers=options.server,
        servers_file=options.servers_file,
        interval_s=options.interval,
        timeout_s=options.timeout,
        credentials=_credentials(options.tls_root, options.tls_certificate, options.tls_key),
    )


def _credentials(
    root: Path | None, certificate: Path | None, key: Path | None
) -> grpc.ChannelCredentials | None:
    if root is None and certificate is None:
        return None
    try:
        return grpc.ssl_channel_credentials(
            root.read_bytes() if root else None,
            key.read_bytes() if key else None,
            certificate.read_bytes() if certificate else None,
        )
    except OSError as error:
        raise ConfigurationError(f"TLS file {error.filename}: {error.strerror}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m server.healthgate",
        description="Ask every server's grpc.health.v1, write the members of Nginx's upstream, reload Nginx. "
        "A server that says NOT_SERVING, or is silent twice, leaves the rotation; one that says SERVING "
        "is back at once, unless it flaps. When nobody answers, everybody stays in. A name that does not "
        "resolve is left out until it does; a reload that Nginx refuses is taken back.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--server", action="append", default=[], metavar="HOST:PORT", help="repeat for each server"
    )
    parser.add_argument(
        "--servers-file",
        type=Path,
        metavar="FILE",
        help="one HOST:PORT a line, read again when it changes; names are resolved again every 5 s",
    )
    parser.add_argument(
        "--upstream-file", type=Path, required=True, metavar="FILE", help="nginx's included list of members"
    )
    parser.add_argument(
        "--nginx-pid-file", type=Path, required=True, metavar="FILE", help="of nginx's master: gets SIGHUP"
    )
    parser.add_argument("--interval", type=float, default=0.5, metavar="SECONDS", help="between checks")
    parser.add_argument("--timeout", type=float, default=1.0, metavar="SECONDS", help="of one check")
    parser.add_argument(
        "--tls-root", type=Path, metavar="FILE", help="authority of the servers' certificates"
    )
    parser.add_argument("--tls-certificate", type=Path, metavar="FILE", help="this client's, for mutual TLS")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="its private key")
    parser.add_argument(
        "--log-format", choices=["auto", "console", "json"], default="auto", help="of the log"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
