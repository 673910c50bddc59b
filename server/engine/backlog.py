"""How much work waits, and how much of it goes before a newcomer: running sums, pure policy.

Adding up all requests for each newcomer would make every arrival cost as much as there
are requests, just when there are many. So each request's load is entered once and taken
out again, and the sums are read in a few steps.
"""

from dataclasses import dataclass

__all__ = ["Backlog", "Load", "level_end", "level_of"]


def level_of(served_tokens: int, token_budget: int) -> int:
    """The level of a request that has received this much; levels double, level 0 is below one batch."""
    return (served_tokens // token_budget).bit_length()


def level_end(level: int, token_budget: int) -> int:
    """The service at which a request leaves the level."""
    return token_budget << level


@dataclass(frozen=True, slots=True)
class Load:
    """What one request still asks of the device."""

    priority: int
    remaining_tokens: int
    """Tokens that wait or are expected."""
    served_tokens: int
    """Tokens that it has received."""


class Backlog:
    """The sums over all loads that were added and not removed.

    Args:
        token_budget: tokens of a batch; decides where levels end.
        most_held_tokens: of one request at most so many count as waiting in the queue.
        priorities: how many there are; 0 goes first.
    """

    def __init__(self, token_budget: int, most_held_tokens: int, priorities: int) -> None:
        self._token_budget = token_budget
        self._most_held_tokens = most_held_tokens
        self._remaining = [0] * priorities
        # What enters the sum at each level; a request spans few levels, since they double.
        self._at_level: list[dict[int, int]] = [{} for _ in range(priorities)]
        self.held_tokens = 0
        """Tokens in the queue, of each request no more than it may hold."""

    @property
    def remaining_tokens(self) -> int:
        """Everything that is still to be computed."""
        return sum(self._remaining)

    def add(self, load: Load) -> None:
        """Enter a request's load."""
        self._count(load, 1)

    def remove(self, load: Load) -> None:
        """Take out a load that was added; it must be equal to what was entered."""
        self._count(load, -1)

    def before(self, priority: int, level: int) -> int:
        """Tokens that go before a newcomer who is done within the level.

        All of the priorities before its own, and of each request of its own priority what
        that may receive until it, too, has left the level.
        """
        of_level = sum(tokens for at, tokens in self._at_level[priority].items() if at <= level)
        return sum(self._remaining[:priority]) + of_level

    def _count(self, load: Load, sign: int) -> None:
        self._remaining[load.priority] += sign * load.remaining_tokens
        self.held_tokens += sign * min(load.remaining_tokens, self._most_held_tokens)
        at_level = self._at_level[load.priority]
        left, reached = load.remaining_tokens, load.served_tokens
        level = level_of(reached, self._token_budget)
        while left > 0:
            end = level_end(level, self._token_budget)
            tokens = min(left, end - reached)
            at_level[level] = at_level.get(level, 0) + sign * tokens
            left -= tokens
            reached = end
            level += 1
