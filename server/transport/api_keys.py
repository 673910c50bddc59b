"""Who may call: API keys from a file, and what each of them may use.

One key a line, `#` begins a comment:

    # name    key                                 optional limits
    search    Zr6m8WqXh0uPp2vT9sLk                concurrency=64
    nightly   q8Jx1nB5cYe7RgD3wHf0                concurrency=4 tokens_per_minute=2000000

The file is read again when it changes; a file that has become unreadable or wrong
leaves the keys as they were and says so in the log. Keys are kept as SHA-256
digests, compared in constant time, and never logged.
"""

import hashlib
import hmac
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from server.config import Settings
from server.errors import ConfigurationError, Overloaded, Unauthenticated

__all__ = ["ANYONE", "ApiKeys", "Caller", "KeyLimits", "configured_keys"]

MIN_KEY_CHARACTERS = 16
CHECK_INTERVAL_S = 1.0
BUSY_RETRY_AFTER_S = 0.25

_log = structlog.get_logger("rerank.api_keys")


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What one key may use; 0 is unlimited."""

    concurrency: int = 0
    """Queries at once."""
    tokens_per_minute: int = 0
    """Tokens computed, averaged over a minute."""


@dataclass(slots=True, eq=False)
class Caller:
    """One key's holder, and what it uses now."""

    name: str
    limits: KeyLimits
    _running: int = 0
    _tokens: float = field(init=False)
    """What is left of the minute's tokens; below 0 after a request that cost more."""
    _refilled_s: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._tokens = float(self.limits.tokens_per_minute)

    @contextmanager
    def query(self) -> Iterator[None]:
        """Hold a place for one query.

        Raises:
            Overloaded: the key's own limit is reached, whatever the server could do.
        """
        limits = self.limits
        if limits.concurrency and self._running >= limits.concurrency:
            raise Overloaded(
                f"key {self.name!r} runs {self._running} queries already; its limit is {limits.concurrency}",
                retry_after_s=BUSY_RETRY_AFTER_S,
            )
        self._refill()
        if limits.tokens_per_minute and self._tokens <= 0:
            raise Overloaded(
                f"key {self.name!r} has used its {limits.tokens_per_minute:,} tokens a minute",
                retry_after_s=(1 - self._tokens) / (limits.tokens_per_minute / 60),
            )
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    def charge(self, tokens: int) -> None:
        """Count tokens that were computed for this caller."""
        self._tokens -= tokens

    def _refill(self) -> None:
        now_s = time.monotonic()
        per_minute = self.limits.tokens_per_minute
        self._tokens = min(per_minute, self._tokens + per_minute * (now_s - self._refilled_s) / 60)
        self._refilled_s = now_s


ANYONE = Caller("anyone", KeyLimits())
"""An unlimited stranger: who calls where no keys are configured."""


class ApiKeys:
    """The keys of a file, read again when it changes."""

    def __init__(self, path: Path, default_limits: KeyLimits) -> None:
        """Read the keys.

        Raises:
            ConfigurationError: the file can't be read or a line is wrong; keys are never quoted.
        """
        self._path = path
        self._default_limits = default_limits
        self._callers: dict[bytes, Caller] = {}
        self._seen = self._stamp()
        self._checked_s = time.monotonic()
        self._callers = self._read()

    def caller(self, authorization: str | None, api_key: str | None = None) -> Caller:
        """The caller with this `authorization: Bearer KEY` or `x-api-key: KEY`.

        Raises:
            Unauthenticated: no key, or not one of ours.
        """
        self._reload_if_changed()
        offered = api_key or ""
        if authorization:
            scheme, _, value = authorization.partition(" ")
            offered = value.strip() if scheme.lower() == "bearer" else ""
        if not offered:
            raise Unauthenticated("no API key; send authorization: Bearer KEY, as metadata or as a header")
        digest = _digest(offered)
        found = None
        # All are compared, each in constant time: how long it takes says nothing about any key.
        for known, caller in self._callers.items():
            if hmac.compare_digest(known, digest):
                found = caller
        if found is None:
            raise Unauthenticated("the API key is not known to this server")
        return found

    def _reload_if_changed(self) -> None:
        now_s = time.monotonic()
        if now_s - self._checked_s < CHECK_INTERVAL_S:
            return
        self._checked_s = now_s
        try:
            stamp = self._stamp()
            if stamp == self._seen:
                return
            self._seen = stamp
            self._callers = self._read()
        except ConfigurationError as error:
            _log.error("API keys not reloaded; the old ones stay", error=str(error))
            return
        _log.info("API keys reloaded", keys=len(self._callers))

    def _stamp(self) -> tuple[int, int, int]:
        try:
            status = os.stat(self._path)
        except OSError as error:
            raise ConfigurationError(f"--api-keys-file {self._path}: {error.strerror}") from None
        return (status.st_mtime_ns, status.st_size, status.st_ino)

    def _read(self) -> dict[bytes, Caller]:
        try:
            lines = self._path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"--api-keys-file {self._path}: {type(error).__name__}") from None
        # A caller that stays with the same limits keeps its count.
        before = {(caller.name, caller.limits): caller for caller in self._callers.values()}
        callers = {}
        for number, line in enumerate(lines, start=1):
            words = line.partition("#")[0].split()
            if words:
                key, caller = self._parse(words, f"--api-keys-file {self._path}, line {number}")
                callers[_digest(key)] = before.get((caller.name, caller.limits), caller)
        if not callers:
            raise ConfigurationError(
                f"--api-keys-file {self._path}: holds no key; write lines of NAME KEY, or drop the option"
            )
        return callers

    def _parse(self, words: list[str], where: str) -> tuple[str, Caller]:
        if len(words) < 2 or len(words[1]) < MIN_KEY_CHARACTERS:
            raise ConfigurationError(
                f"{where}: write NAME KEY, the key of {MIN_KEY_CHARACTERS} characters or more"
            )
        values = {
            "concurrency": self._default_limits.concurrency,
            "tokens_per_minute": self._default_limits.tokens_per_minute,
        }
        for word in words[2:]:
            name, _, value = word.partition("=")
            if name not in values or not value.isdecimal():
                raise ConfigurationError(f"{where}: after the key come concurrency=N or tokens_per_minute=N")
            values[name] = int(value)
        return words[1], Caller(words[0], KeyLimits(**values))


def configured_keys(settings: Settings) -> ApiKeys | None:
    """The keys of --api-keys-file; None when calls need none. One object serves all protocols.

    Raises:
        ConfigurationError: the file can't be read or a line is wrong.
    """
    if not settings.api_keys_file:
        return None
    limits = KeyLimits(settings.api_key_concurrency, settings.api_key_tokens_per_minute)
    return ApiKeys(Path(settings.api_keys_file), limits)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
