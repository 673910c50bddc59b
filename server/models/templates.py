"""How a query and a document become one sequence: the fixed parts around the document.

Two kinds of template exist. Encoders and plain decoders join two texts with special tokens
(`[CLS] query [SEP] document [SEP]`), which the tokenizer itself knows. Instruction-following
rerankers (Qwen3-Reranker) render a chat template around both.

Either is taken apart once, when the model is loaded, and checked against the tokenizer's own
way on texts chosen to break it. So a document is tokenised alone, and assembling gives
exactly the ids that tokenising the whole would have given.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from tokenizers import Encoding, Tokenizer

from server.errors import ConfigurationError, InvalidRequest
from server.models.base import TokenIds

__all__ = ["PROBES", "ChatTemplate", "PairTemplate", "Render", "Template", "ids_of"]

PROBES = (
    *(
        "",
        "a",
        " a",
        "a ",
        "'s it",
        "\n\na",
        "a\n\n",
        "1 2",
        "(a)",
        "a.",
        "a.\n",
        "\t",
        "_a",
        '"',
        "/a",
        "\r\na",
    ),
    *(
        "Köln",
        "\u0301a",
        "中文。",
        "한국어",
        "שלום",
        "🙂 a",
        "e\u0301",
        "\u00a0a",
        "ﬁ",
        "  a  b  ",
        "\u3000a",
        "#a:",
    ),
)
"""Documents whose first or last character might join what stands beside it."""

Render = Callable[[str, str, str], str]
"""Renders (instruction, query, document) as the text that the model reads."""


class Template(Protocol):
    """The parts of a pair that do not depend on the document."""

    @property
    def accepts_instruction(self) -> bool:
        """Whether a task description has a place in it."""
        ...

    @property
    def lead(self) -> str:
        """Text that is tokenised together with each document, before it."""
        ...

    @property
    def trail(self) -> str:
        """Text that is tokenised together with each document, after it."""
        ...

    @property
    def trail_ids(self) -> TokenIds:
        """`trail` by itself, for documents whose end, and with it the trail, is cut."""
        ...

    @property
    def strips(self) -> bool:
        """Whether white space around a document is dropped."""
        ...

    @property
    def segments(self) -> bool:
        """Whether the tokenizer marks the document as a second segment (token type 1)."""
        ...

    def around(self, query: str, instruction: str) -> tuple[TokenIds, TokenIds]:
        """The ids before and after the document."""
        ...


def ids_of(tokenizer: Tokenizer, text: str, *, field: str) -> TokenIds:
    """Token ids of a text without special tokens, as int32.

    Raises:
        InvalidRequest: the text holds lone surrogates, which no encoding can carry.
    """
    try:
        encoding: Encoding = tokenizer.encode(text, add_special_tokens=False)
    except (UnicodeEncodeError, TypeError) as error:
        raise InvalidRequest(field, "is not valid Unicode: it holds half of a surrogate pair") from error
    return np.array(encoding.ids, dtype=np.int32)


def _array(ids: Sequence[int]) -> TokenIds:
    return np.array(ids, dtype=np.int32)


@dataclass(frozen=True)
class PairTemplate:
    """Special tokens before, between and after two texts, as the tokenizer puts them."""

    tokenizer: Tokenizer
    prompt: str
    """Put before every query, as CrossEncoder does with a model's default prompt."""
    before: TokenIds
    between: TokenIds
    after: TokenIds
    segments: bool

    accepts_instruction = False
    lead = trail = ""
    trail_ids = np.zeros(0, dtype=np.int32)
    strips = False

    @classmethod
    def of(cls, tokenizer: Tokenizer, prompt: str = "") -> "PairTemplate":
        """Read the template off an encoded pair and verify it on the probes.

        Raises:
            ConfigurationError: the tokenizer joins pairs in some other way.
        """
        pair = tokenizer.encode("a", "b")
        owners = pair.sequence_ids
        if 0 not in owners or 1 not in owners:
            raise ConfigurationError("--model: its tokenizer does not encode pairs of texts")
        first = owners.index(0)
        end_first = len(owners) - owners[::-1].index(0)
        second = owners.index(1)
        end_second = len(owners) - owners[::-1].index(1)
        template = cls(
            tokenizer=tokenizer,
            prompt=prompt,
            before=_array(pair.ids[:first]),
            between=_array(pair.ids[end_first:second]),
            after=_array(pair.ids[end_second:]),
            segments=pair.type_ids[second] == 1,
        )
        for query in ("a", "What is it?", *PROBES[-6:]):
            for document in PROBES:
                template._verify(query, document)
        return template

    def around(self, query: str, instruction: str) -> tuple[TokenIds, TokenIds]:
        """The ids before and after the document."""
        if instruction:
            raise InvalidRequest("instruction", "this model's template has no place for one")
        query_ids = ids_of(self.tokenizer, self.prompt + query, field="query")
        return np.concatenate((self.before, query_ids, self.between)), self.after

    def _verify(self, query: str, document: str) -> None:
        whole = self.tokenizer.encode(query, document)
        head = np.concatenate((self.before, ids_of(self.tokenizer, query, field="query"), self.between))
        parts = np.concatenate((head, ids_of(self.tokenizer, document, field="documents"), self.after))
        types = [0] * len(head) + [int(self.segments)] * (len(parts) - len(head))
        if whole.ids != parts.tolist() or whole.type_ids != types:
            raise ConfigurationError(
                f"--model: its tokenizer joins the pair {query!r}, {document!r} in a way that is not "
                "supported; please report the model"
            )


