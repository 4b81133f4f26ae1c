"""A short form of `make test-zero-loss`, and a proof that the suite would see a loss."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading

import msgspec
import pytest

from tests.support.ports import free_port
from tests.zeroloss.client import Count
from tests.zeroloss.image import find_compiler

TIMEOUT_S = 200
CLEAN_UP_S = 60


@pytest.mark.root
@pytest.mark.timeout(300)
@pytest.mark.skipif(not find_compiler(), reason="the server needs a C compiler: tcc, libc6-dev")
def test_nothing_is_lost_while_a_service_is_changed() -> None:
    command = [
        sys.executable, "-m", "tests.zeroloss", "--requests", "2000", "--scalings", "2",
        "--rolls", "1", "--users", "2", "--pause", "0.01", "--wrk", "0",
        "--heartbeat", "5s", "--no-kill",
        "--failovers", "1",
    ]  # fmt: skip
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as suite:
        try:
            printed, complaint = suite.communicate(timeout=TIMEOUT_S)
        except BaseException:
            suite.terminate()  # it takes its lab down
            suite.wait(CLEAN_UP_S)
            raise
    assert suite.returncode == 0, printed + complaint
    counted = re.fullmatch(r"requests (\d+), failures 0", printed.splitlines()[-1])
    assert counted is not None, printed
    assert int(counted[1]) >= 2000, printed


def test_the_client_counts_what_is_cut_off_wrong_refused_and_right() -> None:
    port = free_port()
    server = threading.Thread(target=_serve_badly, args=(port,), daemon=True)
    server.start()
    command = [
        sys.executable, "-m", "tests.zeroloss.client", "127.0.0.1", str(port),
        "--users", "1", "--pause", "0.01",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "ready\n"
        server.join(CLEAN_UP_S)  # from then on the port refuses
        threading.Event().wait(0.5)
        client.send_signal(signal.SIGTERM)
        said, _ = client.communicate(timeout=CLEAN_UP_S)
    count = msgspec.json.decode(said, type=Count)
    kinds = {failure.kind.partition(":")[0] for failure in count.failures}
    assert {"EOFError", "BadAnswer", "ConnectionRefusedError"} <= kinds, count
    assert count.failed == len(count.failures)
    assert count.answered >= 1
    assert set(count.tasks) == {"right"}


def _serve_badly(port: int) -> None:
    """Answer 12 connections: one closes, one answers another question, one is right, and so on."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.settimeout(CLEAN_UP_S)
        for turn in range(12):
            connection, _ = listener.accept()
            with connection:
                path = connection.recv(4096).split()[1].decode()
                body = {0: "", 1: "/0 wrong\n", 2: f"{path} right\n"}[turn % 3]
                if body:
                    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n"
                    connection.sendall(f"{head}Connection: close\r\n\r\n{body}".encode())
