"""The stubs that are checked in are what the pinned generator makes of the contract."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STUBS = ROOT / "sdk" / "rerank" / "v1"


def check_stubs() -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "sdk/generate.py", "--check"]
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)


@pytest.mark.slow
def test_the_stubs_are_fresh() -> None:
    """Generating the stubs anew gives the bytes that are checked in."""
    checked = check_stubs()
    assert checked.returncode == 0, checked.stderr


def test_stale_stubs_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A stub that differs, is missing or is left over is named, with the command that helps."""
    monkeypatch.syspath_prepend(str(ROOT / "sdk"))
    import generate

    fresh = {file.name: file.read_bytes() for file in STUBS.glob("*_pb2*.py*")}
    assert generate.check(fresh) == 0
    for changed in (
        fresh | {"rerank_pb2.py": b"other"},
        fresh | {"new_pb2.py": b""},
        {name: content for name, content in fresh.items() if name != "rerank_pb2_grpc.py"},
    ):
        assert generate.check(changed) == 1
        assert "run: python sdk/generate.py" in capsys.readouterr().err
