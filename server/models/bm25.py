"""BM25 in fifty lines: first-stage retrieval for the ranking task, with no dependency."""

import heapq
import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

__all__ = ["Bm25", "words"]

TERM_SATURATION = 1.2
LENGTH_NORMALISATION = 0.75

_WORD = re.compile(r"[a-z0-9]+")


def words(text: str) -> list[str]:
    """Lower-case ASCII words and numbers; `read_line()` gives read and line."""
    return _WORD.findall(text.lower())


class Bm25:
    """An inverted index over a fixed list of documents."""

    def __init__(self, documents: Sequence[str]) -> None:
        counts = [Counter(words(document)) for document in documents]
        lengths = [counter.total() for counter in counts]
        mean_length = max(1.0, sum(lengths) / max(1, len(lengths)))
        postings: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for index, counter in enumerate(counts):
            penalty = 1 - LENGTH_NORMALISATION + LENGTH_NORMALISATION * lengths[index] / mean_length
            for word, count in counter.items():
                weight = count * (TERM_SATURATION + 1) / (count + TERM_SATURATION * penalty)
                postings[word].append((index, weight))
        self._postings = {
            word: (math.log(1 + (len(documents) - len(hits) + 0.5) / (len(hits) + 0.5)), hits)
            for word, hits in postings.items()
        }

    def top(self, query: str, n: int) -> list[int]:
        """The indices of the `n` best documents, best first; ties go to the lower index."""
        scores: dict[int, float] = defaultdict(float)
        for word in words(query):
            rarity, hits = self._postings.get(word, (0.0, []))
            for index, weight in hits:
                scores[index] += rarity * weight
        best = heapq.nsmallest(n, scores.items(), key=lambda item: (-item[1], item[0]))
        return [index for index, _ in best]
