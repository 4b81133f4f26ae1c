"""Log drivers: what is accepted, what is refused in Docker's words, and what the logger is told."""

from __future__ import annotations

import pytest

from shoal.errors import InvalidArgument, SwarmError, Unimplemented
from worker.logs import drivers
from worker.logs.api import LogDriver, LogSubject

SUBJECT = LogSubject(
    id="0123456789ab" + "c" * 52,
    name="web",
    image="busybox:1",
    image_id="sha256:" + "d" * 64,
    labels={"tier": "front", "app.x": "1", "other": "y"},
    env=("A=1", "B=two words", "NAKED"),
)
EVERYTHING = frozenset((drivers.JOURNAL_SOCKET, "/dev/log"))


def conf(name: str = "json-file", **options: str) -> dict:
    given = {key.replace("_", "-"): value for key, value in options.items()}
    driver = LogDriver(name=name, options=given)
    drivers.check(driver, EVERYTHING)
    return drivers.conf(driver, SUBJECT)


@pytest.mark.parametrize(
    ("driver", "options", "expected"),
    [
        ("json-file", {}, (10 << 20, 3, False)),
        ("json-file", {"max_size": "10k"}, (10_000, 1, False)),
        ("json-file", {"max_size": "1", "max_file": "4"}, (4096, 4, False)),
        ("json-file", {"max_file": "2"}, (10 << 20, 2, False)),
        ("json-file", {"max_size": "1.5m", "max_file": "2", "compress": "true"},
         (1_500_000, 2, True)),
        ("local", {}, (20_000_000, 5, True)),
        ("local", {"compress": "false"}, (20_000_000, 5, False)),
        ("local", {"max_file": "1"}, (20_000_000, 1, False)),
        ("syslog", {"cache_max_size": "2m", "cache_max_file": "3"}, (2_000_000, 3, True)),
        ("journald", {"cache_compress": "false"}, (20_000_000, 5, False)),
        ("json-file", {"mode": "non-blocking", "max_buffer_size": "4m"}, (10 << 20, 3, False)),
    ],
)  # fmt: skip
def test_files(driver, options, expected):
    found = conf(driver, **options)
    assert (found["max_size_bytes"], found["max_files"], found["compress"]) == expected
    assert found["files"]


@pytest.mark.parametrize("driver", [("none", {}), ("syslog", {"cache_disabled": "true"})])
def test_nothing_kept(driver):
    name, options = driver
    assert conf(name, **options)["files"] is False
    given = {key.replace("_", "-"): value for key, value in options.items()}
    assert not drivers.readable(LogDriver(name=name, options=given))


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("asdf", {}, "logger: no log driver named 'asdf' is registered"),
        ("json-file", {"x": "y"}, "unknown log opt 'x' for json-file log driver"),
        ("local", {"labels": "y"}, "unknown log opt 'labels' for local log driver"),
        ("none", {"max_size": "1m"}, "unknown log opt 'max-size' for none log driver"),
        ("json-file", {"max_size": "lots"}, "max-size: invalid size: 'lots'"),
        ("json-file", {"max_size": "0"}, "max-size must be a positive number"),
        ("json-file", {"max_file": "x"}, 'strconv.Atoi: parsing "x": invalid syntax'),
        ("json-file", {"max_file": "0"}, "max-file cannot be less than 1"),
        ("json-file", {"compress": "maybe"}, 'strconv.ParseBool: parsing "maybe": invalid'),
        ("json-file", {"compress": "true"}, "compress cannot be true when max-file is less than"),
        ("json-file", {"labels_regex": "("}, "log opt labels-regex: "),
        ("json-file", {"tag": "{{.Nope}}"}, "log opt tag: {{.Nope}}: known are .ID"),
        ("json-file", {"tag": "{{if .ID}}"}, "log opt tag: {{if .ID}}: only fields"),
        ("json-file", {"mode": "fast"}, "logger: logging mode not supported: fast"),
        ("json-file", {"max_buffer_size": "1m"}, "logger: max-buffer-size option is only"),
        ("syslog", {"syslog_format": "x"}, "Invalid syslog format"),
        ("syslog", {"syslog_facility": "x"}, "invalid syslog facility"),
        ("syslog", {"syslog_address": "here"}, "syslog-address should be in form proto://address,"),
        ("syslog", {"syslog_address": "http://1.2.3.4"}, "unsupported scheme: 'http'"),
        ("syslog", {"syslog_address": "udp://1.2.3.4:x"}, "syslog-address: Port"),
        ("syslog", {"syslog_address": "udp://logs.example"}, "give the server's IP address"),
        ("syslog", {"syslog_address": "tcp+tls://1.2.3.4"}, "tcp\\+tls is not possible"),
    ],
)  # fmt: skip
def test_refused(name, options, text):
    with pytest.raises(SwarmError) as caught:
        conf(name, **options)
    assert text.replace("\\", "") in caught.value.message
    assert isinstance(caught.value, InvalidArgument | Unimplemented)


def test_what_the_machine_lacks():
    with pytest.raises(Unimplemented, match="this node runs no journal"):
        drivers.check(LogDriver(name="journald"), frozenset())
    with pytest.raises(Unimplemented, match="this node runs no syslog: none of /dev/log"):
        drivers.check(LogDriver(name="syslog"), frozenset())
    address = {"syslog-address": "udp://127.0.0.1:514"}
    drivers.check(LogDriver(name="syslog", options=address), frozenset())


def test_attributes():
    found = conf(labels="tier,none", labels_regex="^app", env="B", tag="{{.Name}}/{{ .ID }}")
    assert found["attrs"] == {
        "tier": "front", "app.x": "1", "B": "two words", "tag": "web/0123456789ab",
    }  # fmt: skip
    assert drivers.attributes_text(found["attrs"]) == (
        "B=two+words,app.x=1,tag=web%2F0123456789ab,tier=front"
    )


def test_syslog():
    found = conf("syslog", syslog_address="tcp://[::1]:1514", syslog_facility="local3", tag="x y")
    assert found["sink"] == {
        "kind": "syslog", "format": "", "facility": 19, "tag": "x y", "network": "tcp",
        "address": "::1", "port": 1514,
    }  # fmt: skip
    found = conf("syslog", syslog_address="udp://localhost", mode="non-blocking")["sink"]
    assert (found["address"], found["port"], found["buffer_bytes"]) == ("127.0.0.1", 514, 10**6)
    assert conf("syslog", syslog_address="unix:///a/b")["sink"]["address"] == "/a/b"
    assert conf("syslog")["sink"]["address"] == "/dev/log"


def test_journald():
    fields = conf("journald", labels="app.x", env="A")["sink"]["fields"]
    assert fields == {
        "CONTAINER_ID": "0123456789ab", "CONTAINER_ID_FULL": SUBJECT.id, "CONTAINER_NAME": "web",
        "CONTAINER_TAG": "0123456789ab", "SYSLOG_IDENTIFIER": "0123456789ab",
        "IMAGE_NAME": "busybox:1", "APP_X": "1", "A": "1",
    }  # fmt: skip
