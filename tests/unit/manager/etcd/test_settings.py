"""The URL: what it may hold, and that a wrong one says what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from manager.etcd.settings import EtcdSettings, parse_url, password
from shoal.errors import InvalidArgument


def test_everything_a_url_may_hold():
    url = (
        "etcd://h1:2379,h2,[fd00::1]:99,[fd00::2]/one/two/?cacert=/ca&cert=/c&key=/k&user=me"
        "&password_file=/p&max_txn_ops=512&max_request_bytes=100000&timeout_s=2.5"
        "&lease_ttl_s=5&compact_s=0"
    )
    assert parse_url(url) == EtcdSettings(
        endpoints=("h1:2379", "h2:2379", "[fd00::1]:99", "[fd00::2]:2379"),
        prefix="one/two",
        tls=True,
        cacert=Path("/ca"),
        cert=Path("/c"),
        key=Path("/k"),
        user="me",
        password_file=Path("/p"),
        max_txn_ops=512,
        max_request_bytes=100_000,
        timeout_s=2.5,
        lease_ttl_s=5,
        compact_s=0,
    )


def test_what_is_left_out_has_a_default():
    settings = parse_url("etcd://localhost")
    assert settings == EtcdSettings(endpoints=("localhost:2379",))
    assert (settings.prefix, settings.tls, settings.max_txn_ops) == ("shoal", False, 128)
    assert parse_url("etcd://h/?tls=true").tls
    assert parse_url("etcd://h/?cert=/c&key=/k").tls


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("http://h:2379", "starts with etcd://"),
        ("etcd:h", "starts with etcd://"),
        ("etcd://", "endpoint '': write host:port"),
        ("etcd://h1,,h2", "endpoint '': write host:port"),
        ("etcd://h:x", "endpoint 'h:x'"),
        ("etcd://h:70000", "endpoint 'h:70000'"),
        ("etcd://h:1,h:1", "an endpoint is given twice"),
        ("etcd://[fd00::1", "not a URL"),
        ("etcd://h/a//b", "prefix 'a//b'"),
        ("etcd://h/%0a", r"prefix '\\n'"),
        ("etcd://h/x#y", "no fragment"),
        ("etcd://h/?colour=red", "unknown parameter 'colour'; there are: cacert, cert, compact_s"),
        ("etcd://h/?endpoints=x", "unknown parameter 'endpoints'"),
        ("etcd://h/?user=a&user=b", "parameter 'user' is given twice"),
        ("etcd://h/?user=", "parameter 'user' is empty"),
        ("etcd://h/?user", "name=value"),
        ("etcd://h/?max_txn_ops=many", "max_txn_ops"),
        ("etcd://h/?max_txn_ops=7", "`max_txn_ops` must be at least 8"),
        ("etcd://h/?lease_ttl_s=1", "`lease_ttl_s` must be at least 2"),
        ("etcd://h/?timeout_s=0", "`timeout_s` must be more than 0"),
        ("etcd://h/?timeout_s=nan", "timeout_s"),
        ("etcd://h/?tls=perhaps", "tls"),
        ("etcd://h/?cert=/c", "`cert` and `key` go together"),
        ("etcd://h/?tls=false&cacert=/c", "`tls=false` with `cacert`"),
        ("etcd://h/?password_file=/p", "`password_file` without `user`"),
    ],
)
def test_a_wrong_url_says_what_is_wrong(url: str, text: str):
    with pytest.raises(InvalidArgument, match=text) as refused:
        parse_url(url)
    assert refused.value.message.startswith("store: ")


@pytest.mark.parametrize("url", ["etcd://me:hunter2@h", "etcd://h/?user=me&password=hunter2"])
def test_a_password_in_the_url_is_refused_and_not_repeated(url: str):
    with pytest.raises(InvalidArgument, match="password_file") as refused:
        parse_url(url)
    assert "hunter2" not in str(refused.value)


def test_the_password_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch):
    path = tmp_path / "password"
    path.write_text("hunter2\n")
    assert password(parse_url(f"etcd://h/?user=me&password_file={path}")) == "hunter2"
    monkeypatch.setenv("SHOAL_ETCD_PASSWORD", "three")
    assert password(parse_url("etcd://h/?user=me")) == "three"
    monkeypatch.setenv("OTHER", "four")
    assert password(parse_url("etcd://h/?user=me&password_env=OTHER")) == "four"
    monkeypatch.delenv("OTHER")
    with pytest.raises(InvalidArgument, match="environment variable OTHER holds no password"):
        password(parse_url("etcd://h/?user=me&password_env=OTHER"))
    path.write_text("")
    with pytest.raises(InvalidArgument, match="holds no password for user 'me'"):
        password(parse_url(f"etcd://h/?user=me&password_file={path}"))
    with pytest.raises(InvalidArgument, match=r"password_file .*No such file"):
        password(parse_url(f"etcd://h/?user=me&password_file={path}.none"))
    path.write_text("x" * 5000)
    with pytest.raises(InvalidArgument, match="more than 4096 bytes"):
        password(parse_url(f"etcd://h/?user=me&password_file={path}"))
