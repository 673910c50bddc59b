"""Queries and documents into token ids: the query once, its documents in one Rust batch.

A Hugging Face tokenizer keeps its truncation as state that every caller shares, so that
threads with different limits silently cut each other's texts. Here a private clone neither
truncates nor pads and is never changed; cutting is arithmetic on the ids afterwards.

The document is what gets cut, never the query. For a query that fills at most half of the
room this is what `truncation="longest_first"` gives.

Of a long document only a part is handed to the library, which takes some 300 bytes and a microsecond
for every character. Mostly the part ends where a cut is proven not to matter (`server.models.precut`).
Where there is no such place, as in one giant word, a text of up to 260,000 characters is read whole,
and of a longer one the part ends 16,000 characters or more, and 500 tokens, after the last token that
is used. Nothing proves that this is enough, and for runs of one letter it is not: Unigram knows many
equally good ways to divide them, and rounding chooses by the far end. A text that holds too few tokens
in its first 260,000 characters, say white space or one unknown word, is read no further and counts as
truncated.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from tokenizers import Encoding, Tokenizer

from server.errors import InvalidRequest, TooLarge
from server.models.base import EncodedDocument, EncodedPair, EncodedQuery, TokenIds, Windowing
from server.models.precut import first_cut, safe_cuts
from server.models.templates import Template

__all__ = ["PairTokenizer", "private_clone"]

# A first guess at how much text holds a token, and how much more to read if it was too little.
_CHARACTERS_PER_TOKEN = 6
_SMALLEST_CUT = 4096
_GROWTH = 4
_FARTHEST_CUT = 2**18
"""A text that holds too few tokens before it is given up, unless windows need more."""
_BEYOND = 2**14
"""Characters in which a safe cut is looked for, and after which there is another."""
_APART = 512
"""Tokens between the last one that is used and a cut that is not proven to be safe."""
_TOGETHER = 2**17
"""Characters handed to the library at once, beside those of the first document: some 40 MB."""


def private_clone(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that neither truncates nor pads, and that nobody else can change."""
    clone: Tokenizer = Tokenizer.from_str(tokenizer.to_str())
    clone.no_truncation()
    clone.no_padding()
    return clone


@dataclass(frozen=True, slots=True)
class _Tokens:
    """The first tokens of a text."""

    ids: TokenIds
    offsets: list[tuple[int, int]]
    """Characters of each token, if asked for."""
    found: int
    """How many there were before the rest was dropped."""


@dataclass(frozen=True, slots=True)
class _Window:
    start: int
    end: int


