"""The OpenAPI document: paths and errors written here, schemas taken from the dialects' structs."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from server import __version__
from server.transport.http.deadlines import TIMEOUT_HEADER
from server.transport.http.dialects import PATHS, PathDialects
from server.transport.http.dialects.base import AnyDialect

__all__ = ["components", "describing_operation", "document_extras", "reranking_operation"]

_REF = "#/components/schemas/{name}"
_JSON = "application/json"
_ERROR_STATUSES = {
    "400": "The request can't be answered as it is; the message names the field.",
    "401": "No API key, or an unknown one.",
    "404": "Another model was asked for than the one served.",
    "408": "The request stopped arriving.",
    "413": "Larger than this server takes.",
    "415": "The body is compressed in an unknown way.",
    "429": "Overloaded; Retry-After says when to come back.",
    "500": "The model failed.",
    "503": "This server is starting or shutting down.",
    "504": "The caller's deadline passed.",
}
_ERROR_SCHEMAS: dict[str, Any] = {
    "CombinedError": {
        "title": "CombinedError",
        "description": "One body that the clients of Cohere, Jina, Voyage, vLLM and OpenAI all understand.",
        "type": "object",
        "required": ["message", "detail", "error"],
        "properties": {
            "message": {"type": "string"},
            "detail": {"type": "string"},
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code", "reason"],
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": {"type": ["string", "null"]},
                    "code": {"type": "integer"},
                    "reason": {"type": "string"},
                },
            },
        },
    },
    "TeiError": {
        "title": "TeiError",
        "type": "object",
        "required": ["error", "error_type"],
        "properties": {"error": {"type": "string"}, "error_type": {"type": "string"}},
    },
    "WeaviateError": {
        "title": "WeaviateError",
        "type": "object",
        "required": ["error"],
        "properties": {"error": {"type": "string"}},
    },
}
_SECURITY: list[dict[str, list[str]]] = [{}, {"bearer": []}, {"apiKey": []}]


def components(*, accepts_instruction: bool) -> dict[str, Any]:
    """Schemas of every dialect's requests and answers, and of errors."""
    schemas = dict(_ERROR_SCHEMAS)
    for dialect in _dialects(PATHS):
        (_,), asked = msgspec.json.schema_components([dialect.request], ref_template=_REF)
        (_,), answered = msgspec.json.schema_components([dialect.answer], ref_template=_REF)
        schemas |= {name: _lenient(schema) for name, schema in asked.items()}
        schemas |= answered
    schemas["ScoreRequest"] = _score_request(schemas["ScoreRequest"])
    if not accepts_instruction:
        schemas["SupersetRequest"]["properties"]["instruction"] = {
            "description": "The model that is served takes none.",
            "anyOf": [{"type": "string", "maxLength": 0}, {"type": "null"}],
        }
    return {
        "schemas": schemas,
        "securitySchemes": {
            "bearer": {"type": "http", "scheme": "bearer"},
            "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        },
    }


def document_extras() -> dict[str, Any]:
    """What the document says of the whole."""
    return {
        "title": "Rerank",
        "version": __version__,
        "description": "Scores documents against a query with a cross-encoder. The same engine as gRPC, "
        "in the formats that existing clients speak.",
    }


def reranking_operation(path: PathDialects) -> dict[str, Any]:
    """POST on one path, with the request and the answer of each of its dialects."""
    return {
        "security": _SECURITY,
        "parameters": [
            {
                "name": TIMEOUT_HEADER,
                "in": "header",
                "required": False,
                "description": "Milliseconds that the caller waits; what can't be done in time is refused.",
                "schema": {"type": "string", "pattern": "^[0-9]{1,12}$"},
            }
        ],
        "requestBody": {
            "required": True,
            "content": {_JSON: {"schema": _any_of([_schema(d.request) for d in path.dialects])}},
        },
        "responses": {
            "200": {
                "description": "The ranking.",
                "content": {_JSON: {"schema": _any_of([_schema(d.answer) for d in path.dialects])}},
            },
            **_errors(_error_schemas(path.dialects), _ERROR_STATUSES),
        },
    }


def describing_operation(
    description: str, *, public: bool, media_type: str = _JSON, statuses: Sequence[str] = ()
) -> dict[str, Any]:
    """GET on one path."""
    schema = {"type": "object"} if media_type == _JSON else {"type": "string"}
    wanted = {*statuses, *(() if public else ("401",))}
    return {
        "security": [] if public else _SECURITY,
        "responses": {
            "200": {"description": description, "content": {media_type: {"schema": schema}}},
            **_errors(
                ["CombinedError"], {code: text for code, text in _ERROR_STATUSES.items() if code in wanted}
            ),
        },
    }


def _errors(schemas: Sequence[str], statuses: Mapping[str, str]) -> dict[str, Any]:
    schema = _any_of([{"$ref": _REF.format(name=name)} for name in schemas])
    return {
        status: {"description": text, "content": {_JSON: {"schema": schema}}}
        for status, text in statuses.items()
    }


def _error_schemas(dialects: Sequence[AnyDialect]) -> list[str]:
    own = {"tei": "TeiError", "weaviate": "WeaviateError"}
    return ["CombinedError", *(own[dialect.name] for dialect in dialects if dialect.name in own)]


def _dialects(paths: Sequence[PathDialects]) -> list[AnyDialect]:
    return list({dialect.name: dialect for path in paths for dialect in path.dialects}.values())


def _schema(kind: Any) -> dict[str, Any]:
    (schema,), _ = msgspec.json.schema_components([kind], ref_template=_REF)
    return schema


def _any_of(schemas: Sequence[dict[str, Any]]) -> dict[str, Any]:
    unique = [schema for index, schema in enumerate(schemas) if schema not in schemas[:index]]
    return unique[0] if len(unique) == 1 else {"anyOf": unique}


def _score_request(schema: dict[str, Any]) -> dict[str, Any]:
    """Which of the fields go together, which the struct can't say."""
    one = {"type": "string", "pattern": r"[^\s\x1c-\x1f\x85]"}
    many = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}
    common = {name: schema["properties"][name] for name in ("model", "truncate_prompt_tokens")}
    return {
        "title": schema["title"],
        "description": "One text with many. The first may be a list as well, as long as the second: "
        "they are then scored pair by pair.",
        "anyOf": [
            {
                "type": "object",
                "required": list(names),
                "properties": {names[0]: one, names[1]: many, **common},
            }
            for names in (("text_1", "text_2"), ("queries", "documents"))
        ],
    }


def _lenient(schema: Any) -> Any:
    """The schema, with what is taken for a boolean or a number as well: "true", 1, "3"."""
    if isinstance(schema, list):
        return [_lenient(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") == "boolean":
        words = {"type": "string", "pattern": "^([tT][rR][uU][eE]|[fF][aA][lL][sS][eE]|[01])$"}
        return {"anyOf": [schema, words, {"enum": [0, 1]}]}
    if schema.get("type") == "integer":
        return {"anyOf": [schema, {"type": "string", "pattern": "^(0|[1-9][0-9]{0,8})$"}]}
    return {key: _lenient(value) for key, value in schema.items()}
