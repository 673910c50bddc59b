"""What TEI's two interfaces, gRPC and HTTP, have in common."""

from server.reranker import Truncation

__all__ = ["STATED_CONCURRENT_REQUESTS", "tei_dtype", "tei_truncation"]

# Admission counts tokens and bounds no number of requests, but TEI's clients want one: TEI's default.
STATED_CONCURRENT_REQUESTS = 512


def tei_truncation(*, truncate: bool, left: bool) -> Truncation:
    """Only ends are cut here; who wants the beginning cut is refused once something must be."""
    return Truncation.END if truncate and not left else Truncation.ERROR


def tei_dtype(execution: str) -> str:
    """The precision among the words of ModelInfo.execution."""
    words = (word for word in execution.split() if word.startswith(("float", "bfloat", "int")))
    return next(words, "float32")
