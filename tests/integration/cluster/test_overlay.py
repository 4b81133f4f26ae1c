"""Services on overlay networks of a real cluster: by name and virtual address, over all nodes."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dns.message
import dns.rcode
import pytest

from tests.integration.cluster.lab import Lab, eventually
from worker.network import netns

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


def _namespace(task: dict[str, Any]) -> Path:
    return Path(f"/proc/{task['Status']['ContainerStatus']['PID']}/ns/net")


def look_up(task: dict[str, Any], name: str) -> list[str]:
    """What a task's resolver says; sorted. ["NXDOMAIN"]: nobody is called that."""
    query = dns.message.make_query(name, "A")
    with netns.entered(_namespace(task)), socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.settimeout(20)
        sock.connect(("127.0.0.11", 53))
        sock.send(query.to_wire())
        reply = dns.message.from_wire(sock.recv(4096))
    if reply.rcode():
        return [dns.rcode.to_text(reply.rcode())]
    return sorted(item.to_text() for answer in reply.answer for item in answer)


def ask(task: dict[str, Any], address: str) -> tuple[str, str]:
    """Who answers a task there, and which client he sees."""
    with (
        netns.entered(_namespace(task)),
        socket.create_connection((address, 80), timeout=10) as connection,
    ):
        connection.sendall(b"GET /cgi-bin/who HTTP/1.0\r\n\r\n")
        host, client = connection.makefile().read().split()[-2:]
    return host, client.strip("[]").removeprefix("::ffff:")


def addresses(tasks: list[dict[str, Any]]) -> list[str]:
    """On their overlay network, sorted."""
    return sorted(task["NetworksAttachments"][0]["Addresses"][0].split("/")[0] for task in tasks)


@pytest.fixture
def networks(lab: Lab) -> Iterator[tuple[str, str]]:
    names = ("back", "aside")
    for name in names:
        lab.swarmctl("network", "create", name)
    yield names
    for name in ("web", "asking", "stranger"):
        lab.swarmctl("service", "rm", name, check=False)

    def removed() -> bool:
        return all(lab.run("network", "rm", name, check=False).returncode == 0 for name in left())

    def left() -> list[str]:
        shown = lab.swarmctl("network", "ls", "--format", "{{.Name}}").split()
        return [name for name in names if name in shown]

    eventually("the networks are removed", lambda: removed() and not left())


def test_services_find_each_other_by_name_on_every_node(
    lab: Lab, networks: tuple[str, str]
) -> None:
    back, aside = networks
    lab.swarmctl(
        "service", "create", "--detach", "--name", "web", "--replicas", "3",
        "--restart-delay", "100ms", "--network", back, "web:1",
    )  # fmt: skip
    lab.swarmctl(
        "service",
        "create",
        "--detach",
        "--name",
        "asking",
        "--replicas",
        "3",
        "--network",
        back,
        "web:1",
    )
    lab.swarmctl("service", "create", "--detach", "--name", "stranger", "--network", aside, "web:1")
    askers = eventually("one on each node", lambda: len(r := lab.running("asking")) == 3 and r)
    (stranger,) = eventually("the stranger runs", lambda: lab.running("stranger"))
    web = eventually("the servers run", lambda: len(r := lab.running("web")) == 3 and r)
    assert len({task["NodeID"] for task in askers}) == 3
    for asker in askers:
        eventually(
            "the tasks are known",
            lambda asker=asker: look_up(asker, "tasks.web") == addresses(web),
        )
        (vip,) = look_up(asker, "web")
        seen = {ask(asker, vip) for _ in range(40)}
        assert {host for host, _client in seen} == {task["ID"][:12] for task in web}
        assert {client for _host, client in seen} == set(addresses([asker]))
        assert look_up(asker, "stranger") == ["NXDOMAIN"]
    assert look_up(stranger, "web") == ["NXDOMAIN"]

    _names_follow_what_runs(lab, askers)
    lab.swarmctl("service", "rm", "web", "asking", "stranger")

    def gone() -> bool:
        spaces = (lab.base / "lab" / lab.name).glob("*/run/overlay/netns/*")
        return not list(spaces)

    eventually("no node has a network left", gone)


def _names_follow_what_runs(lab: Lab, askers: list[dict[str, Any]]) -> None:
    """Scaled and killed: a name stands for what runs, and for nothing else, on every node."""

    def in_step(count: int) -> bool:
        web = lab.running("web")
        return len(web) == count and all(
            look_up(asker, "tasks.web") == addresses(web) for asker in askers
        )

    for count in (5, 2):
        lab.swarmctl("service", "scale", "--detach", f"web={count}")
        eventually(f"{count} are known", lambda count=count: in_step(count))
    (vip,) = look_up(askers[0], "web")
    victim = lab.running("web")[0]
    os.kill(victim["Status"]["ContainerStatus"]["PID"], signal.SIGKILL)

    def replaced() -> bool:
        web = lab.running("web")
        return victim["ID"] not in {task["ID"] for task in web} and in_step(2)

    eventually("another one is known", replaced)
    for asker in askers:
        answered = {ask(asker, vip)[0] for _ in range(30)}
        assert answered == {task["ID"][:12] for task in lab.running("web")}
