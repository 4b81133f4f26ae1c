"""Who listens in a task's namespace, as the kernel tells: no packet is sent for it."""

from __future__ import annotations

import socket

import pytest

from tests.integration.network.lab import DEADLINE_S, TCP_PORT, UDP_PORT, Lab, Task
from worker.network.listeners import Listener, NamespaceSockets

pytestmark = pytest.mark.root
LATE = ("tcp", 8081)


def _listen(task: Task, address: str, port: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
    def listen() -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        server = socket.socket(family, kind)
        server.bind((address, port))
        if kind == socket.SOCK_STREAM:
            server.listen()
        return server

    return task.inside(listen)


def _listeners(task: Task) -> frozenset[Listener]:
    def look() -> frozenset[Listener]:
        with NamespaceSockets() as sockets:
            return sockets.listeners()

    return task.inside(look)


def test_listeners_are_those_that_packets_from_outside_reach(lab: Lab) -> None:
    task = lab.tasks[0]
    serving = frozenset({("tcp", TCP_PORT), ("udp", UDP_PORT)})
    assert _listeners(task) == serving
    for address, kind, seen in (
        ("127.0.0.1", socket.SOCK_STREAM, frozenset()),
        ("::1", socket.SOCK_STREAM, frozenset()),
        ("::", socket.SOCK_STREAM, frozenset({("tcp", 8081)})),
        (task.address, socket.SOCK_STREAM, frozenset({("tcp", 8081)})),
        ("0.0.0.0", socket.SOCK_DGRAM, frozenset({("udp", 8081)})),
    ):
        with _listen(task, address, 8081, kind):
            assert _listeners(task) == serving | seen, (address, kind)
    assert _listeners(lab.tasks[1]) == serving, "another namespace has its own"


def test_who_waits_for_a_listener_goes_on_when_it_is_there(lab: Lab) -> None:
    task = lab.tasks[0]
    waiting = task.node.submit(
        task.node.network.await_listeners(task.task_id, frozenset({LATE}), DEADLINE_S)
    )
    with pytest.raises(TimeoutError):
        waiting.result(0.2)
    with _listen(task, "0.0.0.0", LATE[1]):
        assert waiting.result(DEADLINE_S) == frozenset()


def test_who_waits_in_vain_is_told_for_what(lab: Lab) -> None:
    task = lab.tasks[0]
    wanted = frozenset({LATE, ("tcp", TCP_PORT)})
    missing = task.node.wait(task.node.network.await_listeners(task.task_id, wanted, 0.05))
    assert missing == {LATE}
