"""Overlay networks over the mesh's lab; what the managers would tell each node, the test tells."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import dns.message
import dns.rdatatype
import msgspec

from tests.integration.network.lab import DEADLINE_S, Lab, Node
from worker.network import netns
from worker.network.keys import PrivateKeys
from worker.network.overlay.api import (
    OverlayEndpoint,
    OverlayLink,
    OverlayNetwork,
    OverlayService,
    OverlayState,
    TaskPlace,
)
from worker.network.overlay.service import OverlayNetworks

T = TypeVar("T")
RED = OverlayNetwork(network_id="red", name="red", vni=4096, subnets=("10.5.0.0/24", "fd05::/64"))
BLUE = OverlayNetwork(network_id="blue", name="blue", vni=4097, subnets=("10.5.0.0/24",))
INNER = OverlayNetwork(
    network_id="inner", name="inner", vni=4098, subnets=("10.6.0.0/24",), internal=True, mtu=1300
)
TCP_PORT = 80
UDP_PORT = 5353


class Member:
    """A task on overlay networks, with servers that say its name."""

    def __init__(self, task_id: str, node: Node, place: TaskPlace) -> None:
        self.task_id = task_id
        self.node = node
        self.place = place
        self.sockets: list[socket.socket] = []

    @property
    def address(self) -> str:
        return self.place.links[0].addresses[0].partition("/")[0]

    @property
    def address6(self) -> str:
        return self.place.links[0].addresses[1].partition("/")[0]

    def inside(self, work: Callable[[], T]) -> T:
        """Run a function in the task's namespace, on the node's thread."""

        def call() -> T:
            with netns.entered(Path(self.place.netns_path)):
                return work()

        return self.node.run(call)

    def shell(self, line: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.inside(
            lambda: subprocess.run(
                line.split(), check=check, capture_output=True, text=True, timeout=DEADLINE_S
            )
        )

    def ask(self, address: str, *, timeout_s: float = 20.0) -> str:
        """Who answers there, over TCP."""

        def call() -> str:
            with socket.create_connection((address, TCP_PORT), timeout=timeout_s) as connection:
                return connection.makefile().readline().strip()

        return self.inside(call)

    def udp(self) -> socket.socket:
        def call() -> socket.socket:
            found = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            found.settimeout(20)
            return found

        return self.inside(call)

    def look_up(self, name: str, kind: str = "A") -> list[str]:
        """What the resolver says; sorted. An unknown name: ["NXDOMAIN"]."""
        query = dns.message.make_query(name, kind)

        def call() -> bytes:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(20)
                sock.connect(("127.0.0.11", 53))
                sock.send(query.to_wire())
                return sock.recv(4096)

        reply = dns.message.from_wire(self.inside(call))
        if reply.rcode():
            return [dns.rcode.to_text(reply.rcode())]
        return sorted(item.to_text() for answer in reply.answer for item in answer)


class World:
    """What the managers know, and the nodes' overlay networks."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.networks = [RED, BLUE, INNER]
        self.services: list[OverlayService] = []
        self.endpoints: list[OverlayEndpoint] = []
        self.members: dict[str, Member] = {}
        self.lost: set[str] = set()
        self.overlays: dict[int, OverlayNetworks] = {}
        self.keys = {
            node.peer.node_id: PrivateKeys().moved_to(0, os.urandom(32)) for node in lab.nodes
        }
        self._servers: list[subprocess.Popen[bytes]] = []

    def open(self, node: Node) -> None:
        self.overlays[node.settings.index] = node.wait(OverlayNetworks.open(node.settings))
        node.wait(self.overlay(node).use_keys(self.keys[node.peer.node_id]))

    def overlay(self, node: Node) -> OverlayNetworks:
        return self.overlays[node.settings.index]

    def close(self, node: Node, *, remove: bool = False) -> None:
        node.wait(self.overlays.pop(node.settings.index).close(remove=remove))

    def state(self, node: Node) -> OverlayState:
        """What this node is told: of the networks that tasks of its own are on."""
        own = {one.network_id for one in self.endpoints if one.node_id == node.peer.node_id}
        return OverlayState(
            networks=tuple(one for one in self.networks if one.network_id in own),
            services=tuple(one for one in self.services if one.network_id in own),
            endpoints=tuple(one for one in self.endpoints if one.network_id in own),
            nodes={peer.node_id: peer.address for peer in self.lab.peers},
            lost=frozenset(self.lost),
            keys={node_id: keys.public for node_id, keys in self.keys.items()},
        )

    def move_keys(self, node: Node, generation: int) -> None:
        """The node makes a key of its own; the others have yet to hear of it."""
        node_id = node.peer.node_id
        self.keys[node_id] = self.keys[node_id].moved_to(generation, os.urandom(32))
        node.wait(self.overlay(node).use_keys(self.keys[node_id]))

    def push(self, *nodes: Node) -> None:
        for node in nodes or self.lab.nodes:
            node.wait(self.overlay(node).apply(self.state(node)))

    def serve(
        self, network: OverlayNetwork, name: str, *vips: str, aliases: tuple[str, ...] = ()
    ) -> None:
        self.services.append(
            OverlayService(
                network_id=network.network_id,
                service_id=f"s-{name}",
                name=name,
                virtual_ips=vips,
                aliases=aliases,
            )
        )

    def start(
        self,
        node: Node,
        task_id: str,
        network: OverlayNetwork,
        *addresses: str,
        service: str = "",
        ready: bool = True,
        publishes: bool = False,
    ) -> Member:
        """A task comes: announced, attached, and ready once it serves."""
        endpoint = OverlayEndpoint(
            network_id=network.network_id,
            task_id=task_id,
            service_id=f"s-{service}" if service else "",
            node_id=node.peer.node_id,
            addresses=tuple(address.partition("/")[0] for address in addresses),
            names=(f"{service or 'c'}.{task_id}",),
        )
        self.endpoints.append(endpoint)
        self.push()
        attachment = node.wait(node.network.attach(task_id))
        link = OverlayLink(network_id=network.network_id, interface="eth1", addresses=addresses)
        place = TaskPlace(
            task_id=task_id,
            netns_path=attachment.netns_path,
            uplink="eth0",
            links=(link,),
            publishes=publishes,
        )
        node.wait(self.overlay(node).attach(place))
        member = self.members[task_id] = Member(task_id, node, place)
        self._serve(member)
        if ready:
            self.set_ready(task_id, True)
        return member

    def set_ready(self, task_id: str, ready: bool) -> None:
        self.endpoints = [
            msgspec.structs.replace(one, ready=ready) if one.task_id == task_id else one
            for one in self.endpoints
        ]
        self.push()

    def stop(self, task_id: str) -> None:
        """A task goes, in the order of the managers and the agent."""
        self.set_ready(task_id, False)
        member = self.members.pop(task_id)
        for sock in member.sockets:
            sock.close()
        self._stop_serving(member)
        member.node.wait(self.overlay(member.node).detach(task_id))
        member.node.wait(member.node.network.detach(task_id))
        self.endpoints = [one for one in self.endpoints if one.task_id != task_id]
        self.push()

    def end(self) -> None:
        for server in self._servers:
            server.kill()
            server.wait()
        self._servers.clear()

    def _serve(self, member: Member) -> None:
        """A process of its own, in the task's namespace, for both families."""
        program = Path(__file__).with_name("name_server.py")
        ready, told = os.pipe()
        server = member.inside(
            lambda: subprocess.Popen(
                ["/usr/bin/env", "python3", str(program), member.task_id, str(told)],
                pass_fds=[told],
            )
        )
        os.close(told)
        with os.fdopen(ready, "rb") as pipe:
            assert pipe.read(1) == b"."
        server.member = member.task_id  # type: ignore[attr-defined]
        self._servers.append(server)

    def _stop_serving(self, member: Member) -> None:
        for server in [one for one in self._servers if one.member == member.task_id]:  # type: ignore[attr-defined]
            server.kill()
            server.wait()
            self._servers.remove(server)


@contextlib.contextmanager
def running_world(directory: Path) -> Iterator[World]:
    lab = Lab(directory)
    world = World(lab)
    try:
        lab.open()
        for node in lab.nodes:
            world.open(node)
        yield world
    finally:
        world.end()
        for node in lab.nodes:
            if node.settings.index in world.overlays:
                world.close(node, remove=True)
        lab.close()
