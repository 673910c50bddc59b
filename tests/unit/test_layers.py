"""Arrows between the layers never point back up."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Each layer may import itself and everything below it.
LAYERS = [
    {"server.__main__"},
    {"server.app"},
    {"server.transport"},
    {"server.reranker"},
    {"server.engine"},
    {"server.models"},
    {"server.config"},
    {"server.errors", "server"},
]
# `ops` watches the engine and is used by the top alone.
OPS = "server.ops"
OPS_MAY_IMPORT = {"server.ops", "server.engine", "server.errors", "server.config"}
OPS_USERS = {"server.app", "server.__main__", "server.ops", "server.healthgate"}
# A process of its own beside Nginx; it shares errors and the log's format with the server.
HEALTHGATE = "server.healthgate"
HEALTHGATE_MAY_IMPORT = {"server.healthgate", "server.errors", "server.ops.logging"}

PROTOCOLS = {
    "grpc",
    "grpc_health",
    "grpc_reflection",
    "grpc_status",
    "fastapi",
    "uvicorn",
    "starlette",
    "rerank",
}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    """Everything that a file imports anywhere in it, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute in this project"
            names.add(node.module or "")
            if node.module == "server":
                names |= {f"server.{alias.name}" for alias in node.names if not alias.name.startswith("__")}
    return names


def within(name: str, package: str) -> bool:
    return name == package or (package != "server" and name.startswith(package + "."))


def layer_of(name: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if any(within(name, package) for package in layer))


@pytest.mark.parametrize("path", modules("server"), ids=name_of)
def test_no_module_imports_a_layer_above_its_own(path: Path) -> None:
    """app -> transport -> reranker -> engine -> models -> (config, errors)."""
    name = name_of(path)
    for imported in sorted(i for i in imports_of(path) if i.split(".")[0] == "server"):
        if within(name, HEALTHGATE) or within(imported, HEALTHGATE):
            assert within(name, HEALTHGATE), f"{name} imports {imported}"
            assert any(within(imported, package) for package in HEALTHGATE_MAY_IMPORT)
        elif within(imported, OPS):
            assert any(within(name, user) for user in OPS_USERS), f"{name} imports {imported}"
        elif within(name, OPS):
            allowed = imported == "server" or any(within(imported, package) for package in OPS_MAY_IMPORT)
            assert allowed, f"{name} imports {imported}"
        else:
            assert layer_of(imported) >= layer_of(name), f"{name} imports {imported}, which is above it"


@pytest.mark.parametrize("path", [*modules("server/engine"), *modules("server/models")], ids=name_of)
def test_engine_and_models_know_no_protocol(path: Path) -> None:
    """Neither gRPC nor HTTP nor Prometheus reaches the engine."""
    found = {name.split(".")[0] for name in imports_of(path)} & {*PROTOCOLS, "prometheus_client"}
    assert not found, f"{name_of(path)} imports {found}"


@pytest.mark.parametrize("module", ["scheduler", "backlog", "admission", "budget", "estimate"])
def test_policies_are_pure(module: str) -> None:
    """Policies import no tensors, no event loop, no threads and no clock."""
    roots = {name.split(".")[0] for name in imports_of(ROOT / f"server/engine/{module}.py")}
    assert not roots & {"torch", "numpy", "asyncio", "threading", "time", "datetime"}


@pytest.mark.parametrize("path", modules("sdk/rerank"), ids=name_of)
def test_the_sdk_imports_nothing_of_the_server(path: Path) -> None:
    """Somebody's application installs the SDK without the server."""
    assert not {name.split(".")[0] for name in imports_of(path)} & {"server", "torch", "numpy"}
