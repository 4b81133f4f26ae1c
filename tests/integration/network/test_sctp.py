"""Published ports of SCTP, where the kernel has it; elsewhere they are refused, saying why.

python -m tests.vm .venv/bin/python -m pytest tests/integration/network/test_sctp.py
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import msgspec
import pytest

from tests.integration.network.lab import CLIENT, CLIENT6, DEADLINE_S, Lab, Machine, Task, tcp
from worker.network.api import PublishedPort
from worker.network.ports import why_no_sctp
from worker.network.twins import twin

pytestmark = pytest.mark.root
MISSING = why_no_sctp()
needs_sctp = pytest.mark.skipif(bool(MISSING), reason=MISSING)
EMPTY = 8099


class Server:
    """Tells each client the task's name and whom it sees, over one family, until it is closed."""

    def __init__(self, task: Task, family: socket.AddressFamily) -> None:
        self._task = task
        self._socket = task.inside(lambda: _listening(family))
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join(DEADLINE_S)
        self._socket.close()

    def _serve(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                connection, peer = self._socket.accept()
                with connection:
                    connection.sendall(f"{self._task.task_id} {peer[0]}".encode())


def _stream(family: socket.AddressFamily) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_SCTP)
    made.settimeout(DEADLINE_S)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return made


def _listening(family: socket.AddressFamily) -> socket.socket:
    made = _stream(family)
    made.settimeout(0.2)
    made.bind(("", 80))
    made.listen(16)
    return made


def _ask(machine: Machine, address: str, port: int, *, source: str = "") -> tuple[str, str]:
    """source: SCTP tells the other side all addresses there are, unless one is bound."""

    def call() -> tuple[str, str]:
        with _stream(socket.AF_INET6 if ":" in address else socket.AF_INET) as sock:
            sock.bind((source, 0))
            sock.connect((address, port))
            task, client = sock.recv(1000).decode().split()
            return task, client

    return machine.run(call)


def _sctp(published: int, tasks: list[Task]) -> PublishedPort:
    return msgspec.structs.replace(tcp(published, tasks), protocol="sctp")


@pytest.fixture(scope="module")
def served(lab: Lab) -> Iterator[Lab]:
    servers = [
        Server(task, family) for task in lab.tasks for family in (socket.AF_INET, socket.AF_INET6)
    ]
    lab.publish(_sctp(8080, lab.tasks), _sctp(8081, lab.tasks[4:]), _sctp(EMPTY, []))
    try:
        yield lab
    finally:
        for server in servers:
            server.close()


@pytest.mark.skipif(not MISSING, reason="this kernel has SCTP")
def test_where_the_kernel_has_none_a_port_is_refused_and_the_others_are_served(lab: Lab) -> None:
    node = lab.nodes[0]
    report = node.set_ports(_sctp(8080, lab.tasks), tcp(8080, lab.tasks))
    assert report.errors == {("sctp", 8080): f"port 8080/sctp: {MISSING}"}
    assert "modprobe sctp" in MISSING or "CONFIG_NF_CT_PROTO_SCTP" in MISSING


@needs_sctp
def test_every_node_reaches_every_task_and_keeps_the_client_address(served: Lab) -> None:
    for node in served.nodes:
        for address, own in ((node.address, CLIENT), (node.address6, CLIENT6)):
            answers = {_ask(served.client, address, 8080) for _ in range(40)}
            assert {client for _, client in answers} == {own}
            assert len(answers) >= 4
            assert _ask(served.client, address, 8081) == ("task4", own)


@needs_sctp
def test_nodes_and_tasks_are_clients(served: Lab) -> None:
    first, second, _third = served.nodes
    for address in ("127.0.0.1", "::1", first.address, first.address6):
        assert _ask(first, address, 8081, source=address)[0] == "task4"
    for address, source in ((second.address, first.address), (second.address6, first.address6)):
        answers = {_ask(first, address, 8080, source=source)[0] for _ in range(40)}
        assert len(answers) >= 4
    own = served.tasks[0]
    served.nodes[0].set_ports(_sctp(8082, [own]), _sctp(8080, served.tasks))
    for gateway in (own.attachment.gateway, twin(own.attachment.gateway)):

        def call(address: str = gateway) -> bytes:
            with _stream(socket.AF_INET6 if ":" in address else socket.AF_INET) as sock:
                sock.connect((address, 8082))
                return sock.recv(1000)

        assert own.inside(call) == f"{own.task_id} {gateway}".encode()
    served.publish(_sctp(8080, served.tasks), _sctp(8081, served.tasks[4:]), _sctp(EMPTY, []))


@needs_sctp
def test_a_port_without_a_task_is_refused_and_belongs_to_nobody_else(served: Lab) -> None:
    node = served.nodes[0]
    for machine, address in (
        (served.client, node.address), (served.client, node.address6), (node, "127.0.0.1"),
        (node, "::1"),
    ):  # fmt: skip
        with pytest.raises(ConnectionRefusedError):
            _ask(machine, address, EMPTY)

    def take() -> None:
        with _stream(socket.AF_INET) as sock:
            sock.bind(("0.0.0.0", EMPTY))

    with pytest.raises(OSError, match="in use"):
        node.run(take)
