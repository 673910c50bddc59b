"""A cross-encoder on torch: packed where the architecture allows it, padded elsewhere.

Importing this module takes seconds, because it imports torch; `server.models.loading` does it last.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from server.errors import ConfigurationError
from server.models.base import (
    EncodedDocument,
    EncodedPair,
    EncodedQuery,
    Logits,
    Model,
    ModelInfo,
    PendingLogits,
    Windowing,
)
from server.models.checkpoint import Source, load_cross_encoder, locate
from server.models.devices import (
    free_caches,
    keep_freed_memory,
    on_device,
    resolve_device,
    resolve_dtype,
)
from server.models.executors import Executor, PackingMismatchError, build_executor
from server.models.fingerprint import digest_of_weights, fingerprint
from server.models.int8_files import load_int8
from server.models.labels import relevance, relevant_label
from server.models.passing_thread import in_passing_thread
from server.models.prompts import Inputs, inputs_of
from server.models.tokenise import PairTokenizer

__all__ = ["TorchModel", "load_torch"]

logger = logging.getLogger(__name__)

DEFAULT_MAX_TOKENS = 8192
DEFAULT_CPU_BUDGET_TOKENS = 1024
DEFAULT_CUDA_BUDGET_TOKENS = 16384


def load_torch(
    model: str,
    *,
    device: str,
    dtype: str = "auto",
    max_tokens: int = DEFAULT_MAX_TOKENS,
    revision: str | None = None,
    threads: int | None = None,
    trust_remote_code: bool = False,
) -> Model:
    """Load a cross-encoder.

    Args:
        model: a hub id, a folder, or the embedded model's name.
        device: cpu, cuda, cuda:N, or auto.
        dtype: auto, float32, float16, bfloat16, or int8, which needs `quantise` first.
        max_tokens: upper bound on the tokens of a pair; the model's own limit also holds.
        revision: branch, tag or commit on the hub.
        threads: of the CPU; None leaves torch's choice, one per core.
        trust_remote_code: whether code out of the checkpoint may run.

    Raises:
        ConfigurationError: one of these can't be used; the message names the option.
    """
    where = resolve_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    if where.type == "cpu":
        keep_freed_memory()
    int8 = dtype == "int8"
    if int8 and where.type != "cpu":
        raise ConfigurationError(f"--dtype int8: runs on the CPU only, not on {where}; use --device cpu")
    source = locate(model, revision)
    precision = resolve_dtype(
        "float32" if int8 else dtype, where, _model_type(source, trust_remote_code=trust_remote_code)
    )

    def build(*, packed: bool) -> TorchModel:
        encoder = load_cross_encoder(source, where, precision, trust_remote_code=trust_remote_code)
        return TorchModel(encoder, source, where, precision, max_tokens=max_tokens, packed=packed, int8=int8)

    try:
        return in_passing_thread(lambda: build(packed=True))
    except PackingMismatchError as error:
        if int8:
            raise ConfigurationError(f"--dtype int8: {error}; use --dtype float32") from error
        logger.warning("%s; loading again to run it padded", error)
        return in_passing_thread(lambda: build(packed=False))


def _model_type(source: Source, *, trust_remote_code: bool) -> str:
    """The architecture's family name, from the configuration alone; "" if there is none."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            source.path,
            revision=source.revision,
            local_files_only=source.local_only,
            trust_remote_code=trust_remote_code,
        )
    except Exception:  # loading proper will say what is wrong
        return ""
    return str(config.model_type)


class TorchModel:
    """A loaded cross-encoder; see `server.models.base.Model`.

    Args:
        encoder: a sentence-transformers CrossEncoder on its device. It is changed in place,
            and of no use to anybody else afterwards.
        source: where it came from.
        device: where it is.
        dtype: precision of its weights.
        max_tokens: upper bound on the tokens of a pair.
        packed: whether packed execution may be used.
        int8: whether the linear layers run in int8, from the files that `quantise` wrote.
        before_forward: called with each batch before it runs. Tests inject failures here.
    """

    def __init__(
        self,
        encoder: Any,
        source: Source,
        device: torch.device,
        dtype: torch.dtype,
        *,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        packed: bool = True,
        int8: bool = False,
        before_forward: Callable[[Sequence[EncodedPair]], None] | None = None,
    ) -> None:
        network = encoder[0].model
        self._device = device
        self._label = relevant_label(network.config, encoder.num_labels)
        self._before_forward = before_forward
        weights = digest_of_weights(encoder)
        inputs: Inputs = inputs_of(encoder, max_tokens)
        self._tokenizer: PairTokenizer = inputs.tokenizer
        linears, content = load_int8(source, weights) if int8 else (None, "")
        self._executor: Executor | None = build_executor(
            encoder, inputs, device, packed=packed, linears=linears
        )
        precision = "int8" if int8 else str(dtype).removeprefix("torch.")
        self._info = ModelInfo(
            model_id=source.model_id,
            revision=source.revision or f"local-{weights[:12]}",
            architecture=type(network).__name__,
            execution=f"torch {self._executor.name} {precision} {device}",
            fingerprint=fingerprint(
                ["torch", weights, precision, content, device.type, str(self._label), *inputs.identity]
            ),
            max_tokens=inputs.tokenizer.max_tokens,
            accepts_instruction=inputs.tokenizer.template.accepts_instruction,
            default_token_budget=(
                DEFAULT_CUDA_BUDGET_TOKENS if device.type == "cuda" else DEFAULT_CPU_BUDGET_TOKENS
            ),
            overlaps=device.type == "cuda",
        )

    @property
    def info(self) -> ModelInfo:
        """What is true of this model."""
        return self._info

    def encode_query(self, query: str, instruction: str = "") -> EncodedQuery:
        """Tokenise the query into the head and tail that all its pairs share."""
        return self._tokenizer.encode_query(query, instruction)

    def encode_documents(
        self, query: EncodedQuery, documents: Sequence[str], windowing: Windowing
    ) -> list[EncodedDocument]:
        """Tokenise documents for one query, cutting documents and never the query."""
        return self._tokenizer.encode_documents(query, documents, windowing)

    def submit(self, pairs: Sequence[EncodedPair]) -> PendingLogits:
        """Start scoring one batch; on CUDA this returns before the device is done."""
        if not pairs:
            return _Done(np.zeros(0, dtype=np.float32))
        return on_device(self._device, lambda: self._forward(pairs))

    def _forward(self, pairs: Sequence[EncodedPair]) -> PendingLogits:
        if self._executor is None:
            raise ValueError("the model is closed")
        if self._before_forward is not None:
            self._before_forward(pairs)
        with torch.inference_mode():
            logits = relevance(self._executor.forward(pairs), self._label)
            return _OnDevice(logits) if logits.is_cuda else _Done(logits.numpy())

    def close(self) -> None:
        """Free the device."""
        self._executor = None
        free_caches(self._device)


class _Done:
    """Logits that are already here."""

    def __init__(self, logits: Logits) -> None:
        self._logits = logits

    def wait(self) -> Logits:
        """The logits, shape [pairs]."""
        return self._logits


class _OnDevice:
    """Logits that the device copies into page-locked memory once it has them."""

    def __init__(self, logits: torch.Tensor) -> None:
        self._device = logits.device
        self._host = torch.empty(logits.shape, dtype=torch.float32, pin_memory=True)
        self._host.copy_(logits, non_blocking=True)
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._done.record(torch.cuda.current_stream(logits.device))

    def wait(self) -> Logits:
        """Block until the copy is over; the logits, shape [pairs]."""
        on_device(self._device, self._done.synchronize)
        return self._host.numpy()
