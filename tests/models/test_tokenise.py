"""Assembling pairs from parts equals tokenising them whole; documents are cut, queries never."""

import itertools
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from server.errors import InvalidRequest, TooLarge
from server.models.base import EncodedDocument, Windowing
from server.models.precut import first_cut, safe_cuts
from server.models.templates import PairTemplate
from server.models.tokenise import PairTokenizer, _groups, private_clone
from tests.models import tiny
from tests.models.texts import MULTILINGUAL, docstrings

KINDS = {
    "wordpiece": (tiny.wordpiece, tiny.BERT_NAMES),
    "unigram": (tiny.unigram, tiny.ROBERTA_NAMES),
    "bytelevel": (tiny.bytelevel, tiny.QWEN_NAMES),
}
SAMPLES = [*MULTILINGUAL, *(body[:300] for _, body in docstrings()[:60])]

anything = st.one_of(st.text(max_size=80), st.sampled_from(SAMPLES), st.text("ab \n.", max_size=60))
short = st.one_of(st.text(max_size=6), st.sampled_from(["How?", "größer", "中文"]))


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def pair_tokenizer(backend: Tokenizer, limit: int) -> PairTokenizer:
    clone = private_clone(backend)
    return PairTokenizer(clone, PairTemplate.of(clone), limit)


def encode(tokenizer: PairTokenizer, query: str, document: str, **windowing: Any) -> EncodedDocument:
    (found,) = tokenizer.encode_documents(tokenizer.encode_query(query), [document], Windowing(**windowing))
    return found


@given(query=anything, document=anything)
@settings(max_examples=150, deadline=None)
def test_parts_equal_the_whole(kind: str, query: str, document: str) -> None:
    """Without cutting, head + document + tail is what the tokenizer gives for the pair."""
    backend, names = KINDS[kind][0](), KINDS[kind][1]
    found = encode(pair_tokenizer(backend, 10**6), query, document)
    # As a batch of one, since transformers takes an empty second text for a missing one otherwise.
    whole = tiny.fast(backend, 10**6, **names)([[query, document]])["input_ids"][0]
    assert found.pairs[0].token_ids.tolist() == whole
    assert not found.truncated


@given(query=short, document=anything, limit=st.integers(24, 64))
@settings(max_examples=150, deadline=None)
def test_equals_longest_first_for_short_queries(kind: str, query: str, document: str, limit: int) -> None:
    """When the query fills at most half of the room, cutting is what longest_first does."""
    backend, names = KINDS[kind][0](), KINDS[kind][1]
    tokenizer = pair_tokenizer(backend, limit)
    empty = tokenizer.encode_query("")
    special = len(empty.head) + len(empty.tail)
    if len(tokenizer.encode_query(query).head) + len(empty.tail) - special > (limit - special) // 2:
        return
    found = encode(tokenizer, query, document)
    reference = tiny.fast(backend, limit, **names)
    whole = reference([[query, document]], truncation="longest_first", max_length=limit)["input_ids"][0]
    assert found.pairs[0].token_ids.tolist() == whole
    full = reference([[query, document]])["input_ids"][0]
    assert found.truncated == (len(full) > limit)


def test_many_pairs_in_many_languages(kind: str) -> None:
    """Every sample as query and as document, cut and uncut: no mismatch with longest_first."""
    backend, names = KINDS[kind][0](), KINDS[kind][1]
    reference = tiny.fast(backend, 10**6, **names)
    compared = 0
    for limit in (32, 64, 128):
        tokenizer = pair_tokenizer(backend, limit)
        for query in SAMPLES[::4]:
            head = tokenizer.encode_query(query)
            if 2 * len(head.head) > limit - 4:
                continue
            found = tokenizer.encode_documents(head, SAMPLES, Windowing())
            whole = reference(
                [[query, document] for document in SAMPLES], truncation="longest_first", max_length=limit
            )["input_ids"]
            assert [document.pairs[0].token_ids.tolist() for document in found] == whole
            compared += len(whole)
    assert compared > 800


