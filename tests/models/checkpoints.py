"""One tiny checkpoint of every family, by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers

from tests.models import tiny

POSITIONS = 96

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "num_labels": 1,
    "vocab_size": tiny.VOCABULARY + 64,
    "max_position_embeddings": POSITIONS,
}


def _bert_like(kind: str, *, segments: bool = True, **options: Any) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        config = getattr(transformers, f"{kind}Config")(**{**SMALL, "pad_token_id": 0, **options})
        names: dict[str, Any] = dict(tiny.BERT_NAMES)
        if not segments:
            names["model_input_names"] = tiny.NO_SEGMENTS
        return tiny.save(
            folder,
            getattr(transformers, f"{kind}ForSequenceClassification"),
            config,
            tiny.fast(tiny.wordpiece(), POSITIONS, **names),
        )

    return build


def _roberta_like(kind: str, **options: Any) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        config = getattr(transformers, f"{kind}Config")(
            **{**SMALL, "pad_token_id": 1, "type_vocab_size": 1, **options}
        )
        return tiny.save(
            folder,
            getattr(transformers, f"{kind}ForSequenceClassification"),
            config,
            # No limit of its own: the last two positions must not be used all the same.
            tiny.fast(tiny.unigram(), 10**30, **tiny.ROBERTA_NAMES, model_input_names=tiny.NO_SEGMENTS),
        )

    return build


def _decoder(kind: str, *, bos: bool = False, **options: Any) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        config = getattr(transformers, f"{kind}Config")(
            **{**SMALL, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, **options}
        )
        backend = tiny.with_bos(tiny.bytelevel(), "<|im_start|>") if bos else tiny.bytelevel()
        return tiny.save(
            folder,
            getattr(transformers, f"{kind}ForSequenceClassification"),
            config,
            tiny.fast(backend, POSITIONS, **tiny.QWEN_NAMES, model_input_names=tiny.NO_SEGMENTS),
        )

    return build


def yes_no(kind: str, *, template: str | None = tiny.QWEN_TEMPLATE, **options: Any) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        settings = {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, **options}
        settings["max_position_embeddings"] = 512
        config = getattr(transformers, f"{kind}Config")(**settings)
        names: dict[str, Any] = {**tiny.QWEN_NAMES, "model_input_names": tiny.NO_SEGMENTS}
        if template is not None:
            names["chat_template"] = template
        return tiny.save(
            folder,
            getattr(transformers, f"{kind}ForCausalLM"),
            config,
            tiny.fast(tiny.bytelevel(), 512, **names),
        )

    return build


PACKED: dict[str, Callable[[Path], Path]] = {
    "bert": _bert_like("Bert"),
    "bert-no-segments": _bert_like("Bert", segments=False),
    "bert-tanh-gelu": _bert_like("Bert", hidden_act="gelu_new"),
    "electra": _bert_like("Electra", embedding_size=16),
    "distilbert": _bert_like(
        "DistilBert", segments=False, dim=32, n_layers=2, n_heads=4, hidden_dim=48, hidden_size=32
    ),
    "roberta": _roberta_like("Roberta"),
    "xlm-roberta": _roberta_like("XLMRoberta"),
    "camembert": _roberta_like("Camembert"),
    "modernbert-cls": _bert_like(
        "ModernBert", segments=False, num_hidden_layers=4, global_attn_every_n_layers=2, local_attention=12
    ),
    "modernbert-mean": _bert_like(
        "ModernBert",
        segments=False,
        num_hidden_layers=4,
        global_attn_every_n_layers=2,
        local_attention=12,
        classifier_pooling="mean",
    ),
    "deberta-v3": _bert_like(
        "DebertaV2",
        relative_attention=True,
        position_buckets=16,
        max_relative_positions=-1,
        pos_att_type=["p2c", "c2p"],
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        position_biased_input=False,
        type_vocab_size=0,
    ),
    "deberta-v2-unshared": _bert_like(
        "DebertaV2",
        relative_attention=True,
        max_relative_positions=40,
        pos_att_type=["c2p", "p2c"],
        share_att_key=False,
        position_biased_input=True,
        type_vocab_size=2,
    ),
    "qwen2": _decoder("Qwen2"),
    "qwen3": _decoder("Qwen3"),
    "qwen2-sliding": _decoder(
        "Qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1, num_hidden_layers=3
    ),
    "llama": _decoder("Llama", bos=True),
    "mistral-sliding": _decoder("Mistral", bos=True, sliding_window=9),
    "gemma": _decoder("Gemma", bos=True),
    "qwen3-yes-no": yes_no("Qwen3"),
    "llama-yes-no-untemplated": yes_no("Llama", template=None),
}

PADDED: dict[str, Callable[[Path], Path]] = {
    "mpnet": _roberta_like("MPNet"),
    "albert": _bert_like("Albert", embedding_size=16),
    "gemma2": _decoder("Gemma2", bos=True),
    "deberta-v2-convolution": _bert_like(
        "DebertaV2",
        relative_attention=True,
        position_buckets=16,
        pos_att_type=["p2c", "c2p"],
        share_att_key=True,
        conv_kernel_size=3,
        conv_act="gelu",
        type_vocab_size=0,
    ),
}
