"""Who may call: API keys from a file, and what each of them may use.

One key a line, `#` begins a comment:

    # name    key                                 optional limits
    search    Zr6m8WqXh0uPp2vT9sLk                concurrency=64
    nightly   q8Jx1nB5cYe7RgD3wHf0                concurrency=4 tokens_per_minute=2000000

Keys of one name with the same limits share them: an old key and its successor count together.

The file is read again within a second of a change, on a thread of its own; a file that
has become unreadable or wrong leaves the keys as they were and says so in the log. Keys
are kept as SHA-256 digests and never logged. A key is looked up by its digest: how long
that takes may depend on the digest, which tells nothing of the key that it was made of,
and a hundred thousand keys cost a call no more than one.
"""

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from server.config import Settings
from server.errors import ConfigurationError, Overloaded, Unauthenticated
from server.transport.files import read_file, stamp_of

__all__ = ["ANYONE", "ApiKeys", "Caller", "KeyLimits", "configured_keys"]

MIN_KEY_CHARACTERS = 16
MAX_FILE_BYTES = 64 * 1024 * 1024
MAX_LIMIT_DIGITS = 12
CHECK_INTERVAL_S = 1.0
OPTION = "--api-keys-file"
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
    """Who holds a key, or several of one name, and what it uses now."""

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
        self._seen = stamp_of(path, OPTION)
        self._callers = self._read()

    def watch(self) -> None:
        """From now on, until the process ends, notice when the file changes."""
        threading.Thread(target=self._watch, name="api-keys", daemon=True).start()

    def caller(self, authorization: str | None, api_key: str | None = None) -> Caller:
        """The caller with this `authorization: Bearer KEY` or `x-api-key: KEY`.

        Raises:
            Unauthenticated: no key, or not one of ours.
        """
        offered = api_key or ""
        if authorization:
            scheme, _, value = authorization.partition(" ")
            offered = value.strip() if scheme.lower() == "bearer" else ""
        if not offered:
            raise Unauthenticated("no API key; send authorization: Bearer KEY, as metadata or as a header")
        found = self._callers.get(_digest(offered))
        if found is None:
            raise Unauthenticated("the API key is not known to this server")
        return found

    def _watch(self) -> None:
        while True:
            time.sleep(CHECK_INTERVAL_S)
            self._reload_if_changed()

    def _reload_if_changed(self) -> None:
        try:
            stamp = stamp_of(self._path, OPTION)
            if stamp == self._seen:
                return
            self._seen = stamp
            # Callers see the old keys or the new ones, never a part.
            self._callers = self._read()
        except ConfigurationError as error:
            _log.error("API keys not reloaded; the old ones stay", error=str(error))
            return
        _log.info("API keys reloaded", keys=len(self._callers))

    def _read(self) -> dict[bytes, Caller]:
        where = f"{OPTION} {self._path}"
        try:
            lines = read_file(self._path, OPTION, max_bytes=MAX_FILE_BYTES).decode("utf-8").splitlines()
        except UnicodeDecodeError:
            raise ConfigurationError(f"{where}: is not text in UTF-8") from None
        # One holder for all keys of a name and its limits, or a rotation would double what it may use;
        # a holder that stays keeps its count.
        holders = {(caller.name, caller.limits): caller for caller in self._callers.values()}
        callers = {}
        for number, line in enumerate(lines, start=1):
            words = line.partition("#")[0].split()
            if words:
                key, caller = self._parse(words, f"{where}, line {number}")
                callers[_digest(key)] = holders.setdefault((caller.name, caller.limits), caller)
        if not callers:
            raise ConfigurationError(f"{where}: holds no key; write lines of NAME KEY, or drop the option")
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
            if name not in values or not value.isdecimal() or len(value) > MAX_LIMIT_DIGITS:
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
