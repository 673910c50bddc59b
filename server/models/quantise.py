"""From a float checkpoint to its int8 form: measure, quantise, judge, save.

    quantise("BAAI/bge-reranker-v2-m3")  # `python -m server quantize --model BAAI/bge-reranker-v2-m3`

Everything is done by the model itself on sample texts, in a minute or so for a small model. The
result is saved beside the checkpoint, with the quality that was measured, and
`--dtype int8` loads it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from server.errors import ConfigurationError
from server.models.base import EncodedPair, Windowing
from server.models.calibrate import Calibration, quantise_input
from server.models.checkpoint import Source, load_cross_encoder, locate
from server.models.devices import keep_freed_memory
from server.models.families import family_of
from server.models.fingerprint import digest_of_weights
from server.models.int8 import Int8Input, Int8Linears, Tensors, check_kernels
from server.models.int8_files import int8_folder, save_int8
from server.models.labels import relevance, relevant_label
from server.models.linears import Linears
from server.models.packed import PackedExecutor
from server.models.prompts import Inputs, inputs_of
from server.models.quality import Task, calibration_pairs, mean_reciprocal_rank, ranking_tasks

__all__ = ["MAX_MRR_LOSS", "Quality", "quantise"]

MAX_MRR_LOSS = 0.005
"""What int8 may cost; more is reported as a failure, though the files stay."""

_CALIBRATION_PAIRS = 120
_TASKS = 150
_MAX_TOKENS = 256
"""Of calibration and judging alike: enough for the docstrings, and what the quoted figures used."""
_BATCH_TOKENS = 2048

Progress: TypeAlias = Callable[[str, float], None]
"""Called with what is being done and the share of the whole that is done, in [0, 1]."""

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Quality:
    """How the int8 form ranks, beside the float one."""

    tasks: int
    mrr_float32: float
    mrr_int8: float
    largest_difference: float
    """Of two logits of one pair."""
    mean_difference: float

    @property
    def mrr_loss(self) -> float:
        """What int8 costs; negative if it ranks better."""
        return self.mrr_float32 - self.mrr_int8

    @property
    def passes(self) -> bool:
        """Whether the loss is small enough to serve."""
        return self.mrr_loss <= MAX_MRR_LOSS


def quantise(
    model: str,
    out_dir: Path | None = None,
    *,
    calibration: Sequence[tuple[str, str]] = (),
    revision: str | None = None,
    trust_remote_code: bool = False,
    tasks: int = _TASKS,
    progress: Progress | None = None,
) -> tuple[Path, Quality]:
    """Quantise a checkpoint and judge the result.

    Args:
        model: a hub id, a folder, or the embedded model's name.
        out_dir: where to write; by default where `--dtype int8` looks.
        calibration: (query, document) pairs like those to be served; by default docstrings.
        revision: branch, tag or commit on the hub.
        trust_remote_code: whether code out of the checkpoint may run.
        tasks: queries of the quality task, of ten documents each.
        progress: told how far it is.

    Returns:
        The folder that was written, and the quality that was measured.

    Raises:
        ConfigurationError: the model can't be loaded or runs padded, or this processor has no int8.
    """
    report = progress or (lambda _what, _share: None)
    check_kernels()
    keep_freed_memory()
    source = locate(model, revision)
    report("loading", 0.0)
    bench = _Bench(source, trust_remote_code=trust_remote_code)
    inputs, tensors = _measure(bench, list(calibration) or calibration_pairs(_CALIBRATION_PAIRS), report)
    quality = _judge(bench, inputs, tensors, tasks, report)
    folder = out_dir or int8_folder(source)
    figures = {**asdict(quality), "mrr_loss": quality.mrr_loss}
    save_int8(folder, source, bench.digest, inputs, tensors, figures)
    report("done", 1.0)
    return folder, quality


class _Bench:
    """A checkpoint that can be loaded again and again, each time with other linear layers."""

    def __init__(self, source: Source, *, trust_remote_code: bool) -> None:
        self._source = source
        self._trust_remote_code = trust_remote_code
        encoder = self._load()
        if family_of(encoder) is None:
            raise ConfigurationError(
                f"--model {source.model_id}: {type(encoder[0].model).__name__} runs padded, and only "
                "packed models can be quantised"
            )
        self.digest = digest_of_weights(encoder)
        self._label = relevant_label(encoder[0].model.config, encoder.num_labels)
        self._inputs: Inputs = inputs_of(encoder, _MAX_TOKENS)

    def _load(self) -> Any:
        return load_cross_encoder(
            self._source, _CPU, torch.float32, trust_remote_code=self._trust_remote_code
        )

    def executor(self, linears: Linears | None, dtype: torch.dtype = torch.float32) -> PackedExecutor:
        """The model, packed, with these layers and its weights in this precision."""
        encoder = self._load().to(dtype)
        family = family_of(encoder)
        assert family is not None
        with torch.inference_mode():
            return PackedExecutor(family(encoder, linears), _CPU, segments=self._inputs.segments)

    def encode(self, query: str, documents: Sequence[str]) -> list[EncodedPair]:
        """One pair a document; raises as the tokenizer does."""
        tokenizer = self._inputs.tokenizer
        found = tokenizer.encode_documents(tokenizer.encode_query(query), documents, Windowing())
        return [pair for document in found for pair in document.pairs]

    def logits(self, executor: PackedExecutor, pairs: Sequence[EncodedPair]) -> list[float]:
        """One logit a pair."""
        with torch.inference_mode():
            found = [relevance(executor.forward(batch), self._label) for batch in _batches(pairs)]
        return [logit for part in found for logit in part.tolist()]


def _batches(pairs: Sequence[EncodedPair]) -> Iterator[list[EncodedPair]]:
    batch: list[EncodedPair] = []
    for pair in pairs:
        if batch and sum(other.tokens for other in batch) + pair.tokens > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(pair)
    if batch:
        yield batch


def _measure(
    bench: _Bench, samples: Sequence[tuple[str, str]], report: Progress
) -> tuple[list[Int8Input], Tensors]:
    watch = Calibration()
    executor = bench.executor(watch, torch.float64)
    batches = list(_batches([pair for query, text in samples for pair in bench.encode(query, [text])]))
    for number, batch in enumerate(batches):
        report("measuring", 0.05 + 0.1 * number / len(batches))
        bench.logits(executor, batch)
    inputs: list[Int8Input] = []
    tensors: Tensors = {}
    with torch.inference_mode():
        for number, measured in enumerate(watch.inputs):
            report("quantising", 0.15 + 0.15 * number / len(watch.inputs))
            spec, made, _ = quantise_input(measured)
            inputs.append(spec)
            tensors |= made
    return inputs, tensors


def _judge(bench: _Bench, inputs: list[Int8Input], tensors: Tensors, count: int, report: Progress) -> Quality:
    tasks = ranking_tasks(count)
    exact, exact_logits = _rank(
        bench, None, tasks, lambda share: report("judging float32", 0.3 + 0.45 * share)
    )
    layers = Int8Linears(inputs, tensors)
    coarse, coarse_logits = _rank(
        bench, layers, tasks, lambda share: report("judging int8", 0.75 + 0.25 * share)
    )
    differences = [abs(a - b) for a, b in zip(exact_logits, coarse_logits, strict=True)]
    return Quality(
        tasks=len(tasks),
        mrr_float32=exact,
        mrr_int8=coarse,
        largest_difference=max(differences),
        mean_difference=sum(differences) / len(differences),
    )


def _rank(
    bench: _Bench, linears: Linears | None, tasks: Sequence[Task], done: Callable[[float], None]
) -> tuple[float, list[float]]:
    """The mean reciprocal rank with these layers, and all logits in order."""
    executor = bench.executor(linears)
    rows: list[Sequence[float]] = []
    for number, task in enumerate(tasks, 1):
        rows.append(bench.logits(executor, bench.encode(task.query, task.documents)))
        done(number / len(tasks))
    return mean_reciprocal_rank(tasks, rows), [logit for row in rows for logit in row]
