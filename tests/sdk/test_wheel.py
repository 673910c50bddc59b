"""The wheel as users install it: alone, with the oldest and the newest of what it needs."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.sdk.scoring_server import ScoringServer

SDK = Path(__file__).parents[2] / "sdk"

# What the SDK promises to live beside; the upper end is whatever is newest today.
OLDEST = ("grpcio==1.72.1", "protobuf>=6.30,<6.31")
NEWEST = ("grpcio", "protobuf")

USER_PROGRAM = """
import asyncio, importlib.util, sys

import google.protobuf
import grpc
from rerank import AsyncRerankClient, Query, RerankClient

target = sys.argv[1]
documents = [f"document {number}" for number in range(300)]
with RerankClient(target) as client:
    client.wait_until_ready(timeout_s=30)
    ranking = client.rerank("query", documents, top_n=7)
    assert len(ranking) == 7 and ranking[0].document is documents[ranking[0].index]
    outcomes = dict(client.rerank_many(Query(number, "query", documents[:3]) for number in range(5)))
    assert sorted(outcomes) == [0, 1, 2, 3, 4]


async def main():
    async with AsyncRerankClient(target) as client:
        assert list(await client.rerank("query", documents, top_n=7)) == list(ranking)
        assert len([id async for id, _ in client.rerank_many([Query(1, "query", ["a"])])]) == 1


asyncio.run(main())
for heavy in ("torch", "numpy", "transformers", "server"):
    assert importlib.util.find_spec(heavy) is None, heavy
print(grpc.__version__, google.protobuf.__version__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The SDK's wheel, built from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    # A copy, because setuptools builds beside the sources and would leave its files there.
    source = folder / "sdk"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "."],
        cwd=SDK,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    for name in listed:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((SDK / name).read_bytes())
    pip(Path(sys.executable), "wheel", "--no-deps", "--wheel-dir", str(folder), str(source))
    [built] = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    """The wheel contains `rerank` with its types and its licence, and no top-level `server`."""
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"rerank"}
    assert "rerank/py.typed" in names
    assert {"rerank/v1/rerank_pb2.py", "rerank/v1/rerank_pb2.pyi", "rerank/v1/rerank_pb2_grpc.pyi"} <= names
    assert any(name.endswith("LICENSE") for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("requirements", [OLDEST, NEWEST], ids=["oldest", "newest"])
def test_the_wheel_works_without_the_server(
    wheel: Path, tmp_path: Path, requirements: tuple[str, ...]
) -> None:
    """In a fresh environment with nothing but its dependencies, the SDK makes real calls."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip(python, "install", "--only-binary=:all:", str(wheel), *requirements)
    with ScoringServer() as server:
        done = subprocess.run(
            [python, "-W", "error", "-c", USER_PROGRAM, server.target],
            cwd=tmp_path,
            check=False,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    grpcio, protobuf = done.stdout.split()
    if requirements is OLDEST:
        assert (grpcio, protobuf[:5]) == ("1.72.1", "6.30.")
    else:
        assert int(protobuf.split(".")[0]) >= 7


def pip(python: Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
