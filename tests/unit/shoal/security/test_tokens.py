"""Join tokens: Swarm's form, refused with a reason when malformed, silent about their content."""

from __future__ import annotations

import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import InvalidArgument, Unauthenticated
from shoal.ids import base36
from shoal.security.root import RootCA
from shoal.security.tokens import JoinToken, make_join_token, parse_join_token, same_token
from shoal.security.trust import root_digest
from tests.unit.shoal.security.support import NOW_NS

ROOT = RootCA.create(now_ns=NOW_NS)
DIGEST = "0" * 49 + "1"
SECRET = "0" * 24 + "z"

tokens = st.builds(
    lambda digest, secret: JoinToken(digest=base36(digest, 50), secret=base36(secret, 25)),
    st.integers(0, 2**256 - 1),
    st.integers(0, 2**128 - 1),
)


@given(tokens, st.sampled_from(["", " ", "\n", "\t "]))
def test_every_token_survives_the_round_trip(token: JoinToken, space: str):
    assert parse_join_token(space + token.render() + space) == token


@given(st.text())
def test_any_other_text_is_refused_with_the_field_name(text: str):
    with pytest.raises(InvalidArgument, match=r"^join token: "):
        parse_join_token(text)


def test_a_new_token_has_the_form_swarm_uses():
    text = make_join_token(ROOT.certificate_pem).render()
    assert re.fullmatch(r"SWMTKN-1-[0-9a-z]{50}-[0-9a-z]{25}", text)


def test_the_digest_is_the_sha256_of_the_root_pem():
    number = int(make_join_token(ROOT.certificate_pem).digest, 36)
    assert number == int(hashlib.sha256(ROOT.certificate_pem).hexdigest(), 16)


def test_the_digest_ignores_text_around_the_certificate():
    decorated = b"a comment\n" + ROOT.certificate_pem.replace(b"\n", b"\r\n") + b"\n\n"
    assert root_digest(decorated) == root_digest(ROOT.certificate_pem)


def test_secrets_differ():
    assert len({make_join_token(ROOT.certificate_pem).secret for _ in range(50)}) == 50


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "start with `SWMTKN-`"),
        ("SWMKEY-1-abc", "start with `SWMTKN-`"),
        (f"swmtkn-1-{DIGEST}-{SECRET}", "start with `SWMTKN-`"),
        (f"SWMTKN-2-1-{DIGEST}-{SECRET}", "version 1"),
        ("SWMTKN", "4 parts"),
        (f"SWMTKN-1-{DIGEST}", "4 parts"),
        (f"SWMTKN-1-{DIGEST}-{SECRET}-x", "4 parts"),
        (f"SWMTKN-1-{DIGEST[1:]}-{SECRET}", "digest must have 50"),
        (f"SWMTKN-1-{DIGEST}-{SECRET}0", "secret must have 25"),
        (f"SWMTKN-1-{DIGEST[1:]}_-{SECRET}", "digest may only contain"),
        (f"SWMTKN-1-{DIGEST}-{SECRET[1:]}Z", "secret may only contain"),
        (f"SWMTKN-1-{DIGEST[1:]}١-{SECRET}", "digest may only contain"),
        (f"SWMTKN-1-{'z' * 50}-{SECRET}", "digest is larger than 256 bits"),
        (f"SWMTKN-1-{DIGEST}-{'z' * 25}", "secret is larger than 128 bits"),
    ],
)
def test_a_malformed_token_is_refused_naming_the_part(text: str, part: str):
    with pytest.raises(InvalidArgument, match=re.escape(part)) as caught:
        parse_join_token(text)
    assert SECRET not in str(caught.value)


def test_a_token_accepts_its_own_root_and_no_other():
    token = make_join_token(ROOT.certificate_pem)
    token.verify_root(ROOT.certificate_pem)
    with pytest.raises(Unauthenticated, match="another cluster"):
        token.verify_root(RootCA.create(now_ns=NOW_NS).certificate_pem)


def test_comparison_takes_any_text():
    assert same_token("SWMTKN-é", "SWMTKN-é")
    assert not same_token("a", "b")


def test_a_repr_tells_nothing():
    token = make_join_token(ROOT.certificate_pem)
    assert token.secret not in f"{token!r} {token}"
