"""`kill -9` of the worker in the midst of every change of networks: afterwards all is whole again.

What is shown can be used and removed; what is not shown has left no device, rule, namespace, file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from tests.integration.engine.networked import NODE, NetworkedNode, talk
from tests.integration.engine.seeded import ask, ok, state_of, until
from tests.integration.engine.test_containers_crash import kill_while

pytestmark = pytest.mark.root
LONG_FORM = "SHOAL_KILL_ROUNDS" in os.environ
ROUNDS = int(os.environ.get("SHOAL_KILL_ROUNDS", "1"))
PAUSES_S = [0.03 * (number + 1) / (ROUNDS + 1) for number in range(ROUNDS)]
SHOWN = {"bridge", "host", "none"}


@pytest.fixture(scope="module")
def node() -> Iterator[NetworkedNode]:
    made = NetworkedNode()
    try:
        made.start()
        yield made
        check_removal(made)
    finally:
        made.close()


def check_removal(node: NetworkedNode) -> None:
    """A node that is removed leaves nothing, though its containers still run."""
    ok(node, "network", "create", "n1")
    ok(node, "run", "-d", "--name", "web", "--network", "n1", "busybox", "sleep", "600")
    node.stop(9)
    assert "table inet shoal_local" in node.leftovers()
    node.uninstall()
    until(lambda: node.leftovers() == [])
    until(lambda: not (node.run / "resolver.pid").exists())


def create(node: NetworkedNode) -> None:
    ask(node, "POST", "/networks/create", {"Name": "n1"})


def remove(node: NetworkedNode) -> None:
    ask(node, "DELETE", "/networks/n1")


def connect(node: NetworkedNode) -> None:
    ask(node, "POST", "/networks/n1/connect", {"Container": "bystander"})


def disconnect(node: NetworkedNode) -> None:
    ask(node, "POST", "/networks/n1/disconnect", {"Container": "bystander"})


BODY = {
    "Image": "busybox",
    "Cmd": ["sleep", "600"],
    "ExposedPorts": {"80/tcp": {}},
    "HostConfig": {"NetworkMode": "n1", "PortBindings": {"80/tcp": [{"HostPort": "81"}]}},
}


def start(node: NetworkedNode) -> None:
    ask(node, "POST", "/containers/create?name=web", BODY)
    ask(node, "POST", "/containers/web/start")


def end(node: NetworkedNode) -> None:
    ask(node, "DELETE", "/containers/web?force=1")


LONG = pytest.mark.skipif(not LONG_FORM, reason="long form: set SHOAL_KILL_ROUNDS")


@pytest.mark.parametrize(
    ("before", "change"),
    [
        pytest.param((), create, id="create", marks=LONG),
        pytest.param((create,), remove, id="rm"),
        pytest.param((create,), connect, id="connect"),
        pytest.param((create, connect), disconnect, id="disconnect", marks=LONG),
        pytest.param((create,), start, id="start"),
        pytest.param((create, start), end, id="end", marks=LONG),
    ],
)
def test_killed_in_the_middle(
    node: NetworkedNode,
    before: tuple[Callable[[NetworkedNode], None], ...],
    change: Callable[[NetworkedNode], None],
):
    serve = ("nc", "-ll", "-p", "80", "-e", "hostname")
    serving = ("--name", "bystander", "-h", "by", "-p", "80:80", "busybox", *serve)
    ok(node, "run", "-d", *serving)
    pid = state_of(node, "bystander")["Pid"]
    for pause_s in PAUSES_S:
        for step in before:
            step(node)
        kill_while(node, lambda: change(node), pause_s)
        assert state_of(node, "bystander")["Pid"] == pid
        until(lambda: node.outside(lambda: talk(NODE, 80)) == b"by\n")
        check_names(node)
        put_back(node)
    ok(node, "rm", "-f", "bystander")
    until(lambda: set(node.leftovers()) <= {"shbr0", "table inet shoal_local"})
    assert not list((node.run / "local").glob("*.json"))
    assert not list((node.run / "local" / "netns").iterdir())


def check_names(node: NetworkedNode) -> None:
    """What inspection shows is what the container has."""
    shown = ask(node, "GET", "/containers/bystander/json")[1]["NetworkSettings"]["Networks"]
    addresses = ok(node, "exec", "bystander", "ip", "-o", "-4", "address")
    assert addresses.count(": eth") == len(shown)
    for place in shown.values():
        assert f" {place['IPAddress']}/" in addresses


def put_back(node: NetworkedNode) -> None:
    """Remove what a round has made; every removal must work."""
    until(lambda: ask(node, "DELETE", "/containers/web?force=1")[0] in {204, 404})
    until(lambda: ask(node, "GET", "/containers/web/json")[0] == 404)
    names = {one["Name"] for one in ask(node, "GET", "/networks")[1]}
    assert SHOWN <= names <= SHOWN | {"n1"}
    if "n1" in names:
        disconnect(node)
        status, answer = ask(node, "DELETE", "/networks/n1")
        assert status == 204, answer


def test_what_others_have_removed_is_made_again(node: NetworkedNode):
    ok(node, "network", "create", "n1")
    node.shell("nft delete table inet shoal_local", "ip link delete shbr0")
    serve = ("nc", "-ll", "-p", "80", "-e", "hostname")
    ok(node, "run", "-d", "--name", "web", "-h", "by", "-p", "80:80", "busybox", *serve)
    until(lambda: node.outside(lambda: talk(NODE, 80)) == b"by\n")
    ok(node, "rm", "-f", "web")
    ok(node, "network", "rm", "n1")
