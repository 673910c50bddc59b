"""Any text, for servers of the `simulated` model."""

from hypothesis import strategies as st

from server.models.simulated import FAILURE_WORDS

__all__ = ["harmless_texts"]


def harmless_texts(max_size: int) -> st.SearchStrategy[str]:
    """Any text that does not ask the simulated device to fail.

    Hypothesis draws strings from the program's own source, those words among them: one
    `simulate_stuck` in some ten thousand texts, and the server ends after `--stuck-after`, as it should.
    """
    return st.text(max_size=max_size).filter(lambda text: not any(word in text for word in FAILURE_WORDS))
