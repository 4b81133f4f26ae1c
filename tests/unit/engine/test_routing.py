from __future__ import annotations

import pytest

from engine.http.routing import Route, Table, clean
from engine.http.versions import NEWEST, OLDEST, ApiVersion, TooOld, split_version, strip_version
from shoal.errors import InvalidArgument


async def nothing(call):
    raise AssertionError(call)


TEMPLATES = [
    ("GET", "/_ping"),
    ("GET", "/containers/json"),
    ("GET", "/containers/{id}/json"),
    ("DELETE", "/containers/{id}"),
    ("GET", "/images/get"),
    ("GET", "/images/{name:path}/get"),
    ("GET", "/images/{name:path}/json"),
    ("DELETE", "/images/{name:path}"),
]
TABLE = Table(Route(method, template, nothing) for method, template in TEMPLATES)


@pytest.mark.parametrize(
    ("method", "path", "template", "variables"),
    [
        ("GET", "/_ping", "/_ping", {}),
        ("GET", "/containers/json", "/containers/json", {}),
        ("GET", "/containers/web/json", "/containers/{id}/json", {"id": "web"}),
        ("GET", "/containers/a%2Fb/json", "/containers/{id}/json", {"id": "a/b"}),
        ("GET", "/images/get", "/images/get", {}),
        (
            "GET", "/images/127.0.0.1:5000/lib/bb:v1/json", "/images/{name:path}/json",
            {"name": "127.0.0.1:5000/lib/bb:v1"},
        ),
        ("DELETE", "/images/a/json", "/images/{name:path}", {"name": "a/json"}),
    ],
)  # fmt: skip
def test_paths_find_their_route(method, path, template, variables):
    route, found = TABLE.find(method, path)
    assert (route.template, dict(found)) == (template, variables)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/_ping"), ("GET", "/"), ("GET", ""), ("GET", "/containers"),
        ("GET", "/containers/a/b/json"), ("GET", "/nosuch"), ("HEAD", "/containers/json"),
        ("GET", "/images//json"),
    ],
)  # fmt: skip
def test_other_paths_find_none(method, path):
    assert TABLE.find(method, path) is None


def test_versions():
    assert split_version("/_ping") == (NEWEST, "/_ping")
    assert split_version("/v1.24/info") == (OLDEST, "/info")
    assert split_version("/v1.45/a/b") == (ApiVersion(1, 45), "/a/b")
    assert strip_version("/v9.99/info") == "/info"
    assert strip_version("/v1.x/info") == "/v1.x/info"
    assert ApiVersion(1, 9) < ApiVersion(1, 24)
    with pytest.raises(InvalidArgument) as caught:
        split_version("/v1.99/version")
    assert caught.value.message == (
        "client version 1.99 is too new. Maximum supported API version is 1.45"
    )
    with pytest.raises(TooOld) as caught:
        split_version("/v1.5/version")
    assert caught.value.message == (
        "client version 1.5 is too old. Minimum supported API version is 1.24,"
        " please upgrade your client to a newer version"
    )


@pytest.mark.parametrize(
    ("path", "cleaned"),
    [
        ("/a/b", "/a/b"), ("//a", "/a"), ("/a//b", "/a/b"), ("/a/./b", "/a/b"), ("/", "/"),
        ("/a/../b", "/b"), ("/a/b/", "/a/b/"), ("//", "/"), ("/../..", "/"),
    ],
)  # fmt: skip
def test_paths_are_cleaned(path, cleaned):
    assert clean(path) == cleaned
