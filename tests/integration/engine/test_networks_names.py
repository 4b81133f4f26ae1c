"""Names in containers: the server at 127.0.0.11, /etc/hosts, resolv.conf."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import dns.message
import dns.query
import pytest

from tests.integration.engine.networked import CLIENT, NetworkedNode, upstream
from tests.integration.engine.seeded import ask, ok, until
from worker.network import netns

pytestmark = pytest.mark.root
SLEEP = ("busybox", "sleep", "600")


@pytest.fixture(scope="module")
def node() -> Iterator[NetworkedNode]:
    made = NetworkedNode()
    try:
        made.start()
        ok(made, "network", "create", "--subnet", "10.9.0.0/24", "n1")
        ok(made, "network", "create", "n2")
        yield made
    finally:
        made.close()


@pytest.fixture(autouse=True)
def no_containers(node: NetworkedNode) -> Iterator[None]:
    yield
    ok(node, "rm", "-f", *ok(node, "ps", "-aq").split())


def run(node: NetworkedNode, name: str, *options: str) -> str:
    return ok(node, "run", "-d", "--name", name, *options, *SLEEP)


def inside(node: NetworkedNode, name: str, *command: str) -> str:
    return ok(node, "exec", name, *command)


def looked_up(node: NetworkedNode, name: str, *query: str) -> str:
    """What nslookup prints, also when it finds nothing."""
    ran = node.docker("exec", name, "nslookup", *query)
    return ran.out.partition("\n\n")[2]


def test_who_is_called_what(node: NetworkedNode):
    identifier = run(node, "web", "--network", "n1", "--ip", "10.9.0.20",
                     "--network-alias", "al", "-h", "box")  # fmt: skip
    run(node, "other", "--network", "n1", "--ip", "10.9.0.21", "--network-alias", "al")
    run(node, "far", "--network", "n2")
    for name in ("web", "WEB", "box", identifier[:12], "web.n1"):
        assert "10.9.0.20" in looked_up(node, "other", name), name
    assert {"10.9.0.20", "10.9.0.21"} <= set(looked_up(node, "web", "al").split())
    assert "name = web.n1" in looked_up(node, "other", "10.9.0.20")
    assert "NXDOMAIN" in looked_up(node, "far", "web")
    assert "NXDOMAIN" in looked_up(node, "other", "nobody")
    ok(node, "rename", "web", "shop")
    assert "10.9.0.20" in looked_up(node, "other", "shop")
    assert "NXDOMAIN" in looked_up(node, "other", "web")
    ok(node, "rm", "-f", "shop")
    assert "NXDOMAIN" in looked_up(node, "other", "shop")


def test_port_53_is_the_containers_own(node: NetworkedNode):
    run(node, "web", "--network", "n1")
    ok(node, "exec", "-d", "web", "nc", "-ll", "-p", "53", "-e", "hostname")
    said = ("sh", "-c", "nc -w 2 127.0.0.1 53 </dev/null")
    until(lambda: node.docker("exec", "web", *said).out != "")
    assert "10.9.0" in looked_up(node, "web", "web")


def test_others_are_asked_for_the_rest(node: NetworkedNode):
    with upstream(node) as server:
        run(node, "web", "--network", "n1", "--dns", CLIENT)
        for _ in range(4):
            assert "198.51.100.7" in looked_up(node, "web", "-type=a", "outside.example")
        assert len(server.ports) >= 3  # each question from a port of its own
        looked_up(node, "web", "-type=a", "single")
        assert "single." not in server.asked
        ok(node, "network", "create", "--internal", "shut")
        run(node, "inner", "--network", "shut", "--dns", CLIENT)
        before = len(server.asked)
        assert "SERVFAIL" in looked_up(node, "inner", "-type=a", "outside.example")
        assert len(server.asked) == before


def asked(sandbox: str, name: str) -> tuple[dns.message.Message, bool]:
    """An answer with EDNS left out, over UDP and, when that is cut off, over TCP."""
    query = dns.message.make_query(name, "A", use_edns=False)
    with netns.entered(Path(sandbox)):
        return dns.query.udp_with_fallback(query, "127.0.0.11", timeout=10)


def test_answers_that_are_too_long_come_over_tcp(node: NetworkedNode):
    with upstream(node):
        run(node, "web", "--network", "n1", "--dns", CLIENT)
        shown = ask(node, "GET", "/containers/web/json")[1]["NetworkSettings"]
        reply, over_tcp = asked(shown["SandboxKey"], "big.example")
        assert over_tcp
        assert len(reply.answer[0]) == 199
        reply, over_tcp = asked(shown["SandboxKey"], "web")
        assert not over_tcp
        with netns.entered(Path(shown["SandboxKey"])):
            query = dns.message.make_query("web", "A")
            (record,) = dns.query.tcp(query, "127.0.0.11", timeout=10).answer[0]
        assert record.address == shown["Networks"]["n1"]["IPAddress"]


def test_the_servers_end_is_made_good(node: NetworkedNode):
    run(node, "web", "--network", "n1", "--ip", "10.9.0.20")
    pid = int((node.run / "resolver.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    until(lambda: "10.9.0.20" in looked_up(node, "web", "web"))
    assert int((node.run / "resolver.pid").read_text()) != pid


def test_files_of_the_default_bridge(node: NetworkedNode):
    run(node, "db", "-h", "dbhost", "--expose", "5432", "-e", "USER=me")
    address = ask(node, "GET", "/containers/db/json")[1]["NetworkSettings"]["IPAddress"]
    run(node, "web", "--link", "db:data", "--dns", "192.0.2.53", "--dns-search", "example.org",
        "--dns-opt", "timeout:3", "--add-host", "gate:host-gateway")  # fmt: skip
    hosts = inside(node, "web", "cat", "/etc/hosts")
    assert f"{address}\tdata dbhost db" in hosts
    assert "172.17.0.1\tgate" in hosts
    env = inside(node, "web", "env").splitlines()
    assert f"DATA_PORT=tcp://{address}:5432" in env
    assert {"DATA_NAME=/web/data", "DATA_ENV_USER=me", "DATA_PORT_5432_TCP_PORT=5432"} <= {*env}
    assert inside(node, "web", "cat", "/etc/resolv.conf").splitlines() == [
        "search example.org", "nameserver 192.0.2.53", "options timeout:3",
    ]  # fmt: skip


def test_files_of_networks_with_names(node: NetworkedNode):
    run(node, "web", "--network", "n1", "--dns", "192.0.2.53", "--dns-search", "example.org")
    lines = inside(node, "web", "cat", "/etc/resolv.conf").splitlines()
    assert lines[:2] == ["search example.org", "nameserver 127.0.0.11"]
    assert "ndots:0" in lines[2]
    run(node, "late")
    assert "127.0.0.11" not in inside(node, "late", "cat", "/etc/resolv.conf")
    ok(node, "network", "connect", "n1", "late")
    assert "nameserver 127.0.0.11" in inside(node, "late", "cat", "/etc/resolv.conf")
    assert "10.9.0." in looked_up(node, "late", "web")
    ok(node, "network", "disconnect", "n1", "late")
    assert "127.0.0.11" not in inside(node, "late", "cat", "/etc/resolv.conf")


def test_links_in_networks_with_names(node: NetworkedNode):
    run(node, "db", "--network", "n1", "--ip", "10.9.0.30")
    run(node, "web", "--network", "n1", "--link", "db:data")
    run(node, "other", "--network", "n1")
    assert "10.9.0.30" in looked_up(node, "web", "data")
    assert "NXDOMAIN" in looked_up(node, "other", "data")
