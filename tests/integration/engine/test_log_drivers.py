"""Log drivers through the real docker command line."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.integration.engine.daemon import EngineNode
from tests.integration.engine.seeded import ask, ok, refused, seeded_node

pytestmark = pytest.mark.root
MAKE_NODE = seeded_node
NONE = ("--network", "none")


@pytest.fixture(autouse=True)
def nothing_left(node: EngineNode) -> Iterator[None]:
    yield
    for container in ok(node, "ps", "-aq").split():
        ok(node, "rm", "-f", container)


def run(node: EngineNode, script: str, *options: str) -> str:
    container = ok(
        node, "run", "-d", "--name", "one", *NONE, *options, "busybox", "sh", "-c", script
    )
    assert ok(node, "wait", container) == "0"
    return container


def test_options_of_json_file(node: EngineNode):
    options = ("--log-opt", "max-size=10k", "--log-opt", "max-file=3", "--log-opt", "compress=true")
    run(node, "seq 1 3000", *options)
    lines = ok(node, "logs", "one").splitlines()
    assert lines[-1] == "3000"
    assert 100 < len(lines) < 3000
    shown = ask(node, "GET", "/containers/one/json")[1]["HostConfig"]["LogConfig"]
    assert shown == {
        "Type": "json-file", "Config": {"max-size": "10k", "max-file": "3", "compress": "true"},
    }  # fmt: skip


def test_details_and_until(node: EngineNode):
    options = ("-l", "tier=front", "-e", "A=b c", "--log-opt", "labels=tier", "--log-opt", "env=A",
               "--log-opt", "tag={{.Name}}")  # fmt: skip
    run(node, "echo early; sleep 1.1; echo late", *options)
    assert ok(node, "logs", "--details", "one").splitlines()[0] == "A=b+c,tag=one,tier=front early"
    first, last = (line.split()[0] for line in ok(node, "logs", "-t", "one").splitlines())
    assert ok(node, "logs", "--until", first, "one") == "early"
    assert ok(node, "logs", "--since", first, "one").splitlines()[-1] == "late"
    assert ok(node, "logs", "-f", "--until", last, "--tail", "1", "one") == "late"


def test_none_and_local(node: EngineNode):
    run(node, "echo a", "--log-driver", "none")
    assert refused(node, "logs", "one") == "configured logging driver does not support reading"
    ok(node, "rm", "one")
    run(node, "echo a", "--log-driver", "local", "--log-opt", "max-size=1m")
    assert ok(node, "logs", "one") == "a"


def test_syslog(node: EngineNode):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(f"{node.base}/syslog")
        server.settimeout(40)
        address = f"unixgram://{node.base}/syslog"
        options = ("--log-opt", f"syslog-address={address}", "--log-opt", "tag={{.Name}}/{{.ID}}",
                   "--log-opt", "syslog-facility=local1")  # fmt: skip
        container = run(node, "echo hello", "--log-driver", "syslog", *options)
        message = server.recv(4096).decode()
    assert message.startswith("<142>")
    assert message.partition(" one/")[2].startswith(f"{container[:12]}[")
    assert message.endswith("]: hello\n")
    assert ok(node, "logs", "one") == "hello"
    ok(node, "rm", "one")
    run(node, "echo hello", "--log-driver", "syslog", "--log-opt", "cache-disabled=true", *options)
    assert refused(node, "logs", "one") == "configured logging driver does not support reading"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--log-driver", "asdf"), "logger: no log driver named 'asdf' is registered"),
        (("--log-opt", "x=y"), "unknown log opt 'x' for json-file log driver"),
        (("--log-driver", "syslog", "--log-opt", "syslog-address=x"),
         "syslog-address should be in form proto://address, got x"),
        (("--log-opt", "compress=true"),
         "compress cannot be true when max-file is less than 2 or max-size is not set"),
    ],
)  # fmt: skip
def test_refused(node: EngineNode, options: tuple[str, ...], text: str):
    assert refused(node, "create", *NONE, *options, "busybox", "true") == text
    assert ok(node, "ps", "-aq") == ""


def test_what_the_node_offers(node: EngineNode):
    offered = ask(node, "GET", "/info")[1]["Plugins"]["Log"]
    assert {"json-file", "local", "none", "syslog"} <= set(offered)