def test_segments_follow_the_template(kind: str) -> None:
    """The document starts where the tokenizer's second segment does, if it has one."""
    backend = KINDS[kind][0]()
    tokenizer = pair_tokenizer(backend, 64)
    pair = encode(tokenizer, "a query", "a document").pairs[0]
    types = backend.encode("a query", "a document").type_ids
    expected = (
        [int(i >= pair.document_start) for i in range(pair.tokens)] if any(types) else [0] * pair.tokens
    )
    assert types == expected
    assert tokenizer.template.segments == any(types)


@given(query_words=st.integers(1, 30), document_words=st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_never_cuts_the_query(kind: str, query_words: int, document_words: int) -> None:
    """However long the query, it stays whole, and the document gets exactly what is left."""
    tokenizer = pair_tokenizer(KINDS[kind][0](), 64)
    query = tokenizer.encode_query("list " * query_words)
    room = 64 - len(query.head) - len(query.tail)
    document = "return " * document_words
    if room < 1:
        with pytest.raises(TooLarge):
            tokenizer.encode_documents(query, [document], Windowing())
        return
    (found,) = tokenizer.encode_documents(query, [document], Windowing())
    ids = found.pairs[0].token_ids
    whole = encode(pair_tokenizer(KINDS[kind][0](), 10**6), "", document).pairs[0]
    empty = tokenizer.encode_query("")
    length = whole.tokens - len(empty.head) - len(empty.tail)
    np.testing.assert_array_equal(ids[: len(query.head)], query.head)
    np.testing.assert_array_equal(ids[len(ids) - len(query.tail) :], query.tail)
    assert len(ids) == len(query.head) + len(query.tail) + min(length, room)
    assert found.truncated == (length > room)


def test_a_query_without_room_names_its_limit(kind: str) -> None:
    """A query that leaves no room is refused with its tokens, the limit and the field."""
    tokenizer = pair_tokenizer(KINDS[kind][0](), 16)
    query = tokenizer.encode_query("list " * 40)
    with pytest.raises(TooLarge) as caught:
        tokenizer.encode_documents(query, ["x"], Windowing())
    empty = tokenizer.encode_query("")
    assert caught.value.field == "query"
    assert caught.value.actual == len(query.head) - len(empty.head)
    assert caught.value.limit == 16 - len(empty.head) - len(empty.tail) - 1


def test_max_document_tokens(kind: str) -> None:
    """A request may read less of each document than the model could."""
    tokenizer = pair_tokenizer(KINDS[kind][0](), 64)
    full = encode(tokenizer, "q", "return the list " * 3)
    found = encode(tokenizer, "q", "return the list " * 3, max_document_tokens=3)
    assert found.truncated
    assert found.pairs[0].tokens == len(tokenizer.encode_query("q").head) + 3 + len(
        tokenizer.encode_query("q").tail
    )
    start = found.pairs[0].document_start
    np.testing.assert_array_equal(
        found.pairs[0].token_ids[start : start + 3], full.pairs[0].token_ids[start : start + 3]
    )


@given(document=anything.map(lambda text: text * 3), most=st.integers(2, 9), overlap=st.floats(0, 0.9))
@example(document="0000\x80\x80\x80\x80\U00010000\U00010000" * 3, most=4, overlap=0.5)
@settings(max_examples=120, deadline=None)
def test_windows_cover_the_document(kind: str, document: str, most: int, overlap: float) -> None:
    """Windows follow each other without a gap, span what they read, and say if the end is unread."""
    backend = KINDS[kind][0]()
    tokenizer = pair_tokenizer(backend, 24)
    found = encode(tokenizer, "q", document, max_windows=most, overlap=overlap)
    query = tokenizer.encode_query("q")
    room = 24 - len(query.head) - len(query.tail)
    whole = backend.encode(document, add_special_tokens=False)
    ids = whole.ids
    assert 1 <= len(found.pairs) <= most
    assert len(found.spans) == len(found.pairs)
    windows = [
        pair.token_ids[len(query.head) : pair.tokens - len(query.tail)].tolist() for pair in found.pairs
    ]
    covered = 0
    for window in windows:
        position = next(
            at for at in range(covered, -1, -1) if ids[at : at + len(window)] == window
        )  # the latest place that leaves no gap
        covered = max(covered, position + len(window))
    # By characters, since repeated tokens fit in more than one place; and one character may be
    # several tokens, of which the last window holds only some.
    ends_early = bool(ids) and found.spans[-1][1] < whole.offsets[-1][1]
    assert found.truncated or not ends_early
    assert not found.truncated or len(found.pairs) == most
    assert found.truncated or covered == len(ids)
    if len(ids) > room:
        assert all(len(window) == room for window in windows)
    assert found.spans[0][0] == 0
    assert all(0 <= start <= end <= len(document) for start, end in found.spans)
    for (before_start, before_end), (start, _) in itertools.pairwise(found.spans):
        assert before_start <= start
        # Between windows lies at most what has no tokens, such as white space.
        assert not backend.encode(document[before_end:start].strip(), add_special_tokens=False).ids
    if not found.truncated:
        assert found.spans[-1][1] == len(document)


def test_spans_count_code_points(kind: str) -> None:
    """A window's span, cut out of the document, holds the text that the window read."""
    tokenizer = pair_tokenizer(KINDS[kind][0](), 24)
    document = "🙂 größer 中文 " * 12 + "needle"
    found = encode(tokenizer, "q", document, max_windows=50)
    start, end = found.spans[-1]
    assert not found.truncated
    assert document[start:end].endswith("needle")
    assert len(found.pairs) > 3


@pytest.mark.parametrize("windows", [1, 4])
def test_long_texts_are_read_only_as_far_as_needed(kind: str, windows: int) -> None:
    """A document of megabytes gives the tokens of the whole one, in milliseconds."""
    backend = KINDS[kind][0]()
    words = " ".join(body for _, body in docstrings()[:300])
    document = words * (5_000_000 // len(words))
    tokenizer = pair_tokenizer(backend, 128)
    started = time.process_time()
    found = encode(tokenizer, "q", document, max_windows=windows)
    elapsed_s = time.process_time() - started
    expected = backend.encode(words, add_special_tokens=False).ids
    query = tokenizer.encode_query("q")
    ids = found.pairs[0].token_ids[len(query.head) : 128 - len(query.tail)]
    assert ids.tolist() == expected[: len(ids)]
    assert found.truncated
    assert elapsed_s < 0.5


MIB = 1 << 20
WITHOUT_CUTS = {
    "one letter": "x",
    "a long word": "QWxhZGRpbjpvcGVuIHNlc2FtZQ",
    "Chinese": "中文没有空格的长文本",
    "combining marks": "\u0301",
    "a family": "👩\u200d👩\u200d👧\u200d",
    "spaces": " ",
    "single letters": "a b ",
    "NUL": "\0",
}


@pytest.mark.parametrize("name", WITHOUT_CUTS)
def test_no_kind_of_text_is_read_whole(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 16 MiB of anything the library gets so many characters at most, and never many at once."""
    unit = WITHOUT_CUTS[name]
    document = f"a{unit * (16 * MIB // len(unit.encode()))}b"
    tokenizer = pair_tokenizer(KINDS[kind][0](), 128)
    handed: list[int] = []
    encode_cut = tokenizer._encode_cut

    def counted(parts: Any, needed: int, with_offsets: bool) -> Any:
        handed.append(sum(end for _, end in parts))
        return encode_cut(parts, needed, with_offsets)

    monkeypatch.setattr(tokenizer, "_encode_cut", counted)
    started_s = time.process_time()
    found = encode(tokenizer, "q", document)
    elapsed_s = time.process_time() - started_s
    assert found.truncated
    assert max(handed) <= 300_000
    assert sum(handed) <= 450_000
    assert elapsed_s < 1.5


# Not of one letter: Unigram finds many ways to be equally good there, and a letter more or less at the
# far end decides which of them rounding prefers.
@pytest.mark.parametrize("name", sorted(WITHOUT_CUTS.keys() - {"one letter"}))
@pytest.mark.parametrize("windows", [1, 4])
def test_texts_without_a_safe_cut_begin_with_the_same_tokens(kind: str, name: str, windows: int) -> None:
    """Long texts of any kind give the ids that the whole text gives, as far as they are used."""
    backend = KINDS[kind][0]()
    unit = WITHOUT_CUTS[name]
    document = (
        "a text: " + unit * (300_000 // len(unit)) + " and its end, which is read where all before is little"
    )
    tokenizer = pair_tokenizer(backend, 128)
    found = encode(tokenizer, "q", document, max_windows=windows)
    free = encode(pair_tokenizer(backend, 10**6), "q", document).pairs[0]
    head, tail = len(tokenizer.encode_query("q").head), len(tokenizer.encode_query("q").tail)
    whole = free.token_ids[head : free.tokens - tail]
    room = 128 - head - tail
    first = found.pairs[0].token_ids[head : found.pairs[0].tokens - tail]
    given_up = len(first) < min(len(whole), room)
    # One that holds next to nothing was given up before its end, perhaps within a token.
    assert found.truncated or not given_up
    same = len(first) - given_up
    np.testing.assert_array_equal(first[:same], whole[:same])
    if windows == 1 and len(whole) > room:
        assert found.truncated


@pytest.mark.parametrize("letter", "x=-")
def test_a_run_of_one_letter_is_read_whole_while_it_is_bearable(kind: str, letter: str) -> None:
    """A line of many thousand dashes gives the tokens of the whole, although nothing proves a cut."""
    backend = KINDS[kind][0]()
    document = "a line: " + letter * 200_000
    found = encode(pair_tokenizer(backend, 128), "q", document).pairs[0].document_ids
    whole = encode(pair_tokenizer(backend, 10**6), "q", document).pairs[0].document_ids
    np.testing.assert_array_equal(found, whole[: len(found)])


def test_what_was_given_up_is_truncated(kind: str) -> None:
    """A text that goes on after very much white space is read no further, and both answers say so."""
    tokenizer = pair_tokenizer(KINDS[kind][0](), 4096)
    document = "before" + " " * 4_000_000 + "after"
    found = encode(tokenizer, "q", document)
    assert found.truncated
    windowed = encode(tokenizer, "q", document, max_windows=3)
    assert windowed.truncated
    assert windowed.spans[0][0] == 0
    assert windowed.spans[-1][1] < len(document)


@given(sizes=st.lists(st.integers(0, 200_000), min_size=1, max_size=20))
def test_groups_are_small_and_complete(sizes: list[int]) -> None:
    """Texts are encoded in order, each once, and not many characters of several at a time."""
    groups = list(_groups(dict(enumerate(sizes))))
    assert [key for group in groups for key in group] == list(range(len(sizes)))
    assert all(len(group) == 1 or sum(sizes[key] for key in group) <= 2**17 for group in groups)


@given(text=st.lists(anything, min_size=1, max_size=30).map(" ".join), needed=st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_reading_less_gives_the_same_tokens(kind: str, text: str, needed: int) -> None:
    """Cut where the module says that it is safe, a text begins with the tokens of the whole text."""
    backend = KINDS[kind][0]()
    cuts = safe_cuts(backend)
    assert cuts is not None
    end = first_cut(cuts, text, len(text) // 3, len(text))
    part = backend.encode(text[:end], add_special_tokens=False).ids
    whole = backend.encode(text, add_special_tokens=False).ids
    assert part == whole[: len(part)]


def test_half_a_surrogate_pair_is_the_callers_mistake(kind: str) -> None:
    """Text that is not Unicode is refused by the name of its field."""
    tokenizer = pair_tokenizer(KINDS[kind][0](), 64)
    with pytest.raises(InvalidRequest) as caught:
        tokenizer.encode_query("a\ud800")
    assert caught.value.field == "query"
    with pytest.raises(InvalidRequest) as caught:
        tokenizer.encode_documents(tokenizer.encode_query("q"), ["fine", "b\udc00"], Windowing())
    assert caught.value.field == "documents[1]"


def test_instructions_are_refused_without_a_place(kind: str) -> None:
    """A template of special tokens has no place for an instruction."""
    tokenizer = pair_tokenizer(KINDS[kind][0](), 64)
    assert not tokenizer.template.accepts_instruction
    with pytest.raises(InvalidRequest, match="instruction"):
        tokenizer.encode_query("q", "Judge!")


def test_others_cannot_change_the_clone(kind: str) -> None:
    """Truncation and padding set on the original do not reach a private clone."""
    original = Tokenizer.from_str(KINDS[kind][0]().to_str())
    clone = private_clone(original)
    original.enable_truncation(3)
    original.enable_padding(length=9)
    assert len(clone.encode("return the list", add_special_tokens=False)) > 0
    assert clone.truncation is None
    assert clone.padding is None
