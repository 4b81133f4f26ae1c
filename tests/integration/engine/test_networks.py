"""Local networks through the docker command line, on a node with a network of its own.

What is published is asked for from outside, from the node and from containers; what is separate is
tried and must not be reached.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.integration.engine.networked import (
    CLIENT,
    NODE,
    NODE6,
    NetworkedNode,
    datagram,
    echo,
    talk,
)
from tests.integration.engine.seeded import ask, ok, refused, state_of, until
from worker.network import netns
from worker.network.local import ruleset
from worker.network.local.holders import has_sctp
from worker.network.local.nftables import Nft, NftError

pytestmark = pytest.mark.root
SERVE = ("nc", "-ll", "-p", "80", "-e", "hostname")
SLEEP = ("sleep", "600")


@pytest.fixture(scope="module")
def node() -> Iterator[NetworkedNode]:
    made = NetworkedNode()
    try:
        made.start()
        yield made
        made.stop()
        assert made.leftovers() == []
    finally:
        made.close()


@pytest.fixture(autouse=True)
def nothing_left(node: NetworkedNode) -> Iterator[None]:
    yield
    found = ok(node, "ps", "-aq").split()
    if found:
        ok(node, "rm", "-f", *found)
    ok(node, "network", "prune", "-f")
    until(lambda: set(node.leftovers()) <= {"shbr0", "table inet shoal_local"})
    assert not list((node.run / "local").glob("*.json"))


def run(node: NetworkedNode, name: str, *options: str, command: tuple[str, ...] = SLEEP) -> str:
    """A container in the background; its address in its first network."""
    ok(node, "run", "-d", "--name", name, "-h", name, *options, "busybox", *command)
    return places(node, name)[0]["IPAddress"]


def places(node: NetworkedNode, name: str) -> list[dict[str, Any]]:
    return [*settings(node, name)["Networks"].values()]


def settings(node: NetworkedNode, name: str) -> dict[str, Any]:
    found: dict[str, Any] = ask(node, "GET", f"/containers/{name}/json")[1]["NetworkSettings"]
    return found


def inside(node: NetworkedNode, name: str, *command: str) -> str:
    return ok(node, "exec", name, *command)


def pings(node: NetworkedNode, name: str, address: str) -> bool:
    return node.docker("exec", name, "ping", "-c1", "-W1", address).code == 0


def says(node: NetworkedNode, name: str, address: str, port: int) -> str:
    """What a server says to a container."""
    ran = node.docker("exec", name, "sh", "-c", f"nc -w 2 {address} {port} </dev/null")
    return ran.out.strip()


def test_the_networks_that_are_always_there(node: NetworkedNode):
    listed = {one["Name"]: one for one in ask(node, "GET", "/networks")[1]}
    assert {name: one["Driver"] for name, one in listed.items()} == {
        "bridge": "bridge", "host": "host", "none": "null",
    }  # fmt: skip
    assert listed["bridge"]["IPAM"]["Config"] == [
        {"Subnet": "172.17.0.0/16", "Gateway": "172.17.0.1"}
    ]
    assert listed["bridge"]["Options"]["com.docker.network.bridge.name"] == "shbr0"
    for name in listed:
        assert refused(node, "network", "rm", name) == (
            f"{name} is a pre-defined network and cannot be removed"
        )
    drivers = ["bridge", "host", "null", "overlay"]
    assert node.docker_json("info")["Plugins"]["Network"] == drivers


def test_a_published_port_is_reached_from_everywhere(node: NetworkedNode):
    run(node, "web", "-p", "8080:80", command=SERVE)
    run(node, "other")
    ok(node, "network", "create", "n1")
    run(node, "far", "--network", "n1")
    until(lambda: node.outside(lambda: talk(NODE, 8080)) == b"web\n")
    for address in ("127.0.0.1", NODE, "172.17.0.1"):
        assert node.on_node(lambda address=address: talk(address, 8080)) == b"web\n", address
    for name in ("web", "other", "far"):
        assert says(node, name, NODE, 8080) == "web", name
    assert settings(node, "web")["Ports"] == {
        "80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}, {"HostIp": "::", "HostPort": "8080"}]
    }
    assert ok(node, "port", "web") == "80/tcp -> 0.0.0.0:8080\n80/tcp -> [::]:8080"
    assert refused(node, "run", "-d", "-p", "8080:80", "busybox", "true").endswith(
        "Bind for 0.0.0.0:8080 failed: port is already allocated"
    )
    ok(node, "stop", "-t", "0", "web")
    assert node.outside(lambda: talk(NODE, 8080)) == b""
    ok(node, "start", "web")
    until(lambda: node.outside(lambda: talk(NODE, 8080)) == b"web\n")


def test_how_ports_are_chosen(node: NetworkedNode):
    run(node, "a1", "-p", f"{NODE}:8081:80", "-p", "5353:53/udp", "-p", "81", command=SERVE)
    ports = settings(node, "a1")["Ports"]
    assert ports["80/tcp"] == [{"HostIp": NODE, "HostPort": "8081"}]
    assert int(ports["81/tcp"][0]["HostPort"]) >= 1024
    with echo(settings(node, "a1")["SandboxKey"]):
        assert node.outside(lambda: datagram(NODE, 5353, b"hello")) == b"hello"
    run(node, "a2", "-p", "8090-8092:80", command=SERVE)
    run(node, "a3", "-p", "8090-8092:80", command=SERVE)
    chosen = [settings(node, name)["Ports"]["80/tcp"][0]["HostPort"] for name in ("a2", "a3")]
    assert chosen == ["8090", "8091"]
    until(lambda: node.outside(lambda: talk(NODE, 8091)) == b"a3\n")
    run(node, "a4", "-P", "--expose", "80", command=SERVE)
    number = int(settings(node, "a4")["Ports"]["80/tcp"][0]["HostPort"])
    until(lambda: node.outside(lambda: talk(NODE, number)) == b"a4\n")
    assert node.on_node(lambda: talk("127.0.0.1", 8081)) == b""
    assert "192.0.2.77" in refused(node, "run", "-d", "-p", "192.0.2.77:1:1", "busybox", "true")


def test_sctp_where_the_kernel_has_it(node: NetworkedNode):
    options = ("run", "-d", "--name", "s1", "-p", "8085:80/sctp", "busybox", *SLEEP)
    if not has_sctp():
        text = "port 80/sctp: this node's kernel has no SCTP: load its module (modprobe sctp)"
        assert refused(node, *options).endswith(text)
        return
    ok(node, *options)
    assert settings(node, "s1")["Ports"]["80/sctp"][0]["HostPort"] == "8085"
    assert "132 . 8085" in node.shell("nft -n list map inet shoal_local any4")


def test_the_rules_carry_every_protocol(tmp_path: Path):
    """Also where this kernel has no sockets of one: the rules are the same."""
    ports = [
        ruleset.Published(
            protocol=protocol, host_address=host, host_port=80, address="10.1.0.2", port=81
        )
        for protocol in ("tcp", "udp", "sctp")
        for host in ("", "127.0.0.1")
    ]
    path = tmp_path / "net"
    try:
        with netns.fresh(path), Nft() as nft:
            nft.run(ruleset.whole([], ports))
            for port in ports:
                nft.run(ruleset.delete_port(port))
            with pytest.raises(NftError):
                nft.run(ruleset.delete_port(ports[-1]))
    finally:
        netns.drop(path)


def test_a_process_of_the_node_keeps_its_port(node: NetworkedNode):
    with node.on_node(lambda: socket.create_server(("127.0.0.1", 8099))):
        text = refused(node, "run", "-d", "-p", "8099:80", "busybox", "true")
        assert text.endswith("Bind for 0.0.0.0:8099 failed: address already in use")


def test_networks_are_apart(node: NetworkedNode):
    for name, options in (
        ("n1", ()),
        ("n2", ()),
        ("shut", ("--internal",)),
        (
            "mute",
            (
                "-o",
                "com.docker.network.bridge.enable_icc=false",
            ),
        ),
    ):
        ok(node, "network", "create", *options, name)
    default, one = run(node, "bridged"), run(node, "one", "--network", "n1")
    friend, two = run(node, "friend", "--network", "n1"), run(node, "two", "--network", "n2")
    shut, mate = run(node, "shut1", "--network", "shut"), run(node, "shut2", "--network", "shut")
    run(node, "mute1", "--network", "mute")
    mute = run(node, "mute2", "--network", "mute")
    assert pings(node, "one", friend)
    assert pings(node, "shut1", mate)
    assert pings(node, "mute1", CLIENT)
    assert pings(node, "one", CLIENT)
    apart = (
        ("one", two), ("one", default), ("bridged", one), ("one", shut), ("shut1", one),
        ("shut1", CLIENT), ("mute1", mute),
    )  # fmt: skip
    with ThreadPoolExecutor() as pool:  # each waits for a second
        reached = [*pool.map(lambda pair: pings(node, *pair), apart)]
    assert reached == [False] * len(apart)
    node.outside(lambda: _route(f"ip route replace 172.16.0.0/12 via {NODE}"))
    assert not node.outside(lambda: _reaches(friend))
    assert "default" not in inside(node, "shut1", "ip", "route")


def _route(line: str) -> None:
    subprocess.run(line.split(), check=True, capture_output=True)


def _reaches(address: str) -> bool:
    done = subprocess.run(
        ["busybox", "ping", "-c1", "-W1", address], capture_output=True, check=False
    )
    return done.returncode == 0


def test_the_node_hides_its_containers(node: NetworkedNode):
    def listen() -> socket.socket:
        return socket.create_server((CLIENT, 7000))

    seen: list[str] = []
    with node.outside(listen) as server:

        def accept() -> None:
            connection, sender = server.accept()
            connection.close()
            seen.append(sender[0])

        thread = threading.Thread(target=accept)
        thread.start()
        run(node, "web")
        node.docker("exec", "web", "sh", "-c", f"nc -w 1 {CLIENT} 7000 </dev/null")
        thread.join(40)
    assert seen == [NODE]


def test_what_a_network_is_made_of(node: NetworkedNode):
    ok(
        node, "network", "create", "--subnet", "10.123.0.0/24", "--gateway", "10.123.0.1",
        "--ip-range", "10.123.0.128/25", "--aux-address", "h=10.123.0.128", "--label", "a=b",
        "-o", "com.docker.network.bridge.name=brx", "-o", "com.docker.network.driver.mtu=1400",
        "--attachable", "n2",
    )  # fmt: skip
    (shown,) = json.loads(ok(node, "network", "inspect", "n2"))
    assert shown["IPAM"]["Config"] == [
        {
            "Subnet": "10.123.0.0/24", "IPRange": "10.123.0.128/25", "Gateway": "10.123.0.1",
            "AuxiliaryAddresses": {"h": "10.123.0.128"},
        }
    ]  # fmt: skip
    assert (shown["Attachable"], shown["Labels"]) == (True, {"a": "b"})
    assert "brx" in node.leftovers()
    assert run(node, "c1", "--network", "n2") == "10.123.0.129"
    fixed = ("--network", "n2", "--ip", "10.123.0.200", "--mac-address", "02:42:0a:7b:00:99")
    assert run(node, "c2", *fixed) == "10.123.0.200"
    link = inside(node, "c2", "ip", "link", "show", "eth0")
    assert "mtu 1400" in link
    assert "02:42:0a:7b:00:99" in link
    (place,) = places(node, "c2")
    assert (place["MacAddress"], place["Gateway"], place["IPPrefixLen"]) == (
        "02:42:0a:7b:00:99", "10.123.0.1", 24,
    )  # fmt: skip
    taken = refused(node, "run", "-d", *fixed[:4], "busybox", "true")
    assert taken == "Address already in use: 10.123.0.200"
    ok(node, "network", "create", "--config-only", "--subnet", "10.125.0.0/24", "conf")
    ok(node, "network", "create", "--config-from", "conf", "n3")
    assert run(node, "c3", "--network", "n3") == "10.125.0.2"
    assert (ok(node, "network", "ls", "-q", "--filter", "label=a=b")) == shown["Id"][:12]
    (seen,) = (json.loads(ok(node, "network", "inspect", "n2"))[0]["Containers"].values(),)
    assert {(one["Name"], one["IPv4Address"]) for one in seen} == {
        ("c1", "10.123.0.129/24"), ("c2", "10.123.0.200/24"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("-d", "nosuch"), 'plugin "nosuch" not found'),
        (("--subnet", "bad"), "Invalid subnet bad : invalid CIDR address: bad"),
        (("--subnet", "172.17.5.0/24"), "Pool overlaps with other one on this address space"),
        (("-d", "host"), 'only one instance of "host" network is allowed'),
        (("-o", "com.docker.network.bridge.name=shbr0"), "bridge shbr0 is in use by network"),
        (("-o", "com.docker.network.bridge.name=ext0"), "a device ext0 is on this machine"),
        (("-o", "wrong=1"), "option wrong: bridge networks have no such option here"),
        (("-d", "macvlan"), "driver macvlan: local networks are bridges"),
        (("-d", "overlay"), "This node is not a swarm manager."),
    ],
)
def test_networks_that_cannot_be(node: NetworkedNode, options: tuple[str, ...], text: str):
    assert text in refused(node, "network", "create", *options, "n9")
    assert "n9" not in ok(node, "network", "ls")


def test_connecting_and_taking_apart(node: NetworkedNode):
    ok(node, "network", "create", "n1")
    ok(node, "network", "create", "--subnet", "10.123.0.0/24", "n2")
    first, second = run(node, "nc1", "--network", "n1"), run(node, "nc2", "--network", "n2")
    assert not pings(node, "nc1", second)
    ok(node, "network", "connect", "--ip", "10.123.0.200", "--alias", "al2", "n2", "nc1")
    assert pings(node, "nc1", second)
    assert pings(node, "nc2", "al2")
    one, two = places(node, "nc1")
    assert (one["IPAddress"], two["IPAddress"]) == (first, "10.123.0.200")
    assert two["Aliases"] == ["al2"]
    assert "10.123.0.200\tnc1" in inside(node, "nc1", "cat", "/etc/hosts")
    assert refused(node, "network", "connect", "n2", "nc1") == (
        "endpoint with name nc1 already exists in network n2"
    )
    assert refused(node, "network", "connect", "nosuch", "nc1") == "network nosuch not found"
    assert refused(node, "network", "connect", "n1", "nosuch") == "No such container: nosuch"
    identifier = ok(node, "network", "inspect", "-f", "{{.Id}}", "n1")
    assert refused(node, "network", "rm", "n1") == (
        f"error while removing network: network n1 id {identifier} has active endpoints"
    )
    ok(node, "network", "disconnect", "n1", "nc1")
    assert "10.123.0.1" in inside(node, "nc1", "ip", "route")
    assert first not in inside(node, "nc1", "cat", "/etc/hosts")
    container = ok(node, "inspect", "-f", "{{.Id}}", "nc1")
    assert refused(node, "network", "disconnect", "n1", "nc1") == (
        f"container {container} is not connected to network n1"
    )
    run(node, "both", "--network", "n1", "--network", "n2")
    assert [place["Gateway"] for place in places(node, "both")][1] == "10.123.0.1"
    assert pings(node, "both", second)
    ok(node, "create", "--name", "idle", "--network", "n1", "busybox", *SLEEP)
    ok(node, "network", "connect", "n2", "idle")
    ok(node, "network", "disconnect", "n1", "idle")
    ok(node, "start", "idle")
    assert [place["Gateway"] for place in places(node, "idle")] == ["10.123.0.1"]


def test_ipv6_where_it_is_asked_for(node: NetworkedNode):
    ok(node, "network", "create", "--ipv6", "--subnet", "2001:db8:8::/64", "six")
    run(node, "six1", "--network", "six", "-p", "8086:80", command=("nc", "-ll", "-p", "80", "-e",
        "hostname"))  # fmt: skip
    run(node, "six2", "--network", "six", "--ip6", "2001:db8:8::77")
    (place,) = places(node, "six2")
    assert (place["GlobalIPv6Address"], place["GlobalIPv6PrefixLen"], place["IPv6Gateway"]) == (
        "2001:db8:8::77", 64, "2001:db8:8::1",
    )  # fmt: skip
    assert pings(node, "six1", "2001:db8:8::77")
    assert inside(node, "six1", "nslookup", "-type=aaaa", "six2").count("2001:db8:8::77") == 1
    until(lambda: node.outside(lambda: talk(NODE6, 8086)) == b"six1\n")
    assert settings(node, "six1")["Ports"]["80/tcp"][1] == {"HostIp": "::", "HostPort": "8086"}
    run(node, "four")
    assert "inet6 2" not in inside(node, "four", "ip", "address")


def test_namespaces_of_others(node: NetworkedNode):
    run(node, "web", "--add-host", "db:192.0.2.9", command=SERVE)
    run_modes = {"host": "ext0", "none": "lo", "container:web": "eth0"}
    for number, (mode, device) in enumerate(run_modes.items()):
        name = f"mode{number}"
        ok(node, "run", "-d", "--name", name, "--network", mode, "busybox", *SLEEP)
        links = inside(node, name, "ip", "-o", "link")
        assert device in links
        assert ("eth0" in links) == (mode == "container:web")
    assert inside(node, "mode2", "cat", "/etc/hosts") == inside(node, "web", "cat", "/etc/hosts")
    assert says(node, "mode2", "127.0.0.1", 80) == "web"
    assert "sharing network namespace" in refused(node, "network", "connect", "bridge", "mode2")
    assert "host network" in refused(node, "network", "connect", "bridge", "mode0")
    ok(node, "rm", "-f", "web")
    assert "inet 172" not in inside(node, "mode2", "ip", "address")


def test_events_and_filters(node: NetworkedNode):
    since = str(time.time())
    ok(node, "network", "create", "n1")
    run(node, "c1", "--network", "n1")
    ok(node, "rm", "-f", "c1")
    ok(node, "network", "rm", "n1")
    lines = ok(
        node, "events", "--since", since, "--until", str(time.time()), "--filter", "type=network",
        "--format", "{{.Action}} {{.Actor.Attributes.name}} {{.Actor.Attributes.type}}",
    ).splitlines()  # fmt: skip
    assert lines == [f"{action} n1 bridge" for action in
                     ("create", "connect", "disconnect", "destroy")]  # fmt: skip
    ok(node, "network", "create", "--label", "keep", "n2")
    ok(node, "network", "create", "n3")
    assert ok(node, "network", "ls", "--filter", "type=custom", "--format", "{{.Name}}").split() \
        == ["n2", "n3"]  # fmt: skip
    assert ok(node, "network", "ls", "--filter", "driver=null", "--format", "{{.Name}}") == "none"
    pruned = ok(node, "network", "prune", "-f", "--filter", "label!=keep")
    assert re.findall("n[0-9]", pruned) == ["n3"]
    assert refused(node, "network", "ls", "--filter", "nosuch=1") == "Invalid filter 'nosuch'"


def test_traffic_is_counted(node: NetworkedNode):
    run(node, "one")
    address = run(node, "two")
    assert pings(node, "one", address)
    counted = ask(node, "GET", "/containers/one/stats?stream=0&one-shot=1")[1]["networks"]["eth0"]
    assert counted["rx_packets"] > 0
    assert counted["tx_bytes"] > 0


def test_what_runs_outlives_the_daemon(node: NetworkedNode):
    ok(node, "network", "create", "n1")
    run(node, "web", "-p", "8080:80", command=SERVE)
    first = run(node, "a1", "--network", "n1")
    second = run(node, "a2", "--network", "n1", "-p", "8081:80", command=SERVE)
    pid = state_of(node, "a1")["Pid"]
    node.stop(9)
    assert node.outside(lambda: talk(NODE, 8080)) == b"web\n"
    node.socket.unlink(missing_ok=True)
    node.start()
    assert state_of(node, "a1")["Pid"] == pid
    for port, name in ((8080, b"web\n"), (8081, b"a2\n")):
        assert node.outside(lambda port=port: talk(NODE, port)) == name
    assert second in inside(node, "a1", "nslookup", "a2")
    assert run(node, "a3", "--network", "n1") not in {first, second}
    assert first in inside(node, "a3", "nslookup", "a1")
    text = refused(node, "run", "-d", "-p", "8081:80", "busybox", "true")
    assert text.endswith("Bind for 0.0.0.0:8081 failed: port is already allocated")
    ok(node, "rename", "a1", "new")
    assert first in inside(node, "a3", "nslookup", "new")
