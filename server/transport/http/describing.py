"""GET: what is served, whether it is well, and how busy it is."""

import time
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from server import __version__
from server.errors import NotReady
from server.transport.http.service import Exchange, HttpService
from server.transport.tei_facts import STATED_CONCURRENT_REQUESTS, tei_dtype

__all__ = ["describe_info", "describe_meta", "describe_metrics", "describe_models", "endpoint", "health"]

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# What TEI's clients read a reranker's labels for; a cross-encoder has a single output.
_LABELS = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
_STARTED = int(time.time())

Describe = Callable[[HttpService, Exchange], Awaitable[None]]


def endpoint(
    service: HttpService, describe: Describe, *, public: bool = False
) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint that answers with what `describe` says; `public` ones need no key."""

    async def answer(request: Request) -> Response:
        async with service.exchange(request) as exchange:
            if not public:
                service.caller(request.headers)
            await describe(service, exchange)
        return exchange.response

    return answer


async def describe_info(service: HttpService, exchange: Exchange) -> None:
    """TEI's description of a server, and ours beside it under `server`."""
    info, limits = service.reranker.info, service.reranker.limits
    load = service.load()
    await exchange.answer(
        {
            "model_id": info.model_id,
            "model_sha": info.revision,
            "model_dtype": tei_dtype(info.execution),
            "model_type": {"reranker": _LABELS},
            "max_concurrent_requests": STATED_CONCURRENT_REQUESTS,
            "max_input_length": info.max_tokens,
            "max_batch_tokens": info.default_token_budget,
            "max_batch_requests": None,
            "max_client_batch_size": limits.max_documents,
            "auto_truncate": True,
            "tokenization_workers": 1,
            "version": __version__,
            "sha": None,
            "docker_label": None,
            "server": {
                "name": service.server_name,
                "state": "SERVING" if service.serving() else "NOT_SERVING",
                "execution": info.execution,
                "architecture": info.architecture,
                "accepts_instruction": info.accepts_instruction,
                "queued_tokens": load.queued_tokens,
                "tokens_per_second": float(load.tokens_per_second),
                "requests_in_progress": load.requests_in_progress,
                "max_query_bytes": limits.max_query_bytes,
                "max_request_bytes": service.max_request_bytes,
            },
        }
    )


async def describe_models(service: HttpService, exchange: Exchange) -> None:
    """OpenAI's list of models, which is one."""
    await exchange.answer(
        {
            "object": "list",
            "data": [
                {
                    "id": service.reranker.info.model_id,
                    "object": "model",
                    "created": _STARTED,
                    "owned_by": "rerank",
                    "max_model_len": service.reranker.info.max_tokens,
                }
            ],
        }
    )


async def describe_meta(service: HttpService, exchange: Exchange) -> None:
    """What Weaviate asks a module about its model."""
    info = service.reranker.info
    await exchange.answer(
        {"model": info.model_id, "architecture": info.architecture, "max_tokens": info.max_tokens}
    )


async def describe_metrics(service: HttpService, exchange: Exchange) -> None:
    """The same figures as on --metrics-port."""
    await exchange.answer_bytes(service.metrics(), METRICS_TYPE)


async def health(service: HttpService, exchange: Exchange) -> None:
    """200 while the server takes requests, else 503."""
    if not service.serving():
        raise NotReady("this server is starting or shutting down; call another one")
    await exchange.answer({"status": "SERVING", "server": service.server_name})
