"""The FastAPI application: which path is answered by whom."""

from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from server.errors import RerankError, shortened
from server.transport.http import describing, openapi
from server.transport.http.dialects import PATHS
from server.transport.http.errors import MethodNotAllowed, NotFound
from server.transport.http.pages import docs_page, page, playground_page, swagger_asset
from server.transport.http.reranking import reranking_endpoint
from server.transport.http.service import HttpService

__all__ = ["build_http_app"]

Endpoint = Callable[[Request], Awaitable[Response]]


def build_http_app(service: HttpService) -> FastAPI:
    """The application for one server."""
    # FastAPI's own documentation pages load their scripts from elsewhere.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    for path in PATHS:
        _post(
            app, path.path, reranking_endpoint(service, path), path.summary, openapi.reranking_operation(path)
        )
    _add_descriptions(app, service)
    _add_pages(app, service)
    app.add_exception_handler(HTTPException, _routing_error(service))
    _own_document(app, accepts_instruction=service.reranker.info.accepts_instruction)
    return app


def _add_descriptions(app: FastAPI, service: HttpService) -> None:
    for path, describe, text in (
        (
            "/info",
            describing.describe_info,
            "Model, limits and load, as TEI's clients ask",
        ),
        ("/v1/models", describing.describe_models, "The model that is served, as OpenAI's clients ask"),
        ("/meta", describing.describe_meta, "The model, as Weaviate asks"),
    ):
        _get(
            app,
            path,
            describing.endpoint(service, describe),
            openapi.describing_operation(text, public=False),
        )
    for path in ("/health", "/ping", "/.well-known/ready", "/.well-known/live"):
        _get(
            app,
            path,
            describing.endpoint(service, describing.health, public=True),
            openapi.describing_operation("This server takes requests", public=True, statuses=("503",)),
        )
    _get(
        app,
        "/metrics",
        describing.endpoint(service, describing.describe_metrics),
        openapi.describing_operation("Figures for Prometheus", public=False, media_type="text/plain"),
    )


def _add_pages(app: FastAPI, service: HttpService) -> None:
    async def document(request: Request) -> Response:
        return JSONResponse(app.openapi())

    async def asset(request: Request) -> Response:
        try:
            return swagger_asset(request.path_params["name"])
        except NotFound:
            raise HTTPException(404) from None

    for path, endpoint in (
        ("/", page(service, playground_page(service))),
        ("/docs", page(service, docs_page)),
        ("/docs/{name}", asset),
        ("/openapi.json", document),
    ):
        app.add_route(path, endpoint, methods=["GET"], include_in_schema=False)


def _post(app: FastAPI, path: str, endpoint: Endpoint, summary: str, operation: dict[str, Any]) -> None:
    app.add_api_route(
        path, endpoint, methods=["POST"], summary=summary, openapi_extra=operation, response_model=None
    )


def _get(app: FastAPI, path: str, endpoint: Endpoint, operation: dict[str, Any]) -> None:
    app.add_api_route(path, endpoint, methods=["GET"], openapi_extra=operation, response_model=None)
    # As HTTP has it wherever there is GET; the document need not say so of each.
    app.add_route(path, endpoint, methods=["HEAD"], include_in_schema=False)


def _routing_error(service: HttpService) -> Callable[[Request, Exception], Awaitable[Response]]:
    """Unknown paths and methods, in the same words and shape as all other errors."""

    async def handle(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path = shortened(request.url.path)
        described: RerankError = NotFound(f"{path}: there is nothing here; /docs lists what there is")
        if error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "")
            described = MethodNotAllowed(f"{request.method} {path}: use {allowed}")
        async with service.exchange(request) as exchange:
            raise described
        response = exchange.response
        response.headers.update(error.headers or {})
        return response

    return handle


def _own_document(app: FastAPI, *, accepts_instruction: bool) -> None:
    """Let the application describe itself with the dialects' schemas."""

    @cache
    def document() -> dict[str, Any]:
        described = get_openapi(routes=app.routes, **openapi.document_extras())
        described["components"] = openapi.components(accepts_instruction=accepts_instruction)
        return described

    app.openapi = document  # type: ignore[method-assign]  # FastAPI documents this as the way
