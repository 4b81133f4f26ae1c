"""A worker killed in the middle of things: flows go on, and the next mends only what is ours."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shoal.api.v1 import dispatcher_pb2 as pb
from shoal.model.enums import TaskState as S
from tests.integration.worker.place import DEADLINE_S, Place, a_task, task_id
from tests.integration.worker.test_overlay import SELF
from worker.network import netns

pytestmark = pytest.mark.root

ECHO = "trap 'exit 0' TERM; nc -ll -p 80 -e cat & wait"
NODE, CLIENT = "192.0.2.1", "192.0.2.2"
PEER = pb.PeerNode(node_id="p" * 25, index=2, address="198.51.100.2", subnet="10.241.4.0/22")
FOREIGN = """
table inet mine {
  set known { type ipv4_addr; elements = { 192.0.2.77 } }
  chain arriving { type filter hook input priority filter; policy accept; ip saddr @known drop; }
}
"""


class Flow:
    """A connection that says something all the time and wants to hear it back; `with` it."""

    def __init__(self, space: Path, address: str, port: int) -> None:
        with netns.entered(space):
            self._sock = socket.create_connection((address, port), timeout=DEADLINE_S)
        self.rounds = 0
        self.error: Exception | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._talk)

    def __enter__(self) -> Flow:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join(DEADLINE_S)
        self._sock.close()

    def _talk(self) -> None:
        answers = self._sock.makefile("rb")
        try:
            while not self._done.wait(0.01):
                line = f"{self.rounds}\n".encode()
                self._sock.sendall(line)
                assert answers.readline() == line
                self.rounds += 1
        except (OSError, AssertionError) as error:
            self.error = error


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Path]:
    """A network namespace without anything."""
    path = tmp_path / "client"
    with netns.fresh(path):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=DEADLINE_S)
    yield path
    netns.drop(path)


def on(place: Place, *lines: str, text: str | None = None) -> str:
    return "".join(
        subprocess.run(
            place.inside(*line.split()), input=text, stdout=subprocess.PIPE, text=True, check=True,
            timeout=DEADLINE_S,
        ).stdout
        for line in lines
    )  # fmt: skip


def ours(place: Place) -> list[Any]:
    """Our table as nft shows it, handles included: a rule that was loaded anew has another one."""
    found = json.loads(on(place, "nft -a -j list table inet shoal"))["nftables"]
    for item in (one for entry in found for one in entry.values() if "elem" in one):
        item["elem"] = sorted(json.dumps(element) for element in item["elem"])
    return [one for one in found if one.get("set", {}).get("name") != "resting"]


def of_the_kernel(place: Place) -> set[str]:
    """Routes, rules, neighbours and forwarding entries, of whomever but the kernel itself."""
    shown = on(
        place, "ip route show table all", "ip rule", "ip neigh show dev vxi nud permanent",
        "bridge fdb show dev vxi", "nft list table inet mine",
    )  # fmt: skip
    lines = (line.strip() for line in shown.splitlines())
    return {line for line in lines if "proto kernel" not in line}


async def test_a_killed_worker_s_leftovers_are_mended_and_everything_else_stays(
    place: Place, client: Path
) -> None:
    on(place, f"ip link add w0 type veth peer name eth0 netns {client}")
    on(place, f"ip addr add {NODE}/24 dev w0", "ip link set w0 up")
    inside = ["nsenter", f"--net={client}"]
    for line in (f"ip addr add {CLIENT}/24 dev eth0", "ip link set eth0 up"):
        subprocess.run([*inside, *line.split()], check=True, timeout=DEADLINE_S)
    on(place, "nft -f -", text=FOREIGN)
    on(place, "ip route add 203.0.113.0/24 dev w0 table 77")
    on(place, "ip rule add pref 150 fwmark 0x5 lookup 77")

    async def tell(version: int) -> None:
        port = pb.PublishedPort(
            published_port=8080, target_port=80, service_id="service1", addresses=[address]
        )
        place.manager.stream.send(task, peers=[SELF, PEER], ports=[port], version=version)
        await place.until(lambda: (version, {}) in place.manager.acknowledged)

    task = a_task(1, ECHO)
    place.manager.stream.send(task)
    address = (await place.reach(1, S.RUNNING)).address
    await tell(2)
    rules, kernel = ours(place), of_the_kernel(place)

    with Flow(client, NODE, 8080) as flow:
        await place.until(lambda: flow.rounds > 10)
        place.kill_worker()
        # Half of a peer that went while the worker died, half of a port, a slot that is missing.
        on(place, "ip route add 10.241.8.0/22 via 10.241.8.1 dev vxi onlink proto 83")
        on(place, "ip rule add pref 100 fwmark 0x300000/0xfff00000 lookup 1003 protocol 83")
        on(place, "ip neigh add 10.241.8.1 lladdr 02:fe:0a:f1:08:01 dev vxi nud permanent")
        on(place, "bridge fdb add 02:fe:0a:f1:08:01 dev vxi dst 198.51.100.3 self permanent")
        on(place, "nft add element inet shoal nodes { 198.51.100.3 }")
        on(place, "nft add element inet shoal pub { tcp . 9999 }")
        stray = f"tcp . 9999 . 3 : {address} . 80"
        on(place, "nft -f -", text=f"add element inet shoal slots {{ {stray} }}")
        on(place, "nft delete element inet shoal slots { tcp . 8080 . 7 }")
        with netns.fresh(place.paths.run / "netns" / task_id(9)):
            pass
        seen = flow.rounds
        await place.until(lambda: flow.rounds > seen + 10)

        await place.start_worker()
        await tell(3)
        await place.until(lambda: place.namespaces() == [task_id(1)])
        assert ours(place) == rules
        assert of_the_kernel(place) ^ kernel == set()
        seen = flow.rounds
        await place.until(lambda: flow.rounds > seen + 10)
        assert flow.error is None
