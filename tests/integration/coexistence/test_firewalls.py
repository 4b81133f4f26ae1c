"""Beside firewalls that drop what they do not know: the doctor names them, and its remedy works."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.integration.coexistence.host import ADDRESS, CLIENT, Host, eventually
from tests.integration.coexistence.node import MANAGER_PORT, Node

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
PORT = 9100
PAGE = f"http://{ADDRESS}:{PORT}/cgi-bin/who"
# As somebody would write it who thinks of his own services only.
STRICT = f"""
table inet mine {{
  set known {{ type ipv4_addr; elements = {{ {CLIENT} }} }}
  chain arriving {{ type filter hook input priority filter; policy drop;
    iifname "lo" accept
    ct state established,related accept
    icmp type echo-request accept
    ip saddr @known tcp dport 22 accept
  }}
  chain passing {{ type filter hook forward priority filter; policy drop;
    ct state vmap {{ established : accept, related : accept, invalid : drop }}
  }}
}}
"""


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    made = Host()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def node(host: Host) -> Iterator[Node]:
    made = Node(host)
    try:
        made.init()
        made.serve("web", PORT)
        eventually("all is well", lambda: made.problems() == {} and CLIENT in host.ask(PAGE))
        yield made
    finally:
        made.close()


def remedied(host: Host, node: Node) -> None:
    """Do as the doctor says, until it has nothing more to say."""
    for _, remedy in node.problems().values():
        host.run("sh", "-ec", remedy)
    assert node.problems() == {}


def test_a_table_of_the_user_s_own(host: Host, node: Node) -> None:
    host.run("nft", "-f", "-", text=STRICT)
    try:
        assert host.ask(PAGE) == ""
        found = node.problems()
        assert set(found) == {"firewall mine arriving", "firewall mine passing"}
        assert "requests to tasks" in found["firewall mine passing"][0]
        assert f"calls to the manager ({MANAGER_PORT}/tcp)" in found["firewall mine arriving"][0]
        remedied(host, node)
        assert CLIENT in host.ask(PAGE)
    finally:
        host.run("nft", "delete", "table", "inet", "mine")


def test_rules_of_iptables_both_kinds(host: Host, node: Node) -> None:
    for tool in ("iptables", "iptables-legacy"):
        if host.run(tool, "-P", "FORWARD", "DROP", check=False).returncode != 0:
            continue  # this kernel has no such tables
        try:
            assert host.ask(PAGE) == ""
            what, remedy = node.problems()["firewall filter FORWARD"]
            assert what.startswith(f"{tool}: chain FORWARD")
            assert f"{tool} -I FORWARD -i gt+ -j ACCEPT" in remedy
            remedied(host, node)
            assert CLIENT in host.ask(PAGE)
        finally:
            host.run(tool, "-P", "FORWARD", "ACCEPT")
            host.run(tool, "-F", "FORWARD")


@pytest.mark.skipif(
    not (shutil.which("firewalld") and shutil.which("dbus-daemon")), reason="no firewalld here"
)
def test_firewalld(host: Host, node: Node) -> None:
    settings = host.base / "firewalld"
    settings.mkdir()
    host.run("mkdir", "-p", "/run/dbus")
    host.run("mount", "--bind", str(settings), "/etc/firewalld")
    bus = host.start("dbus", "dbus-daemon", "--system", "--nofork", "--nopidfile")
    eventually("a bus", lambda: host.run("test", "-S", "/run/dbus/system_bus_socket", check=False)
               .returncode == 0)  # fmt: skip
    daemon = host.start("firewall", "firewalld", "--nofork", "--nopid")
    try:
        eventually(
            "firewalld runs",
            lambda: host.run("firewall-cmd", "--state", check=False).stdout.strip() == "running",
        )
        found = node.problems()
        forward, remedy = found["firewall firewalld filter_FORWARD"]
        assert "what tasks send out" in forward
        assert "--zone=trusted --add-interface=gt+" in remedy
        assert f"--add-port={MANAGER_PORT}/tcp" in found["firewall firewalld filter_INPUT"][1]
        remedied(host, node)
        assert CLIENT in host.ask(PAGE)
        shown = host.run("firewall-cmd", "--zone=trusted", "--list-interfaces").stdout.split()
        assert set(shown) == {"gt+", "vxi"}
    finally:
        daemon.end()
        bus.end()
