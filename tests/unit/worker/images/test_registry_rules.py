from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import InvalidArgument
from worker.images.registry.api import Credentials, RegistrySettings
from worker.images.registry.challenges import (
    Challenge,
    basic,
    parse_challenge,
    refresh_form,
    token_url,
)
from worker.images.registry.places import (
    base_urls,
    check_registries,
    is_insecure,
    registry_name,
)

BEARER = (
    'Bearer realm="https://auth.example/token?x=1",service="registry, inc",'
    'scope="repository:a/b:pull repository:c:pull,push"'
)


def test_challenges():
    assert parse_challenge('Basic realm="Registry Realm"') == Challenge(
        scheme="basic", realm="Registry Realm"
    )
    assert parse_challenge(BEARER) == Challenge(
        scheme="bearer",
        realm="https://auth.example/token?x=1",
        service="registry, inc",
        scopes=("repository:a/b:pull", "repository:c:pull,push"),
    )
    assert parse_challenge(f"Negotiate, {BEARER}") == parse_challenge(BEARER)
    assert parse_challenge("basic realm=x, charset=UTF-8") == Challenge(scheme="basic", realm="x")
    for text in ("", "Negotiate", "Digest realm=x"):
        assert parse_challenge(text) is None


@given(st.text(max_size=60))
def test_any_header_is_read(text):
    for start in ("", "Bearer ", "Basic "):
        parse_challenge(start + text)


def test_where_tokens_are_asked_for():
    challenge = parse_challenge(BEARER)
    assert challenge is not None
    assert token_url(challenge, "me") == (
        "https://auth.example/token?x=1&service=registry%2C+inc"
        "&scope=repository%3Aa%2Fb%3Apull&scope=repository%3Ac%3Apull%2Cpush&account=me"
    )
    assert token_url(Challenge(scheme="bearer", realm="http://a/t"), "") == "http://a/t"
    form = dict(refresh_form(challenge, Credentials(identity_token="t"), "us"))
    assert form["refresh_token"] == "t"
    assert form["scope"] == "repository:a/b:pull repository:c:pull,push"
    for realm in ("", "ftp://a", "/token", "file:///etc"):
        with pytest.raises(InvalidArgument, match="is no URL"):
            token_url(Challenge(scheme="bearer", realm=realm), "")


def test_basic_credentials():
    assert basic(Credentials(username="u", password="p:ü")) == "Basic dTpwOsO8"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("", "docker.io"), ("https://index.docker.io/v1/", "docker.io"),
        ("docker.io", "docker.io"), ("r:5000", "r:5000"), ("http://r:5000/v2/", "r:5000"),
        ("r.example/x", "r.example"), ("[::1]:5000", "[::1]:5000"),
    ],
)  # fmt: skip
def test_names(text, name):
    assert registry_name(text) == name


@pytest.mark.parametrize("text", ["http://u:p@r", "a b", "u@r"])
def test_bad_names(text):
    with pytest.raises(InvalidArgument):
        registry_name(text)


def test_only_loopback_and_what_is_listed_goes_without_tls():
    settings = RegistrySettings(insecure=("127.0.0.0/8", "::1/128", "10.0.0.0/8", "lab:5000"))
    insecure = (
        "127.0.0.1:5000",
        "127.9.9.9",
        "localhost:5000",
        "[::1]:5000",
        "10.2.3.4",
        "lab:5000",
    )
    for name in insecure:
        assert is_insecure(name, settings), name
        assert base_urls(name, settings) == (f"https://{name}", f"http://{name}")
    for name in ("lab", "lab:5001", "11.0.0.1", "r.example", "127.0.0.1.example"):
        assert base_urls(name, settings) == (f"https://{name}",)
    assert base_urls("docker.io", settings) == ("https://registry-1.docker.io",)


def test_settings_come_besides_loopback():
    found = check_registries(["r.example:5000", "10.0.0.0/8"], ["https://m.example/hub"])
    for name in ("r.example:5000", "10.1.2.3:80", "127.0.0.1:5000"):
        assert is_insecure(name, found)
    assert found.mirrors == ("https://m.example/hub",)


@pytest.mark.parametrize(
    ("insecure", "mirrors", "text"),
    [
        (["10.0.0.1/8"], [], "has host bits set"),
        ([""], [], "must be HOST"),
        (["a b"], [], "must be HOST"),
        ([], ["m.example"], "must be http"),
        ([], ["ftp://m.example"], "must be http"),
        ([], ["https://u:p@m.example"], "without a name or password"),
    ],
)
def test_settings_that_mean_nothing_are_refused(insecure, mirrors, text):
    with pytest.raises(InvalidArgument, match=text):
        check_registries(insecure, mirrors)
