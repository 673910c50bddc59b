"""From the options to a loaded model: the one place that knows which kinds there are."""

from server.config import Settings
from server.models.base import Model
from server.models.simulated import SIMULATED_MODEL_ID, SimulatedModel

__all__ = ["load_model"]


def load_model(settings: Settings) -> Model:
    """Load the model that the settings name onto their device.

    Raises:
        ConfigurationError: the model or device can't be used; the message says which option to change.
    """
    if settings.model == SIMULATED_MODEL_ID:
        return SimulatedModel(settings.simulated)
    # Imported here because torch takes seconds, which --help and the simulated model need not pay.
    from server.models.torch_model import load_torch

    return load_torch(
        settings.model,
        device=settings.device,
        dtype=settings.dtype,
        max_tokens=settings.max_tokens,
        revision=settings.revision or None,
        threads=settings.threads or None,
        trust_remote_code=settings.trust_remote_code,
    )
