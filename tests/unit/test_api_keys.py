"""The file of API keys: who holds which."""

from pathlib import Path

import pytest

from server.errors import Overloaded
from server.transport.api_keys import ApiKeys, Caller, KeyLimits

OLD, NEW, OTHER = "old-key-0123456789", "new-key-0123456789", "other-key-0123456789"


def holder(keys: ApiKeys, key: str) -> Caller:
    return keys.caller(f"Bearer {key}")


def test_keys_of_one_name_and_limits_have_one_holder(tmp_path: Path) -> None:
    """While a key and its successor are both valid, they may use no more than one of them."""
    path = tmp_path / "keys"
    path.write_text(f"search {OLD} concurrency=1\nsearch {NEW} concurrency=1\nsearch {OTHER} concurrency=2\n")
    keys = ApiKeys(path, KeyLimits())
    with holder(keys, OLD).query(), pytest.raises(Overloaded):
        holder(keys, NEW).query().__enter__()
    assert holder(keys, OTHER) is not holder(keys, OLD)


def test_a_rotation_keeps_the_count(tmp_path: Path) -> None:
    """A new key counts together with the old one, which is used until it is taken out."""
    path = tmp_path / "keys"
    path.write_text(f"search {OLD} concurrency=1\n")
    keys = ApiKeys(path, KeyLimits())
    before = holder(keys, OLD)
    path.write_text(f"search {OLD} concurrency=1\nsearch {NEW} concurrency=1\n")
    keys._reload_if_changed()
    assert holder(keys, OLD) is holder(keys, NEW) is before
    path.write_text(f"search {NEW} concurrency=1\n")
    keys._reload_if_changed()
    assert holder(keys, NEW) is before
