"""Turns a template of this folder into the nginx.conf of a machine.

    python nginx/render.py l7 --output /etc/rerank --server 10.0.0.1:50051 --server 10.0.0.2:50051 \\
        TLS_CERTIFICATE=/etc/rerank/tls.crt TLS_CERTIFICATE_KEY=/etc/rerank/tls.key

It needs nothing but Python. The templates are in the style of `envsubst`, so the
official nginx image renders them as well; this file adds defaults and refuses mistakes.
"""

import argparse
import ipaddress
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "CONFIGURATION_FILE",
    "UPSTREAM_SERVERS_FILE",
    "RenderError",
    "Variable",
    "is_server_address",
    "layers",
    "render",
    "upstream_servers",
    "variables_of",
    "write_configuration",
]

FOLDER = Path(__file__).resolve().parent
DEFAULTS_FILE = FOLDER / "defaults.env"
TEMPLATE_SUFFIX = ".conf.template"
CONFIGURATION_FILE = "nginx.conf"
UPSTREAM_SERVERS_FILE = "upstream_servers.conf"
HELP_WIDTH = 100

_PLACEHOLDER = re.compile(r"\$\{([A-Z][A-Z0-9_]*)\}")
# Inside a quoted Nginx string these end it, start a variable, or begin another line.
_FORBIDDEN_IN_VALUES = re.compile(r"""["'\\$;{}\r\n]""")
_SERVER_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):([1-9][0-9]{0,4})")
_SERVER_SOCKET = re.compile(r"unix:/[^\s;{}\"'\\$#]+")
_HOST_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")


class RenderError(Exception):
    """The configuration can't be rendered; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A placeholder of the templates, as `defaults.env` describes it."""

    name: str
    default: str
    """Empty when a value has to be given."""
    explanation: str


def layers() -> list[str]:
    """Names of the templates: l4 and l7."""
    return sorted(path.name.removesuffix(TEMPLATE_SUFFIX) for path in FOLDER.glob(f"*{TEMPLATE_SUFFIX}"))


def variables_of(layer: str) -> dict[str, Variable]:
    """The variables of one template by name, in the order of `defaults.env`."""
    used = set(_PLACEHOLDER.findall(_template(layer)))
    documented = _read_defaults()
    if undocumented := used - documented.keys():
        raise RenderError(f"{DEFAULTS_FILE.name} lacks {', '.join(sorted(undocumented))}")
    return {name: variable for name, variable in documented.items() if name in used}


def render(layer: str, values: Mapping[str, str]) -> str:
    """The text of nginx.conf for `layer`, with defaults for what `values` leaves out.

    Raises:
        RenderError: a variable is unknown, missing, or has a value that would break the syntax.
    """
    variables = variables_of(layer)
    if unknown := sorted(values.keys() - variables.keys()):
        raise RenderError(f"{layer} has no variable {', '.join(unknown)}; it has {', '.join(variables)}")
    complete = {name: values.get(name, variable.default) for name, variable in variables.items()}
    if missing := [name for name, value in complete.items() if not value]:
        raise RenderError(f"{layer} needs a value for {', '.join(f'{name}=...' for name in missing)}")
    for name, value in complete.items():
        if broken := _FORBIDDEN_IN_VALUES.search(value):
            raise RenderError(f"{name}: {value!r} contains {broken.group()!r}, which Nginx would misread")
    return _PLACEHOLDER.sub(lambda match: complete[match.group(1)], _template(layer))


def upstream_servers(addresses: Sequence[str]) -> str:
    """The text of the file that lists the upstream's members, one line each.

    `max_fails=0` switches Nginx's passive checks off: they count slow calls as failures.

    Raises:
        RenderError: an address isn't host:port, or there are none.
    """
    if not addresses:
        raise RenderError("an upstream needs at least one server; Nginx refuses an empty one")
    for address in addresses:
        if not is_server_address(address):
            raise RenderError(
                f"{address!r} is not the address of a server; write host:port, with a port from 1 to 65535"
            )
    return "".join(f"server {address} max_fails=0;\n" for address in addresses)


