"""Pages for people: the playground and the documentation. Neither loads anything from elsewhere."""

from collections.abc import Awaitable, Callable
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from server.transport.http.errors import NotFound
from server.transport.http.service import HttpService

__all__ = ["docs_page", "page", "playground_page", "swagger_asset"]

HTML = "text/html; charset=utf-8"
# The pages run only what they carry, and talk only to the server they came from.
_PLAYGROUND_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_DOCS_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'none'; frame-ancestors 'none'"
)
_DOCS = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Rerank: HTTP interface</title>
<link rel="stylesheet" href="docs/swagger-ui.css"></head>
<body><div id="docs"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script>
SwaggerUIBundle({url: "openapi.json", dom_id: "#docs", deepLinking: true, validatorUrl: null})
</script>
</body></html>
"""
_SWAGGER_ASSETS = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}

Page = Callable[[], Response]


def page(service: HttpService, render: Page) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint for a page; it is logged like everything else and needs no key."""

    async def answer(request: Request) -> Response:
        with service.calls.call(
            f"{request.method} {request.url.path}", request.headers.get("x-request-id")
        ) as call:
            response = render()
            call.status = str(response.status_code)
            response.headers["x-request-id"] = call.request_id
            response.headers["x-served-by"] = service.server_name
        return response

    return answer


def playground_page(service: HttpService) -> Page:
    """The playground, or the way to the documentation where it is switched off."""
    if not service.playground:
        return lambda: RedirectResponse("docs")
    html = files(__package__).joinpath("playground.html").read_bytes()
    headers = {"content-security-policy": _PLAYGROUND_POLICY, "cache-control": "no-cache"}
    return lambda: Response(html, headers=headers, media_type=HTML)


def docs_page() -> Response:
    """Swagger UI on our own document."""
    return Response(_DOCS, headers={"content-security-policy": _DOCS_POLICY}, media_type=HTML)


def swagger_asset(name: str) -> Response:
    """A file of Swagger UI, from the package fastapi-offline.

    Raises:
        NotFound: there is no such file.
    """
    if name not in _SWAGGER_ASSETS:
        raise NotFound(f"docs/{name}: there is no such file")
    content = files("fastapi_offline").joinpath("static", name).read_bytes()
    return Response(content, headers={"cache-control": "max-age=86400"}, media_type=_SWAGGER_ASSETS[name])
