"""API keys: given once or asked for before each call, and never shown."""

from collections.abc import Awaitable, Callable

__all__ = ["ApiKey", "AsyncApiKey", "check_api_key"]

ApiKey = str | Callable[[], str]
AsyncApiKey = ApiKey | Callable[[], Awaitable[str]]


def check_api_key(value: object) -> str:
    """Return the key if it can travel in a header; the message never holds the key."""
    if not isinstance(value, str):
        raise TypeError(f"api_key: must be a string or give one, not {type(value).__name__}")
    if not value or not value.isascii() or not value.isprintable() or value != value.strip():
        raise ValueError(
            "api_key: must be printable ASCII without spaces around it; "
            "was it read from a file with its line end?"
        )
    return value