class PairTokenizer:
    """Tokenises for one model; thread-safe.

    Args:
        tokenizer: a private clone.
        template: what stands around the document, made of the same clone.
        max_tokens: most tokens of one pair, special tokens included.
    """

    def __init__(self, tokenizer: Tokenizer, template: Template, max_tokens: int) -> None:
        self.template = template
        self.max_tokens = max_tokens
        self._tokenizer = tokenizer
        self._cuts = safe_cuts(tokenizer)
        head, tail = template.around("", "")
        self._overhead = len(head) + len(tail)

    def encode_query(self, query: str, instruction: str = "") -> EncodedQuery:
        """The ids around every document of this query.

        Raises:
            InvalidRequest: the text is not Unicode, or the model takes no instruction.
        """
        head, tail = self.template.around(query, instruction)
        return EncodedQuery(head=head, tail=tail)

    def encode_documents(
        self, query: EncodedQuery, documents: Sequence[str], windowing: Windowing
    ) -> list[EncodedDocument]:
        """Encode documents for one query, each cut to what is left beside the query.

        Raises:
            TooLarge: the query alone leaves no room for a document.
            InvalidRequest: a document is not Unicode; the field says which.
        """
        room = self._room(query, windowing)
        stride = max(1, room - int(room * windowing.overlap))
        readable = room + (windowing.max_windows - 1) * stride
        with_offsets = windowing.max_windows > 1
        encodings, unread = self._encode(documents, readable + 1, with_offsets)
        found = [
            self._windows(query, document[: unread.get(i)], encoding, room, stride, windowing.max_windows)
            if with_offsets
            else self._cut(query, encoding, room)
            for i, (document, encoding) in enumerate(zip(documents, encodings, strict=True))
        ]
        for i in unread:
            found[i] = replace(found[i], truncated=True)
        return found

    def _room(self, query: EncodedQuery, windowing: Windowing) -> int:
        """Tokens left for the document."""
        used = len(query.head) + len(query.tail)
        room = self.max_tokens - used
        if room < 1 + len(self.template.trail_ids):
            fixed = self._overhead + len(self.template.trail_ids)
            raise TooLarge(
                "query",
                "the query",
                actual=used - self._overhead,
                limit=max(0, self.max_tokens - fixed - 1),
                unit="tokens",
            )
        if windowing.max_document_tokens:
            # The trail belongs to the template, not to the document that the caller limits.
            room = min(room, windowing.max_document_tokens + len(self.template.trail_ids))
        return room

    def _cut(self, query: EncodedQuery, encoding: _Tokens, room: int) -> EncodedDocument:
        ids = encoding.ids
        truncated = len(ids) > room
        if truncated:
            trail = self.template.trail_ids
            ids = np.concatenate((ids[: room - len(trail)], trail))
        return EncodedDocument(pairs=(EncodedPair(query, ids),), truncated=truncated)

    def _windows(
        self, query: EncodedQuery, document: str, encoding: _Tokens, room: int, stride: int, most: int
    ) -> EncodedDocument:
        ids = encoding.ids
        if len(ids) <= room:
            pair = EncodedPair(query, ids)
            return EncodedDocument(pairs=(pair,), truncated=False, spans=((0, len(document)),))
        trail = self.template.trail_ids
        windows, truncated = _slide(len(ids), room - len(trail), stride, most)
        spans = tuple(self._span(document, encoding, window, len(ids)) for window in windows)
        pieces = [ids[window.start : window.end] for window in windows]
        if len(trail):
            pieces = [np.concatenate((piece, trail)) for piece in pieces]
        pairs = tuple(EncodedPair(query, piece) for piece in pieces)
        return EncodedDocument(pairs=pairs, truncated=truncated, spans=spans)

    def _span(self, document: str, encoding: _Tokens, window: _Window, tokens: int) -> tuple[int, int]:
        """Characters [start, end) of the document as the caller sent it."""
        shift = len(self.template.lead)
        if self.template.strips:
            shift -= len(document) - len(document.lstrip())
        offsets = encoding.offsets
        # Where a window begins or ends with the document, so does its span, white space included.
        start = 0 if window.start == 0 else offsets[window.start][0] - shift
        end = len(document) if window.end >= tokens else offsets[window.end - 1][1] - shift
        return max(0, start), min(len(document), end)

    def _encode(
        self, documents: Sequence[str], needed: int, with_offsets: bool
    ) -> tuple[list[_Tokens], dict[int, int]]:
        """Encode documents, reading of each only as much as holds `needed` tokens.

        Returns:
            No more than these tokens of each document, and how many characters were read of those
            documents that were given up before.
        """
        strips = self.template.strips
        texts = [document.strip() for document in documents] if strips else documents
        reach = max(_SMALLEST_CUT, needed * _CHARACTERS_PER_TOKEN)
        farthest = max(_FARTHEST_CUT, reach)
        results: dict[int, _Tokens] = {}
        unread: dict[int, int] = {}
        waiting: Sequence[int] = range(len(texts))
        while waiting:
            ends = {i: self._end(texts[i], reach) for i in waiting}
            for together in _groups({i: end for i, (end, _) in ends.items()}):
                parts = [(texts[i], ends[i][0]) for i in together]
                try:
                    results |= zip(together, self._encode_cut(parts, needed, with_offsets), strict=True)
                except (UnicodeEncodeError, TypeError) as error:
                    raise _not_unicode(texts) from error
            # Usually empty: texts whose cut was too short, such as ones that hold mostly white space.
            short = []
            for i, (end, safe) in ends.items():
                if end < len(texts[i]) and results[i].found < needed + (0 if safe else _APART):
                    if reach < farthest:
                        short.append(i)
                    elif results[i].found < needed:
                        stripped = len(documents[i]) - len(documents[i].lstrip()) if strips else 0
                        unread[i] = stripped + end
            waiting, reach = short, min(reach * _GROWTH, farthest)
        return [results[i] for i in range(len(texts))], unread

    def _end(self, text: str, reach: int) -> tuple[int, bool]:
        """Where to cut a text, and whether this provably changes nothing before."""
        if len(text) <= reach + min(reach, _BEYOND):
            return len(text), True
        end = min(reach + _BEYOND, len(text))
        cut = first_cut(self._cuts, text, reach, end)
        if cut is not None:
            return cut, True
        # Nothing is proven of such a text; up to this length it is read whole all the same.
        return (len(text), True) if len(text) <= _FARTHEST_CUT else (end, end == len(text))

    def _encode_cut(
        self, parts: Sequence[tuple[str, int]], needed: int, with_offsets: bool
    ) -> Iterator[_Tokens]:
        """The tokens of each text up to its end, at most `needed` of them."""
        lead, trail = self.template.lead, self.template.trail
        prepared = [lead + text[:end] + (trail if end == len(text) else "") for text, end in parts]
        encode = self._tokenizer.encode_batch if with_offsets else self._tokenizer.encode_batch_fast
        encodings: list[Encoding] = encode(prepared, add_special_tokens=False)
        for encoding in encodings:
            ids = np.array(encoding.ids[:needed], dtype=np.int32)
            yield _Tokens(ids, encoding.offsets[:needed] if with_offsets else [], len(encoding))


def _groups(sizes: Mapping[int, int]) -> Iterator[list[int]]:
    """Keys in order, so many at a time that their sizes hardly exceed what is encoded together."""
    group: list[int] = []
    total = 0
    for key, size in sizes.items():
        if group and total + size > _TOGETHER:
            yield group
            group, total = [], 0
        group.append(key)
        total += size
    yield group


def _slide(tokens: int, room: int, stride: int, most: int) -> tuple[list[_Window], bool]:
    """Overlapping windows over a text longer than one, and whether they leave its end unread.

    The last window is moved back to end with the text instead of being short: the model
    judges a passage better with its context, at no more than the price of a full window.
    """
    windows: list[_Window] = []
    for index in range(most):
        start = index * stride
        if start + room >= tokens:
            windows.append(_Window(max(0, tokens - room), tokens))
            return windows, False
        windows.append(_Window(start, start + room))
    return windows, True


def _not_unicode(texts: Sequence[str]) -> InvalidRequest:
    for index, text in enumerate(texts):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            return InvalidRequest(
                f"documents[{index}]", "is not valid Unicode: it holds half of a surrogate pair"
            )
    return InvalidRequest("documents", "are not valid Unicode")