def is_server_address(text: str) -> bool:
    """Whether the text is HOST:PORT or unix:/PATH. Nginx starts only if a host that is a name resolves.

    server/healthgate/addresses.py has the same rule for HOST:PORT, since this file runs alone.
    """
    if _SERVER_SOCKET.fullmatch(text):
        return True
    match = _SERVER_ADDRESS.fullmatch(text)
    if match is None or int(match[2]) > 65535:
        return False
    host = match[1]
    try:
        if host.startswith("["):
            ipaddress.IPv6Address(host[1:-1])
        else:
            ipaddress.IPv4Address(host)
    except ValueError:
        labels = host.removesuffix(".").split(".")
        return len(host) <= 253 and all(map(_HOST_LABEL.fullmatch, labels)) and not labels[-1].isdigit()
    return True


def write_configuration(
    layer: str, output: Path, values: Mapping[str, str], servers: Sequence[str] = ()
) -> Path:
    """Write nginx.conf, and the list of servers if there are any, into `output`; return nginx.conf's path."""
    text = render(layer, values)
    members = upstream_servers(servers) if servers else ""
    output.mkdir(parents=True, exist_ok=True)
    if members:
        (output / UPSTREAM_SERVERS_FILE).write_text(members)
    configuration = output / CONFIGURATION_FILE
    configuration.write_text(text)
    return configuration


def _template(layer: str) -> str:
    path = FOLDER / f"{layer}{TEMPLATE_SUFFIX}"
    if not path.exists():
        raise RenderError(f"there is no template {layer!r}; choose from {', '.join(layers())}")
    return path.read_text()


def _read_defaults() -> dict[str, Variable]:
    """Parse paragraphs of comment lines followed by one `NAME=value` line."""
    variables: dict[str, Variable] = {}
    for paragraph in DEFAULTS_FILE.read_text().split("\n\n"):
        *comment, assignment = paragraph.splitlines()
        name, equals, default = assignment.partition("=")
        if equals and not name.startswith("#"):
            explanation = " ".join(line.removeprefix("#").strip() for line in comment)
            variables[name] = Variable(name, default, explanation)
    return variables


def _parser() -> argparse.ArgumentParser:
    sections = []
    for layer in layers():
        rows = [
            f"  {v.name}{'=' + v.default if v.default else ' (required)'}\n" + _indented(v.explanation)
            for v in variables_of(layer).values()
        ]
        sections.append(f"variables of {layer}:\n" + "\n".join(rows))
    parser = argparse.ArgumentParser(
        prog="python nginx/render.py",
        description=(__doc__ or "").split("\n\n")[0],
        epilog="\n\n".join([(__doc__ or "").split("\n\n")[1], *sections]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("layer", choices=layers(), help="l7 balances calls, l4 balances connections")
    parser.add_argument("values", nargs="*", metavar="NAME=VALUE", help="variables, see below")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FOLDER", help=f"gets {CONFIGURATION_FILE}"
    )
    parser.add_argument(
        "--server",
        action="append",
        default=[],
        dest="servers",
        metavar="HOST:PORT",
        help=f"a server behind Nginx, repeatable; written to {UPSTREAM_SERVERS_FILE}."
        " Without any, that file is left as it is",
    )
    return parser


def _indented(text: str) -> str:
    indent = " " * 6
    return textwrap.fill(text, HELP_WIDTH, initial_indent=indent, subsequent_indent=indent)


def main(arguments: Sequence[str] | None = None) -> int:
    """Render as the command line says; a mistake is one line and exit code 2."""
    options = _parser().parse_intermixed_args(arguments)
    try:
        values: dict[str, str] = {}
        for assignment in options.values:
            name, equals, value = assignment.partition("=")
            if not equals:
                raise RenderError(f"{assignment!r} is not of the form NAME=VALUE")
            values[name] = value
        configuration = write_configuration(options.layer, options.output, values, options.servers)
    except (RenderError, OSError) as error:
        print(f"render.py: {error}", file=sys.stderr)
        return 2
    print(configuration)
    return 0


if __name__ == "__main__":
    sys.exit(main())
