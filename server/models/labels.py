"""From a head's labels to one relevance logit.

One label is the logit. Several are refused, unless the checkpoint names exactly one of them
as the relevant one: then the logit is that of its softmax probability, so that the service's
sigmoid(logit) is the probability that CrossEncoder's softmax gives.
"""

from typing import Any

import torch
from torch import Tensor

from server.errors import ConfigurationError

__all__ = ["relevance", "relevant_label"]

_RELEVANT = frozenset({"relevant", "relevance", "yes", "true", "positive", "match"})


def relevant_label(config: Any, labels: int) -> int:
    """The index of the label that means relevant.

    Raises:
        ConfigurationError: there are several labels, and not exactly one has such a name.
    """
    if labels == 1:
        return 0
    names = {int(index): str(name) for index, name in (getattr(config, "id2label", None) or {}).items()}
    found = [index for index, name in names.items() if name.strip().lower() in _RELEVANT]
    if len(found) == 1 and found[0] < labels:
        return found[0]
    listed = ", ".join(repr(names.get(index, "")) for index in range(labels))
    raise ConfigurationError(
        f"--model: it has {labels} labels ({listed}) and none says which means relevant; name one "
        "'relevant' in id2label of its config.json, or use a model with a single label"
    )


def relevance(scores: Tensor, index: int) -> Tensor:
    """One logit a pair, float32, shape [pairs].

    Args:
        scores: the head's output, shape [pairs] or [pairs, labels].
        index: from `relevant_label`.
    """
    scores = scores.float()
    if scores.ndim == 1 or scores.shape[1] == 1:
        return scores.reshape(-1)
    # log(p / (1 - p)) of the softmax: z_r - log(sum of exp(z_i) over the others)
    others = torch.cat((scores[:, :index], scores[:, index + 1 :]), dim=1)
    return scores[:, index] - torch.logsumexp(others, dim=1)
