"""The public face: names, signatures, what an import costs."""

import ast
import doctest
import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import rerank
from rerank import AsyncFakeRerankClient, AsyncRerankClient, FakeRerankClient, RerankClient

PACKAGE = Path(rerank.__file__).parent

METHODS = ("rerank", "rerank_many", "get_model", "health", "wait_until_ready", "close")

# Where the twins must differ: an async iterator is no iterator, and only asyncio has
# keys that are awaited and queries that are.
MAY_DIFFER_IN_TYPE = {("rerank_many", "queries"), ("rerank_many", "return"), ("__init__", "api_key")}


def test_public_names_are_exactly_those_listed() -> None:
    """Every public name of the package is in __all__, and every name in __all__ exists."""
    submodules = {path.stem for path in PACKAGE.iterdir()}
    public = {name for name in vars(rerank) if not name.startswith("_") and name not in submodules}
    assert public | {"__version__"} == set(rerank.__all__)


def test_modules_are_private() -> None:
    """Only the stubs and the integrations can be imported from by name."""
    public = {path.stem for path in PACKAGE.iterdir() if not path.name.startswith((".", "_"))}
    assert public - {"integrations"} == {"v1", "py"}  # py.typed is a file of that stem


def test_public_names_are_documented() -> None:
    """Every public class has a docstring, and the clients and errors show an example."""
    for name in rerank.__all__:
        if name != "__version__":
            assert inspect.getdoc(getattr(rerank, name)), name
    for kind in (RerankClient, AsyncRerankClient, FakeRerankClient, AsyncFakeRerankClient):
        assert "Example:" in (inspect.getdoc(kind) or ""), kind
        for method in METHODS[:-1]:
            assert "Example:" in (inspect.getdoc(getattr(kind, method)) or ""), method


@pytest.mark.parametrize("method", ["__init__", *METHODS])
def test_twins_have_the_same_signatures(method: str) -> None:
    """Blocking and asynchronous methods take the same arguments and give the same results."""
    assert _signature(RerankClient, method) == _signature(AsyncRerankClient, method)


@pytest.mark.parametrize("method", METHODS)
def test_fakes_have_the_signatures_of_the_real_clients(method: str) -> None:
    """A fake client can stand wherever the real one does."""
    assert _signature(FakeRerankClient, method) == _signature(RerankClient, method)
    assert _signature(AsyncFakeRerankClient, method) == _signature(AsyncRerankClient, method)
    assert issubclass(FakeRerankClient, RerankClient)
    assert issubclass(AsyncFakeRerankClient, AsyncRerankClient)


def test_importing_needs_grpc_and_protobuf_only() -> None:
    """The package imports nothing beside the standard library, grpc and protobuf."""
    imported = {
        name.split(".")[0]
        for path in PACKAGE.glob("_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for name in _imported_by(node)
    }
    assert imported - set(sys.stdlib_module_names) == {"google", "grpc", "rerank"}


def test_importing_reads_no_environment_and_starts_no_thread() -> None:
    """An import has no side effects."""
    program = "import threading, rerank; assert threading.active_count() == 1"
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)
    for path in PACKAGE.glob("_*.py"):
        assert "environ" not in path.read_text(), path


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("_*.py")), ids=lambda path: path.stem)
def test_examples_that_look_like_a_session_are_true(path: Path) -> None:
    """Every >>> example prints what it says."""
    module = importlib.import_module(f"rerank.{path.stem}" if path.stem != "__init__" else "rerank")
    assert doctest.testmod(module).failed == 0


def test_the_version_is_that_of_the_wheel() -> None:
    """__version__ is the one that the installed package declares."""
    from importlib.metadata import version

    assert rerank.__version__ == version("rerank-sdk")


def _signature(kind: type, method: str) -> dict[str, Any]:
    signature = inspect.signature(getattr(kind, method))
    parameters: dict[str, Any] = {
        parameter.name: (
            parameter.kind,
            parameter.default,
            None if (method, parameter.name) in MAY_DIFFER_IN_TYPE else parameter.annotation,
        )
        for parameter in signature.parameters.values()
    }
    if (method, "return") not in MAY_DIFFER_IN_TYPE:
        parameters["return"] = signature.return_annotation
    return parameters


def _imported_by(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
