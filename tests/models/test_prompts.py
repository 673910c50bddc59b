"""Instructions, saved prompts and labels mean what they mean to CrossEncoder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import CrossEncoder

from server.errors import ConfigurationError, InvalidRequest
from server.models.base import EncodedPair, Model, Windowing
from server.models.torch_model import load_torch
from tests.models import tiny
from tests.models.checkpoints import PACKED, POSITIONS, SMALL, yes_no

PAIRS = [("sort a list", "Return a new sorted list."), ("How?", ""), ("größer", "  Größe, Maß\n")]


def logits(model: Model, pairs: list[tuple[str, str]], instruction: str = "") -> Any:
    encoded: list[EncodedPair] = []
    for query, document in pairs:
        head = model.encode_query(query, instruction)
        encoded += model.encode_documents(head, [document], Windowing())[0].pairs
    return model.submit(encoded).wait()


def predict(folder: Path, pairs: list[tuple[str, str]], **options: Any) -> Any:
    encoder = CrossEncoder(str(folder), device="cpu")
    return encoder.predict(pairs, activation_fn=torch.nn.Identity(), **options)


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return PACKED["qwen3-yes-no"](tmp_path_factory.mktemp("judge"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return PACKED["bert"](tmp_path_factory.mktemp("bert"))


def test_instruction_is_the_system_prompt(judge: Path) -> None:
    """An instruction goes where CrossEncoder's prompt goes, and changes the logits."""
    model = load_torch(str(judge), device="cpu")
    assert model.info.accepts_instruction
    asked = logits(model, PAIRS, "Find code that sorts.")
    np.testing.assert_allclose(asked, predict(judge, PAIRS, prompt="Find code that sorts."), atol=1e-4)
    default = logits(model, PAIRS)
    np.testing.assert_allclose(default, predict(judge, PAIRS), atol=1e-4)
    assert np.abs(asked - default).max() > 1e-3


def test_query_that_looks_like_the_template(judge: Path) -> None:
    """A query full of the template's own words and tokens is still read as CrossEncoder reads it."""
    pairs = [("<Document>: x<|im_end|>\n{{ messages }}", "yes"), ("<|im_start|>user", "<Query>: no<think>")]
    model = load_torch(str(judge), device="cpu")
    np.testing.assert_allclose(logits(model, pairs), predict(judge, pairs), atol=1e-4)


def test_text_after_the_document(tmp_path: Path) -> None:
    """A template whose plain text follows the document at once is still assembled exactly."""
    template = (
        "query: {{ messages | selectattr('role', 'eq', 'query') | map(attribute='content') | first }} \n"
        "text: {{ messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first }} \n"
        "Answer yes or no.<|im_end|>"
    )

    folder = yes_no("Qwen2", template=template)(tmp_path)
    model = load_torch(str(folder), device="cpu")
    documents = ["a list.", "a list", "", "list\n\n", " x ", "'s", "中文。", "it " * 30]
    pairs = [("sort", document) for document in documents]
    np.testing.assert_allclose(logits(model, pairs), predict(folder, pairs), atol=1e-4)
    assert not model.info.accepts_instruction
    limit = model.encode_query("sort").head.size + model.encode_query("sort").tail.size + 9
    cut = load_torch(str(folder), device="cpu", max_tokens=int(limit))
    expected = CrossEncoder(str(folder), device="cpu", max_length=int(limit)).predict(
        pairs, activation_fn=torch.nn.Identity()
    )
    np.testing.assert_allclose(logits(cut, pairs), expected, atol=1e-4)


def test_saved_default_prompt_goes_before_the_query(bert: Path, tmp_path: Path) -> None:
    """A prompt saved with the model is applied to every query, and enters the fingerprint."""
    encoder = CrossEncoder(str(bert), device="cpu", prompts={"find": "query: "}, default_prompt_name="find")
    encoder.save_pretrained(str(tmp_path / "prompted"))
    model = load_torch(str(tmp_path / "prompted"), device="cpu")
    plain = load_torch(str(bert), device="cpu")
    np.testing.assert_allclose(logits(model, PAIRS), predict(tmp_path / "prompted", PAIRS), atol=1e-4)
    np.testing.assert_allclose(
        logits(model, PAIRS), logits(plain, [("query: " + query, text) for query, text in PAIRS]), atol=1e-5
    )
    assert model.info.fingerprint != plain.info.fingerprint
    assert not model.info.accepts_instruction
    with pytest.raises(InvalidRequest, match="instruction"):
        model.encode_query("q", "Judge!")


def _labelled(folder: Path, names: list[str]) -> Path:
    config = transformers.BertConfig(**{**SMALL, "num_labels": len(names)})
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
    tokenizer = tiny.fast(tiny.wordpiece(), POSITIONS, **tiny.BERT_NAMES)
    return tiny.save(folder, transformers.BertForSequenceClassification, config, tokenizer)


@pytest.mark.parametrize("names", [["irrelevant", "Relevant"], ["yes", "no"], ["a", "b", "relevant"]])
def test_several_labels_give_the_relevant_ones_probability(tmp_path: Path, names: list[str]) -> None:
    """With one label named relevant, wherever it stands, sigmoid(logit) is its softmax probability."""
    folder = _labelled(tmp_path, names)
    model = load_torch(str(folder), device="cpu")
    softmax = predict(folder, PAIRS, apply_softmax=True)
    index = next(i for i, name in enumerate(names) if name.lower() in ("relevant", "yes"))
    np.testing.assert_allclose(1 / (1 + np.exp(-logits(model, PAIRS))), softmax[:, index], atol=1e-5)


@pytest.mark.parametrize("names", [["LABEL_0", "LABEL_1"], ["relevant", "yes"], ["contradiction", "neutral"]])
def test_several_labels_without_a_name_are_refused(tmp_path: Path, names: list[str]) -> None:
    """Labels of which none, or more than one, means relevant are refused with what to do."""
    folder = _labelled(tmp_path, names)
    with pytest.raises(ConfigurationError, match="name one 'relevant' in id2label"):
        load_torch(str(folder), device="cpu")


def test_label_order_enters_the_fingerprint(tmp_path: Path) -> None:
    """Two checkpoints that differ only in which label is relevant have different fingerprints."""
    first = _labelled(tmp_path / "a", ["relevant", "other"])
    second = _labelled(tmp_path / "b", ["other", "relevant"])
    weights = [json.loads((folder / "config.json").read_text())["id2label"] for folder in (first, second)]
    assert weights[0] != weights[1]
    assert (
        load_torch(str(first), device="cpu").info.fingerprint
        != load_torch(str(second), device="cpu").info.fingerprint
    )
