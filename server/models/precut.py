"""Where a long text can be cut so that its first tokens provably stay the same.

A model that reads 512 tokens needs a few kilobytes of a ten-megabyte document; tokenising
the rest costs seconds and gigabytes. A cut is safe when nothing in the tokenizer's pipeline
can look across it:

- every normalizer works on single characters, combining sequences or runs of spaces, so that
  it never joins a letter to what follows the cut;
- the pre-tokenizer splits at the cut, so that the model never sees both sides at once;
- no added token contains white space, so that none can straddle the cut.

In a pipeline with any part that is not known to keep these, no cut is safe. What is done then, and with
texts that have no such place, is up to `server.models.tokenise`.
"""

import json
import re
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer

__all__ = ["SafeCuts", "first_cut", "safe_cuts"]

SafeCuts = re.Pattern[str]
"""Matches, with width zero, at the places where a text may be cut."""

_LOCAL_NORMALIZERS = frozenset(
    {
        *("BertNormalizer", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents"),
        "Precompiled",  # SentencePiece's map: rewrites single grapheme clusters
        *("Nmt", "ByteLevel", "Strip", "Prepend"),
    }
)
_LOCAL_PRE_TOKENIZERS = frozenset({"Punctuation", "Digits", "ByteLevel", "Metaspace"})

# What decoders split by: Qwen 2 and 3, Qwen 3.5, Llama 3 (cl100k), o200k. In each, the
# alternatives that take a letter are greedy runs of letters or marks, perhaps with 's after them.
# None looks behind, so a run ends before a space whatever comes after the space.
_MARKS = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LETTER_RUN_PATTERNS = frozenset(
    {
        _SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST,
        _SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST,
        _SHORT
        + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
        + _REST.replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]"),
        rf"[^\r\n\p{{L}}\p{{N}}]?{_MARKS}*{_LOWER}+{_SHORT}?"
        rf"|[^\r\n\p{{L}}\p{{N}}]?{_MARKS}+{_LOWER}*{_SHORT}?|\p{{N}}{{1,3}}"
        + _REST.replace(r"[\r\n]*", r"[\r\n/]*"),
    }
)

_LETTER = r"(?<=[^\W\d_])"
# Ideographs that BERT's normalizer sets apart; between two of them nothing can combine.
_IDEOGRAPHS = r"(?<=[\u4e00-\u9fff])(?=[\u4e00-\u9fff])"


def safe_cuts(tokenizer: Tokenizer) -> SafeCuts | None:
    """Where texts for this tokenizer may be cut, or None if nothing can be proven."""
    spec: dict[str, Any] = json.loads(tokenizer.to_str())
    if any(re.search(r"\s", token["content"]) for token in spec.get("added_tokens") or ()):
        return None
    normalizers = _flatten(spec.get("normalizer"), "normalizers")
    if not all(_is_local(part) for part in normalizers):
        return None
    splits = _splitting_characters(_flatten(spec.get("pre_tokenizer"), "pretokenizers"))
    if not splits:
        return None
    places = [f"{_LETTER}(?=[{splits}])"]
    if any(part["type"] == "BertNormalizer" and part["handle_chinese_chars"] for part in normalizers):
        places.append(_IDEOGRAPHS)
    return re.compile("|".join(places))


def first_cut(cuts: SafeCuts | None, text: str, start: int, end: int) -> int | None:
    """The first safe cut in text[start:end], or None: one giant word, or a script without spaces."""
    found = cuts.search(text, start, end) if cuts else None
    return found.start() if found else None


def _flatten(spec: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if spec is None:
        return []
    if spec["type"] == "Sequence":
        return [leaf for part in spec[key] for leaf in _flatten(part, key)]
    return [spec]


def _is_local(normalizer: dict[str, Any]) -> bool:
    if normalizer["type"] == "Replace":
        pattern = normalizer["pattern"]
        if "Regex" in pattern:
            return bool(pattern["Regex"] == " {2,}")
        # A longer string straddles the cut only if it has the space in it.
        return len(pattern["String"]) == 1 or not re.search(r"\s", pattern["String"])
    return normalizer["type"] in _LOCAL_NORMALIZERS


def _splitting_characters(pre_tokenizers: Iterable[dict[str, Any]]) -> str:
    """The characters before which the text is split if a letter precedes them; "" for none."""
    for part in pre_tokenizers:
        kind = part["type"]
        if kind in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit"):
            return " \n"
        splits = (
            (kind == "Metaspace" and part.get("split", True))
            or (kind == "ByteLevel" and part.get("use_regex", True))
            or (kind == "Split" and _is_known_split(part))
        )
        if splits:
            return " "
        # Parts before the one that splits see the whole text; those after it see only pieces.
        if kind not in _LOCAL_PRE_TOKENIZERS:
            return ""
    return ""


def _is_known_split(part: dict[str, Any]) -> bool:
    return (
        part["behavior"] == "Isolated"
        and not part.get("invert")
        and part["pattern"].get("Regex") in _LETTER_RUN_PATTERNS
    )
