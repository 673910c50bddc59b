"""The texts to score: taken from a request, or built from the objects in it, within its bounds."""

from collections.abc import Sequence
from typing import Any, TypeVar

from server.errors import InvalidRequest, TooLarge
from server.transport.http.dialects.base import Facts

__all__ = ["document_texts", "within_limit"]

MAX_RANK_FIELDS = 64

T = TypeVar("T")


def within_limit(documents: Sequence[T], facts: Facts, *, field: str = "documents") -> Sequence[T]:
    """The documents, when one request may have so many; nothing is built for more.

    Raises:
        TooLarge: it may not.
    """
    if len(documents) > facts.max_documents:
        raise TooLarge(
            field, "the request", actual=len(documents), limit=facts.max_documents, unit="documents"
        )
    return documents


def document_texts(
    documents: Sequence[str | dict[str, Any]],
    facts: Facts,
    *,
    field: str = "documents",
    rank_fields: Sequence[str] | None = None,
) -> list[str]:
    """The texts of strings and objects: `rank_fields` of an object as "field: value" lines, else its `text`.

    Raises:
        InvalidRequest: an object has none of it.
        TooLarge: too many documents or fields, or all that is built has more bytes than a request may.
    """
    # A field that is named again would be the same line again.
    names = list(dict.fromkeys(rank_fields or ()))
    if len(names) > MAX_RANK_FIELDS:
        raise TooLarge("rank_fields", "the request", actual=len(names), limit=MAX_RANK_FIELDS, unit="fields")
    built_bytes = 0
    texts = []
    for index, document in enumerate(within_limit(documents, facts, field=field)):
        built = None if isinstance(document, str) else _built(document, names, f"{field}[{index}]")
        if built is not None:
            built_bytes += len(built) if built.isascii() else len(built.encode("utf-8", "surrogatepass"))
            if built_bytes > facts.max_request_bytes:
                raise TooLarge(
                    "rank_fields",
                    f"the text of {field} up to [{index}]",
                    actual=built_bytes,
                    limit=facts.max_request_bytes,
                    unit="bytes",
                )
        texts.append(_text(document, f"{field}[{index}]") if built is None else built)
    return texts


def _built(document: dict[str, Any], names: Sequence[str], where: str) -> str | None:
    """What the named fields say; None when the document has none of them."""
    named = [(name, document[name]) for name in names if document.get(name) is not None]
    try:
        if len(named) == 1:
            return str(named[0][1])
        return "\n".join(f"{name}: {value}" for name, value in named) or None
    except RecursionError:
        raise InvalidRequest(where, "is nested too deeply to be ranked by") from None


def _text(document: str | dict[str, Any], where: str) -> str:
    text = document if isinstance(document, str) else document.get("text")
    if not isinstance(text, str):
        raise InvalidRequest(where, "has no text; send a string or {text}, or name fields in rank_fields")
    return text
