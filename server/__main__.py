"""`python -m server`: serve, or one of the commands that prepare models."""

import os
import sys
from collections.abc import Callable, Sequence

from server.config import read_settings
from server.errors import ConfigurationError

__all__ = ["main"]

EXIT_CONFIGURATION = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the process's exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    command = _COMMANDS.get(arguments[0]) if arguments else None
    try:
        return _serve(arguments) if command is None else command(arguments[1:])
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_CONFIGURATION
    except KeyboardInterrupt:
        return 130


def _serve(arguments: Sequence[str]) -> int:
    settings = read_settings(arguments)
    # At its default, gRPC's C core writes what a peer says in a GOAWAY into the log as it came.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    # Imported only now: --help and a wrong option answer at once.
    from server.ops.signals import obey_signals_as_first_process

    obey_signals_as_first_process()
    from server.app import run
    from server.ops.logging import configure_logging, flush_logs

    configure_logging(settings.log_level, settings.log_format)
    try:
        return run(settings)
    finally:
        # What is said next, about an error, is said after what came before it.
        flush_logs()


def _materialise(arguments: Sequence[str]) -> int:
    from server.models.commands import materialise_command

    return materialise_command(arguments)


def _quantize(arguments: Sequence[str]) -> int:
    from server.models.commands import quantize_command

    return quantize_command(arguments)


_COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {"materialise": _materialise, "quantize": _quantize}

if __name__ == "__main__":
    sys.exit(main())
