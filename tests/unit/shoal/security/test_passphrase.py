"""What was sealed comes back whole, with the right passphrase, or not at all."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import FailedPrecondition, InvalidArgument, SwarmError
from shoal.security.passphrase import (
    CHUNK_BYTES,
    COST,
    COST_MAX,
    HEADER_BYTES,
    Opener,
    Sealer,
    is_sealed,
)

SECRET = "correct horse battery"
CHEAP = 4
"""scrypt's cost here; `test_the_default_is_costly` looks at the real one."""


def seal(*pieces: bytes, cost: int = CHEAP) -> bytes:
    sealer = Sealer(SECRET, cost=cost)
    return sealer.header + b"".join(map(sealer.add, pieces)) + sealer.finish()


def opened(content: bytes, passphrase: str = SECRET, step: int = 50_000) -> bytes:
    opener = Opener(passphrase)
    parts = [opener.add(content[at : at + step]) for at in range(0, len(content), step)]
    return b"".join(parts) + opener.finish()


@settings(max_examples=60, deadline=None)
@given(
    size=st.sampled_from(
        [0, 1, 1000, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, 200_001]
    ),
    cut=st.integers(1, 90_000),
    step=st.integers(1_000, 200_000),
)
def test_it_comes_back_however_it_is_cut_into_pieces(size, cut, step):
    plain = hashlib.shake_128(b"x").digest(size)
    sealed = seal(*(plain[at : at + cut] for at in range(0, size, cut)))
    assert is_sealed(sealed)
    assert not is_sealed(plain)
    assert opened(sealed, step=step) == plain


def test_nothing_shows_and_no_two_are_alike():
    first, second = seal(b"a secret" * 100), seal(b"a secret" * 100)
    assert b"secret" not in first
    assert first[HEADER_BYTES:] != second[HEADER_BYTES:]
    assert SECRET not in repr(Sealer(SECRET, cost=CHEAP))
    assert SECRET not in repr(Opener(SECRET))


def test_a_wrong_passphrase_is_told_from_damage():
    sealed = seal(b"content")
    with pytest.raises(InvalidArgument, match="not the one that the file was encrypted with"):
        opened(sealed, SECRET + "!")
    damaged = bytearray(sealed)
    damaged[-1] ^= 1
    with pytest.raises(FailedPrecondition, match="damaged or cut short"):
        opened(bytes(damaged))


def test_every_flip_cut_and_addition_is_noticed():
    sealed = seal(b"x" * 300)
    for at in range(len(sealed)):
        flipped = bytearray(sealed)
        flipped[at] ^= 1 << at % 8
        if at == 12:
            flipped[12] = CHEAP + 1  # another cost, but not one that takes a second
        for wrong in (bytes(flipped), sealed[:at]):
            with pytest.raises(SwarmError):
                opened(wrong)
    with pytest.raises(FailedPrecondition):
        opened(sealed + b"\0")


def test_chunks_cannot_be_dropped_or_exchanged():
    size = CHUNK_BYTES + 16
    sealed = seal(b"a" * CHUNK_BYTES, b"b" * CHUNK_BYTES, b"c" * CHUNK_BYTES)
    head, rest = sealed[:HEADER_BYTES], sealed[HEADER_BYTES:]
    one, two, three = (rest[at : at + size] for at in range(0, len(rest), size))
    for wrong in (one + two, two + three, two + one + three, one + two + three + three, three):
        with pytest.raises(FailedPrecondition, match="damaged or cut short"):
            opened(head + wrong)
    assert len(opened(head + one + two + three)) == 3 * CHUNK_BYTES


@pytest.mark.parametrize("passphrase", ["", "short", "x" * 1025])
def test_passphrases_that_are_refused(passphrase):
    with pytest.raises(InvalidArgument, match="must have 8 to 1024 characters") as caught:
        Sealer(passphrase, cost=CHEAP)
    assert not passphrase or passphrase not in caught.value.message


def test_newer_formats_and_absurd_costs_are_refused():
    sealed = seal(b"content")
    newer = sealed[:8] + struct.pack("<I", 2) + sealed[12:]
    with pytest.raises(FailedPrecondition, match="format 2, this version reads 1"):
        opened(newer)
    for cost in (0, COST_MAX + 1, 255):
        with pytest.raises(FailedPrecondition, match="damaged"):
            opened(sealed[:12] + bytes([cost]) + sealed[13:])
    with pytest.raises(InvalidArgument, match="does not begin"):
        opened(b"something else" * 100)


def test_what_the_first_version_sealed_is_opened():
    sealed = (Path(__file__).parents[3] / "golden/security/v1/sealed").read_bytes()
    assert opened(sealed) == b"what was sealed by the first version\n" * 2000


def test_the_default_is_costly():
    sealed = Sealer(SECRET)
    assert sealed.header[12] == COST == 17
