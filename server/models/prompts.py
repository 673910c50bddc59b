"""What a loaded CrossEncoder reads: its template, its prompt, its limit of tokens.

sentence-transformers decides per model how a pair becomes text. A tokenizer with a chat
template gets messages with the roles query and document, and the prompt as a system message;
any other gets the pair itself, with the prompt before the query. Both are taken apart here,
so that a query is tokenised once for all its documents.
"""

from dataclasses import dataclass
from typing import Any

from server.errors import ConfigurationError
from server.models.templates import ChatTemplate, PairTemplate, Template
from server.models.tokenise import PairTokenizer, private_clone

__all__ = ["Inputs", "inputs_of"]

_UNLIMITED = 1_000_000
"""Tokenizers without a limit say 10**30 or so."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """How texts become what the network reads."""

    tokenizer: PairTokenizer
    message: bool
    """Whether a chat template is rendered around the pair."""
    segments: bool
    """Whether the network is told which part is the document."""
    identity: tuple[str, ...]
    """Everything here that changes logits, for the fingerprint."""


def inputs_of(encoder: Any, max_tokens: int) -> Inputs:
    """Take apart how a CrossEncoder tokenises.

    Args:
        encoder: the CrossEncoder.
        max_tokens: upper bound on the tokens of a pair.

    Raises:
        ConfigurationError: its tokenizer or template can't be taken apart.
    """
    transformer = encoder[0]
    tokenizer = transformer.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ConfigurationError("--model: it has no fast tokenizer (tokenizer.json), which is needed here")
    clone = private_clone(backend)
    prompt = _default_prompt(encoder)
    message = "message" in transformer.modality_config
    template: Template = (
        ChatTemplate.of(clone, _renderer(transformer), prompt) if message else PairTemplate.of(clone, prompt)
    )
    segments = template.segments and "token_type_ids" in tokenizer.model_input_names
    limit = min(_model_limit(transformer), max_tokens)
    identity: tuple[str, ...] = (clone.to_str(), prompt, str(message), str(segments), str(limit))
    if message:
        identity += (repr(tokenizer.chat_template),)
    return Inputs(PairTokenizer(clone, template, limit), message, segments, identity)


def _model_limit(transformer: Any) -> int:
    """Most tokens that the network can read: CrossEncoder's rule, less positions that do not exist.

    RoBERTa's positions begin after the padding id, so that two of its 514 are never used;
    CrossEncoder counts them, and a tokenizer without a limit of its own then runs into them.
    """
    limits = [_UNLIMITED]
    if own := getattr(transformer.tokenizer, "model_max_length", None):
        limits.append(int(own))
    config = transformer.model.config
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and positions > 0:
        limits.append(positions - _first_position(transformer.model))
    return min(limits)


def _first_position(network: Any) -> int:
    """Where a network's learned positions begin: after the padding id in RoBERTa's family, else 0."""
    for module in network.modules():
        padding = getattr(module, "padding_idx", None)
        if isinstance(padding, int) and hasattr(module, "position_embeddings"):
            return padding + 1
    return 0


def _default_prompt(encoder: Any) -> str:
    name = encoder.default_prompt_name
    return (encoder.prompts.get(name) or "") if name is not None else ""


def _renderer(transformer: Any) -> Any:
    """Render (instruction, query, document) by the model's chat template, as CrossEncoder would."""
    formatter = transformer.input_formatter
    options = dict(transformer.processing_kwargs.get("chat_template", {}))
    for name in ("restore_suffix", "truncation", "max_length", "padding", "return_tensors"):
        options.pop(name, None)

    def render(instruction: str, query: str, document: str) -> str:
        messages = [formatter.pair_to_messages((query, document))]
        if instruction:
            messages = formatter.prepend_prompt_to_messages(messages, instruction)
        text = transformer.processor.apply_chat_template(messages[0], tokenize=False, **options)
        return str(text)

    return render
