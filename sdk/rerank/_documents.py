"""From the caller's own objects to the strings that travel."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rerank._errors import InvalidRequestError
from rerank._type_variables import T

__all__ = ["as_documents", "texts_of"]


# Attributes that hold the text in the libraries that most people come from
# (LangChain, Haystack and dataclasses of one's own); only used to word the advice.
KNOWN_TEXT_ATTRIBUTES = ("page_content", "text", "content", "body")


def as_documents(documents: Iterable[T]) -> tuple[T, ...]:
    """Return the documents as a tuple, refusing the single string that everybody passes once."""
    if isinstance(documents, str | bytes | Mapping):
        raise InvalidRequestError(
            f"documents: must be a list of documents, not one {type(documents).__name__}; put it in a list",
            field="documents",
        )
    return tuple(documents)


def texts_of(documents: tuple[T, ...], text: Callable[[T], str] | None) -> list[str]:
    """Return each document's text: itself when it is a string, else what `text` makes of it."""
    texts = list(documents) if text is None else [text(document) for document in documents]
    for index, value in enumerate(texts):
        if not isinstance(value, str):
            field = f"documents[{index}]"
            raise InvalidRequestError(f"{field}: {_advice(value, text is not None)}", field=field)
    # The loop above proved what the type checker can't see.
    return texts  # type: ignore[return-value]


def _advice(value: Any, has_text: bool) -> str:
    kind = type(value).__name__
    if has_text:
        return f"text= returned {kind}, not a string"
    if isinstance(value, bytes):
        return "is bytes, not a string; pass text=bytes.decode"
    if isinstance(value, Mapping):
        keys = [key for key in value if isinstance(value[key], str)]
        key = next((name for name in KNOWN_TEXT_ATTRIBUTES if name in keys), next(iter(keys), "text"))
        return f"is a {kind}, not a string; pass text=lambda document: document[{key!r}]"
    attribute = next((name for name in KNOWN_TEXT_ATTRIBUTES if hasattr(value, name)), "text")
    return f"is a {kind}, not a string; pass text=lambda document: document.{attribute}"
