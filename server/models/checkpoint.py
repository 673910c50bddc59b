"""From what `--model` says to a loaded CrossEncoder, or one line that says what to do instead."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from server.errors import ConfigurationError
from server.models.embedded import EMBEDDED_MODEL_ID, materialise

__all__ = ["Source", "load_cross_encoder", "locate"]

logger = logging.getLogger(__name__)

_HUB_TIMEOUT_S = 10.0

_INSTEAD = f"use --model FOLDER or --model {EMBEDDED_MODEL_ID}"


@dataclass(frozen=True, slots=True)
class Source:
    """Where a checkpoint is."""

    model_id: str
    """Hub id, or name of the folder."""
    path: str
    """What from_pretrained takes."""
    revision: str | None
    """The hub's commit; None for a folder."""
    local_only: bool
    """Whether the hub must not be asked."""


def locate(model: str, revision: str | None) -> Source:
    """Find the checkpoint: the embedded one, a folder, or a model of the hub.

    The hub is asked once, with a short timeout. If it does not answer, an earlier download is used.

    Raises:
        ConfigurationError: it is nowhere; the message says what to use instead.
    """
    if model == EMBEDDED_MODEL_ID:
        return Source(EMBEDDED_MODEL_ID, str(materialise()), None, local_only=True)
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not any((folder / name).is_file() for name in ("config.json", "modules.json")):
            raise ConfigurationError(f"--model {model}: there is no config.json in this folder")
        return Source(folder.resolve().name, str(folder), None, local_only=True)
    if model.startswith((".", "/", "~", "\\")) or model.count("/") > 1:
        raise ConfigurationError(f"--model {model}: there is no such folder")
    # CrossEncoder's own rule for names without an organisation.
    hub_id = model if "/" in model else f"cross-encoder/{model}"
    return _on_hub(hub_id, revision)


def _on_hub(hub_id: str, revision: str | None) -> Source:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        if constants.HF_HUB_OFFLINE:
            raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set")
        info = HfApi().model_info(hub_id, revision=revision, timeout=_HUB_TIMEOUT_S)
        return Source(hub_id, hub_id, info.sha, local_only=False)
    except GatedRepoError as error:
        raise ConfigurationError(
            f"--model {hub_id}: access to it must be requested on the hub, then set HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise ConfigurationError(f"--model {hub_id}: the hub has no revision {revision!r} of it") from error
    except RepositoryNotFoundError as error:
        raise ConfigurationError(
            f"--model {hub_id}: the hub has no such model, or HF_TOKEN does not open it; {_INSTEAD}"
        ) from error
    except HFValidationError as error:
        raise ConfigurationError(
            f"--model {hub_id}: neither a folder nor a name that a hub model can have"
        ) from error
    except Exception as error:  # whatever else: no answer, by any of the HTTP client's many names for it
        return _downloaded_before(hub_id, revision, error)


def _downloaded_before(hub_id: str, revision: str | None, error: Exception) -> Source:
    from huggingface_hub import try_to_load_from_cache

    for name in ("config.json", "modules.json"):
        found = try_to_load_from_cache(hub_id, name, revision=revision)
        if isinstance(found, str):
            commit = Path(found).parent.name
            logger.warning(
                "the model hub does not answer; using %s as downloaded before (%s)", hub_id, commit
            )
            return Source(hub_id, hub_id, commit, local_only=True)
    reason = str(error).strip().split("\n", 1)[0] or type(error).__name__
    raise ConfigurationError(
        f"--model {hub_id}: the model hub can't be reached ({reason}) and the model was not "
        f"downloaded before; {_INSTEAD}"
    ) from error


def load_cross_encoder(
    source: Source, device: torch.device, dtype: torch.dtype | None, *, trust_remote_code: bool
) -> Any:
    """Load the checkpoint through sentence-transformers, in evaluation mode.

    Args:
        source: from `locate`.
        device: where the weights go.
        dtype: their precision; None for the checkpoint's own.
        trust_remote_code: whether code out of the checkpoint may run.

    Raises:
        ConfigurationError: the files are there but are not a cross-encoder that can be loaded.
    """
    from sentence_transformers import CrossEncoder

    try:
        with _progress_bars(shown=not source.local_only and sys.stderr.isatty()):
            encoder = CrossEncoder(
                source.path,
                device=str(device),
                revision=source.revision,
                trust_remote_code=trust_remote_code,
                local_files_only=source.local_only,
                model_kwargs={} if dtype is None else {"torch_dtype": dtype},
            )
    except torch.OutOfMemoryError as error:
        raise ConfigurationError(f"--device {device}: too little memory for {source.model_id}") from error
    except Exception as error:
        reason = str(error).strip().split("\n", 1)[0] or type(error).__name__
        hint = "; or allow --trust-remote-code if you trust it" if "trust_remote_code" in str(error) else ""
        raise ConfigurationError(f"--model {source.model_id}: can't be loaded: {reason}{hint}") from error
    _refuse_untrained_head(source, encoder)
    return encoder.eval()


def _refuse_untrained_head(source: Source, encoder: Any) -> None:
    # transformers loads any encoder as a classifier, with a warning and a random head.
    if len(encoder) > 1:
        return
    architectures = getattr(encoder.config, "architectures", None) or []
    if architectures and not any("SequenceClassification" in name for name in architectures):
        raise ConfigurationError(
            f"--model {source.model_id}: not a cross-encoder: {architectures[0]} does not score pairs"
        )


@contextlib.contextmanager
def _progress_bars(*, shown: bool) -> Iterator[None]:
    """Bars are for downloads on a terminal; in a server's log they are noise."""
    from transformers.utils import logging as transformers_logging

    enabled = transformers_logging.is_progress_bar_enabled()
    if enabled and not shown:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled and not shown:
            transformers_logging.enable_progress_bar()
