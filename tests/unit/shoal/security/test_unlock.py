"""Unlock keys: Swarm's form, refused when malformed, never shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import InvalidArgument
from shoal.security.unlock import UnlockKey, make_unlock_key, parse_unlock_key

TEXT = "SWMKEY-1-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"


def test_the_form_is_swarms():
    assert UnlockKey(bytes(range(32))).render() == TEXT
    assert parse_unlock_key(f" {TEXT}\n") == UnlockKey(bytes(range(32)))


@given(st.binary(min_size=32, max_size=32))
def test_every_key_comes_back(secret):
    assert parse_unlock_key(UnlockKey(secret).render()) == UnlockKey(secret)


def test_keys_differ_and_are_compared_whole():
    left, right = make_unlock_key(), make_unlock_key()
    assert not left.same_as(right)
    assert left.same_as(parse_unlock_key(left.render()))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "must start with `SWMKEY-`"),
        (TEXT.replace("SWMKEY", "SWMTKN"), "must start with `SWMKEY-`"),
        (TEXT.replace("-1-", "-2-"), "only version 1"),
        ("SWMKEY-1", "only version 1"),
        (TEXT[:-1], "must have 43 characters, this has 42"),
        (TEXT + "A", "must have 43 characters, this has 44"),
        (TEXT.replace("AAEC", "AA!C"), "not base64"),
        (TEXT[:-1] + "9", "not base64 of 32 bytes"),
    ],
)
def test_a_malformed_key_is_refused_and_not_quoted(text, reason):
    with pytest.raises(InvalidArgument, match=reason) as refusal:
        parse_unlock_key(text)
    assert "AwQFBgcI" not in str(refusal.value)
    assert "swarmctl unlock-key" in str(refusal.value)


def test_derived_keys_depend_on_key_salt_and_purpose():
    key = UnlockKey(bytes(range(32)))
    made = [
        key.derive(salt=b"a", purpose="p"),
        key.derive(salt=b"b", purpose="p"),
        key.derive(salt=b"a", purpose="q"),
        UnlockKey(bytes(32)).derive(salt=b"a", purpose="p"),
    ]
    assert len(set(made)) == 4
    assert all(len(derived) == 32 for derived in made)
    assert key.derive(salt=b"a", purpose="p") == made[0]
    assert "0102" not in repr(key)
