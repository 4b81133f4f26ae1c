from __future__ import annotations

import base64
import json

import pytest

from engine.containers.detach import DetachWatch, parse_keys
from engine.http import credentials, stdcopy
from engine.http.errors import Refused, status_of, stream_error
from shoal.errors import ERROR_BY_CODE, InvalidArgument
from worker.images.registry.api import Credentials


def header(value: object, *, url_safe: bool = True) -> str:
    encode = base64.urlsafe_b64encode if url_safe else base64.b64encode
    return encode(json.dumps(value).encode()).decode()


def test_registry_credentials():
    given = {"username": "u", "password": "p", "serveraddress": "r:5000", "IdentityToken": "t"}
    expected = Credentials(username="u", password="p", server_address="r:5000", identity_token="t")
    assert credentials.one(header(given)) == expected
    assert credentials.one(header(given, url_safe=False).rstrip("=")) == expected
    assert credentials.one(header({"auth": base64.b64encode(b"u:p:q").decode()})) == Credentials(
        username="u", password="p:q"
    )
    assert credentials.one("").anonymous
    assert credentials.one("e30=").anonymous
    assert credentials.by_server(header({"r": given})) == {"r": expected}
    assert credentials.by_server("") == {}


@pytest.mark.parametrize(
    "text", ["***", "ÿ", "e30", header([1]), header({"username": 1}), header({"auth": "YQ=="})]
)
def test_bad_credentials_are_refused_or_read(text):
    if text == "e30":
        assert credentials.one(text).anonymous
        return
    with pytest.raises(InvalidArgument):
        credentials.one(text)


def test_every_error_has_a_status():
    assert {status_of(kind("x")) for kind in ERROR_BY_CODE.values()} <= set(range(400, 505))
    assert status_of(Refused(304)) == 304
    assert stream_error("no", 1) == {
        "errorDetail": {"code": 1, "message": "no"}, "error": "no"
    }  # fmt: skip


def test_frames():
    assert stdcopy.frame(2, b"abc") == b"\x02\0\0\0\0\0\0\x03abc"


def test_detach_keys():
    assert parse_keys("") == b"\x10\x11"
    assert parse_keys("a,ctrl-[,ctrl-z") == b"a\x1b\x1a"
    for bad in ("ctrl-", "ctrl-1", "ab", "a,,b", "ctrl-pq"):
        with pytest.raises(InvalidArgument):
            parse_keys(bad)


@pytest.mark.parametrize(
    ("pieces", "passed", "done"),
    [
        ([b"ab", b"\x10", b"\x11x"], b"ab", True),
        ([b"a\x10b"], b"a\x10b", False),
        ([b"\x10", b"\x10\x11"], b"\x10", True),
        ([b"\x11"], b"\x11", False),
    ],
)
def test_detach_keys_are_found_across_pieces_and_nothing_is_lost(pieces, passed, done):
    watch, got, ended = DetachWatch(parse_keys("")), b"", False
    for piece in pieces:
        part, ended = watch.feed(piece)
        got += part
    assert (got, ended) == (passed, done)
