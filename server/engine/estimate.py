"""How many tokens a request will have, before it is tokenised: pure policy."""

from collections.abc import Iterable, Sequence

from server.models.base import EncodedDocument, EncodedQuery, Windowing

__all__ = ["TokenEstimate"]

INITIAL_CHARACTERS_PER_TOKEN = 4.0
# Enough documents to average over, few enough to follow a change of language.
MEMORY_DOCUMENTS = 500
SPECIAL_TOKENS = 4
# No language needs more; a megabyte of blanks would teach that texts have hardly any tokens.
MOST_CHARACTERS_PER_TOKEN = 16


class TokenEstimate:
    """Characters per token of the texts seen lately."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._characters = INITIAL_CHARACTERS_PER_TOKEN * MEMORY_DOCUMENTS
        self._tokens = float(MEMORY_DOCUMENTS)

    @property
    def characters_per_token(self) -> float:
        """The present estimate."""
        return self._characters / self._tokens

    def of(self, query: str, documents: Iterable[str], windowing: Windowing) -> int:
        """Estimated tokens of all pairs together."""
        ratio = self.characters_per_token
        query_tokens = len(query) / ratio + SPECIAL_TOKENS
        room = max(1.0, self._max_tokens - query_tokens)
        window = min(room, windowing.max_document_tokens or room)
        total = 0.0
        for document in documents:
            tokens = len(document) / ratio
            windows = 1.0
            if tokens > window and windowing.max_windows > 1:
                windows = min(
                    windowing.max_windows, 1 + (tokens - window) / (window * (1 - windowing.overlap))
                )
            total += windows * (query_tokens + min(tokens, window))
        return int(total)

    def learn(self, query: EncodedQuery, texts: Sequence[str], encoded: Sequence[EncodedDocument]) -> None:
        """These texts became these tokens; only whole documents count."""
        shared_tokens = len(query.head) + len(query.tail)
        whole = [
            (len(text), document.pairs[0].tokens - shared_tokens)
            for text, document in zip(texts, encoded, strict=True)
            if len(document.pairs) == 1 and not document.truncated
        ]
        characters = sum(min(length, MOST_CHARACTERS_PER_TOKEN * count) for length, count in whole)
        tokens = sum(count for _, count in whole)
        if characters < 1 or tokens < 1:
            return
        keep = max(0.0, 1.0 - len(whole) / MEMORY_DOCUMENTS)
        self._characters = self._characters * keep + characters
        self._tokens = self._tokens * keep + tokens
