"""The token budget of a batch as memory allows: pure policy."""

__all__ = ["TokenBudget"]

MIN_BUDGET_TOKENS = 64
GROWTH = 1.05
BATCHES_BEFORE_GROWTH = 20


class TokenBudget:
    """Halves when a batch does not fit into memory, recovers slowly towards the configured budget."""

    def __init__(self, configured_tokens: int) -> None:
        self._configured_tokens = configured_tokens
        self._good_batches = 0
        self.tokens = configured_tokens
        """The budget for the next batch."""

    def shrink(self, batch_tokens: int) -> None:
        """A batch of this size ran out of memory."""
        self.tokens = max(MIN_BUDGET_TOKENS, min(self.tokens, batch_tokens) // 2)
        self.tokens = min(self.tokens, self._configured_tokens)
        self._good_batches = 0

    def succeed(self) -> None:
        """A batch fitted; many in a row earn a little more."""
        if self.tokens == self._configured_tokens:
            return
        self._good_batches += 1
        if self._good_batches >= BATCHES_BEFORE_GROWTH:
            self._good_batches = 0
            self.tokens = min(self._configured_tokens, int(self.tokens * GROWTH) + 1)
