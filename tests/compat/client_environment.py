"""Other people's clients, each set in a virtual environment of its own under .cache/.

They must not meet the server's own dependencies: the point is that they are installed as
their users install them.
"""

import json
import subprocess
import sys
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.support.child_process import REPOSITORY

__all__ = [
    "COHERE",
    "LANGCHAIN_COHERE",
    "LITELLM",
    "SCHEMATHESIS",
    "SMALL",
    "TEI",
    "ClientEnvironment",
]

INSTALL_TIMEOUT_S = 240
RUN_TIMEOUT_S = 60


@dataclass(frozen=True)
class ClientEnvironment:
    """Pinned packages, installed on first use."""

    name: str
    requirements: tuple[str, ...]

    def run(self, script: str, arguments: Mapping[str, str]) -> Any:
        """Run a script with `arguments` as its variables; it prints one JSON value, which is returned."""
        preamble = "".join(f"{name} = {value!r}\n" for name, value in arguments.items())
        done = subprocess.run(
            [self.python, "-c", preamble + script],
            capture_output=True,
            text=True,
            timeout=RUN_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    @property
    def python(self) -> str:
        """The environment's interpreter; the test is skipped where it can't be installed."""
        return _python(self)


COHERE = ClientEnvironment("cohere", ("cohere==7.3.1",))
LANGCHAIN_COHERE = ClientEnvironment("langchain-cohere", ("langchain-cohere==0.6.0", "cohere==5.21.1"))
TEI = ClientEnvironment("tei", ("tei-client==0.2.4", "grpcio==1.85.1", "protobuf<7"))
LITELLM = ClientEnvironment("litellm", ("litellm==1.106.2",))
SMALL = ClientEnvironment(
    "small", ("infinity_client==0.0.78", "mixedbread==0.54.0", "rerankers[api]==0.10.0")
)
SCHEMATHESIS = ClientEnvironment("schemathesis", ("schemathesis==4.32.5",))


@cache
def _python(environment: ClientEnvironment) -> str:
    folder = REPOSITORY / ".cache" / "clients" / environment.name
    python = folder / "bin" / "python"
    # Written last, so that a half-made environment is made again; its text is what it holds.
    mark = folder / "installed.txt"
    wanted = "\n".join((*environment.requirements, sys.version))
    if not mark.exists() or mark.read_text() != wanted:
        _install(environment, folder, python)
        mark.write_text(wanted)
    return str(python)


def _install(environment: ClientEnvironment, folder: Path, python: Path) -> None:
    venv.create(folder, clear=True, with_pip=True)
    command = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    try:
        done = subprocess.run(
            [*command, *environment.requirements],
            capture_output=True,
            text=True,
            timeout=INSTALL_TIMEOUT_S,
            check=False,
        )
        problem = done.stderr.strip()[-300:] if done.returncode else ""
    except subprocess.TimeoutExpired:
        problem = f"took longer than {INSTALL_TIMEOUT_S} s"
    if problem:
        pytest.skip(f"{', '.join(environment.requirements)} can't be installed here: {problem}")
