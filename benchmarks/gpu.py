"""`python -m benchmarks.gpu`: packed execution against padded batches of CrossEncoder.predict, on one GPU.

Needs no network, no weights, and no package beyond torch, transformers,
sentence-transformers and numpy. `--device cpu --tiny` runs the same code anywhere.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.random_reranker import FULL, TINY, requests_of_mixed_length, write_random_reranker
from benchmarks.shape import EncoderShape
from benchmarks.workload import Request
from server.engine.warmup import warm_up
from server.models.base import EncodedPair, Model, PendingLogits, Windowing

__all__ = ["main"]

PREDICT_BATCH_PAIRS = 32
REQUEST_DOCUMENTS = 32
# As in the engine: one batch computes while the next is assembled, and two threads tokenise ahead of both.
BATCHES_IN_FLIGHT = 2
TOKENISE_THREADS = 2
PEAK_SQUARES = (4096, 8192)
PEAK_REPEATS = 20
# Requests that a float32 model scores as well, to tell whose rounding a difference is.
CHECKED_REQUESTS = 2
PACKAGES = ("torch", "transformers", "sentence-transformers", "numpy")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write JSON if asked to."""
    options = _with_defaults(_parser().parse_args(arguments))
    with tempfile.TemporaryDirectory(prefix="random-reranker-") as folder:
        results = measure(options, Path(folder))
    text = json.dumps(results, indent=2)
    print(text)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text + "\n")
    return 0