@dataclass(frozen=True)
class ChatTemplate:
    """A rendered chat around query and document, cut where the tokenizer cuts anyway."""

    tokenizer: Tokenizer
    render: Render
    default_instruction: str
    accepts_instruction: bool
    lead: str
    trail: str
    trail_ids: TokenIds
    strips: bool

    segments = False

    @classmethod
    def of(cls, tokenizer: Tokenizer, render: Render, default_instruction: str) -> "ChatTemplate":
        """Find how much of the text around a document must be tokenised with it.

        In `<Document>: {document}<|im_end|>` the space joins the document's first word, and the
        special token after it joins nothing.

        Raises:
            ConfigurationError: no such place exists, or the template drops a part of the pair.
        """
        strips = _marked(render, default_instruction, "a", " {} ")[0].endswith(" ") is False
        prefix, suffix = _marked(render, default_instruction, "a")
        leads = {prefix[len(prefix.rstrip(" ")) :], prefix[len(prefix.rstrip()) :], ""}
        trails = {"", suffix[: len(suffix) - len(suffix.lstrip())]}
        for lead in sorted(leads, key=len):
            for trail in sorted(trails, key=len):
                template = cls(
                    tokenizer=tokenizer,
                    render=render,
                    default_instruction=default_instruction,
                    accepts_instruction=_moves_with_instruction(render, default_instruction),
                    lead=lead,
                    trail=trail,
                    trail_ids=ids_of(tokenizer, trail, field="documents"),
                    strips=strips,
                )
                if template._is_exact():
                    return template
        raise ConfigurationError(
            "--model: its chat template puts text beside the document that the tokenizer joins with it; "
            "please report the model"
        )

    def around(self, query: str, instruction: str) -> tuple[TokenIds, TokenIds]:
        """The ids before and after the document."""
        if instruction and not self.accepts_instruction:
            raise InvalidRequest("instruction", "this model's template has no place for one")
        prefix, suffix = _marked(self.render, instruction or self.default_instruction, query)
        head = ids_of(self.tokenizer, prefix[: len(prefix) - len(self.lead)], field="query")
        return head, ids_of(self.tokenizer, suffix[len(self.trail) :], field="query")

    def _is_exact(self) -> bool:
        for query in ("a", "What is it?", *PROBES[-6:]):
            head, tail = self.around(query, "")
            for document in PROBES:
                rendered = self.render(self.default_instruction, query, document)
                text = self.lead + (document.strip() if self.strips else document) + self.trail
                body = ids_of(self.tokenizer, text, field="documents")
                whole = ids_of(self.tokenizer, rendered, field="documents")
                if not np.array_equal(whole, np.concatenate((head, body, tail))):
                    return False
        return True


def _marked(render: Render, instruction: str, query: str, form: str = "{}") -> tuple[str, str]:
    """The rendered text before and after the document."""
    # Random, so that no query can contain it.
    mark = f"X{secrets.token_hex(16)}X"
    before, found, after = render(instruction, query, form.format(mark)).partition(mark)
    if not found or mark in after:
        raise ConfigurationError("--model: its chat template does not show the document exactly once")
    return before, after


def _moves_with_instruction(render: Render, default: str) -> bool:
    return render(default + "Xa", "q", "d") != render(default + "Xb", "q", "d")