def _with_defaults(options: argparse.Namespace) -> argparse.Namespace:
    """Fill in what depends on the size of the network and on the device."""
    options.requests = options.requests or (4 if options.tiny else 64)
    options.max_tokens = options.max_tokens or (256 if options.tiny else 2048)
    options.dtype = options.dtype or ("float16" if options.device.startswith("cuda") else "float32")
    return options


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything, on a checkpoint written into `folder`."""
    from sentence_transformers import CrossEncoder

    from server.models.torch_model import load_torch

    dtype = getattr(torch, options.dtype)
    write_random_reranker(folder, TINY if options.tiny else FULL, options.dtype)
    requests, lengths = requests_of_mixed_length(
        options.requests, REQUEST_DOCUMENTS, (options.min_tokens, options.max_tokens)
    )
    peak_tflops = _peak_tflops(options.device, dtype, (256,) if options.tiny else PEAK_SQUARES)
    reference = CrossEncoder(str(folder), device=options.device, model_kwargs={"dtype": dtype})
    model = load_torch(str(folder), device=options.device, dtype=options.dtype)
    warm = warm_up(model, options.token_budget or None)
    # The first run of each pays for kernels and memory; the best of the others counts.
    runs: dict[str, Callable[[Sequence[Request]], list[float]]] = {
        "predict": lambda some: _predict(reference, [some]),
        "predict_per_request": lambda some: _predict(reference, [[request] for request in some]),
        "packed": lambda some: _packed(model, some, warm.token_budget),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    scores: dict[str, list[float]] = {}
    for number in range(options.rounds + 1):
        for name, run in runs.items():
            started_s = time.perf_counter()
            scores[name] = run(requests)
            if number > 0:
                seconds[name].append(time.perf_counter() - started_s)
            print(f"round {number}: {name} {time.perf_counter() - started_s:.2f} s", file=sys.stderr)
    exact = CrossEncoder(str(folder), device=options.device, model_kwargs={"dtype": torch.float32})
    exact_scores = _predict(exact, [requests[:CHECKED_REQUESTS]])
    shape = EncoderShape.of_checkpoint(folder)
    tflop = sum(map(shape.pair_flops, lengths)) / 1e12
    figures = {name: _figure(of, lengths, tflop, peak_tflops) for name, of in seconds.items()}
    return {
        "device": torch.cuda.get_device_name() if options.device.startswith("cuda") else platform.machine(),
        "versions": {name: version(name) for name in PACKAGES},
        "model": f"{'tiny' if options.tiny else 'bge-reranker-v2-m3'} shape, random weights, {options.dtype}",
        "execution": model.info.execution,
        "token_budget": warm.token_budget,
        "pairs": len(lengths),
        "tokens": sum(lengths),
        "pair_tokens": [min(lengths), max(lengths)],
        "matmul_peak_tflops": peak_tflops,
        "figures": figures,
        "largest_difference": _largest_difference(scores["packed"], scores["predict"]),
        "largest_difference_from_float32": {
            name: _largest_difference(scores[name][: len(exact_scores)], exact_scores)
            for name in ("predict", "packed")
        },
        "score_range": [min(scores["predict"]), max(scores["predict"])],
        "ratios": {
            "packed_vs_predict": figures["packed"]["pairs_per_s"] / figures["predict"]["pairs_per_s"],
            "packed_vs_predict_per_request": figures["packed"]["pairs_per_s"]
            / figures["predict_per_request"]["pairs_per_s"],
            "packed_vs_peak": figures["packed"]["share_of_peak"],
        },
    }


def _predict(reference: Any, calls: Iterable[Sequence[Request]]) -> list[float]:
    """One call of `predict` for each group of requests; each call sorts its pairs by length."""
    identity = torch.nn.Identity()
    scores: list[float] = []
    for requests in calls:
        pairs = [pair for request in requests for pair in request.pairs]
        answer = reference.predict(
            pairs, batch_size=PREDICT_BATCH_PAIRS, activation_fn=identity, show_progress_bar=False
        )
        scores += answer.tolist()
    return scores


def _packed(model: Model, requests: Sequence[Request], token_budget: int) -> list[float]:
    """As the engine does it, without its queue: in order of arrival, whatever the lengths."""
    scores: list[float] = []
    pending: deque[PendingLogits] = deque()
    with ThreadPoolExecutor(TOKENISE_THREADS) as tokenisers:
        encoded = tokenisers.map(lambda request: _encode(model, request), requests)
        for batch in _batches((pair for pairs in encoded for pair in pairs), token_budget):
            pending.append(model.submit(batch))
            if len(pending) == BATCHES_IN_FLIGHT:
                scores += pending.popleft().wait().tolist()
    for last in pending:
        scores += last.wait().tolist()
    return scores


def _encode(model: Model, request: Request) -> list[EncodedPair]:
    query = model.encode_query(request.query)
    documents = model.encode_documents(query, request.documents, Windowing())
    return [pair for document in documents for pair in document.pairs]


def _batches(pairs: Iterable[EncodedPair], token_budget: int) -> Iterator[list[EncodedPair]]:
    batch: list[EncodedPair] = []
    tokens = 0
    for pair in pairs:
        if batch and tokens + pair.tokens > token_budget:
            yield batch
            batch, tokens = [], 0
        batch.append(pair)
        tokens += pair.tokens
    if batch:
        yield batch


def _peak_tflops(device: str, dtype: torch.dtype, squares: Sequence[int]) -> float:
    """The best rate of a plain matrix product: the device's own ceiling, not its data sheet's."""
    best = 0.0
    for size in squares:
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        for _ in range(2):  # the first round warms up
            _synchronise(device)
            started_s = time.perf_counter()
            for _ in range(PEAK_REPEATS):
                a @ b
            _synchronise(device)
            elapsed_s = time.perf_counter() - started_s
        best = max(best, 2 * size**3 * PEAK_REPEATS / elapsed_s / 1e12)
    return best


def _synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _figure(
    seconds: Sequence[float], lengths: Sequence[int], tflop: float, peak_tflops: float
) -> dict[str, Any]:
    best_s = min(seconds)
    return {
        "pairs_per_s": len(lengths) / best_s,
        "tokens_per_s": sum(lengths) / best_s,
        "tflops": tflop / best_s,
        "share_of_peak": tflop / best_s / peak_tflops,
        "rounds_s": list(seconds),
    }


def _largest_difference(scores: Sequence[float], reference: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(scores, reference, strict=True))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--device", default="cuda:0", help="cuda:N or cpu (default: cuda:0)")
    parser.add_argument(
        "--dtype", default="", help="float16, bfloat16 or float32 (default: what suits the device)"
    )
    parser.add_argument("--tiny", action="store_true", help="a tiny network and short texts, to try the code")
    parser.add_argument(
        "--requests", type=int, default=0, metavar="N", help=f"of {REQUEST_DOCUMENTS} documents each"
    )
    parser.add_argument("--min-tokens", type=int, default=32, metavar="N", help="shortest pair (default: 32)")
    parser.add_argument("--max-tokens", type=int, default=0, metavar="N", help="longest pair (default: 2048)")
    parser.add_argument(
        "--token-budget", type=int, default=0, metavar="N", help="0 tunes it, as the server does"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="the best of N counts (default: 3)"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the results as JSON too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
