"""Encrypted networks of a real cluster: where the kernel has WireGuard, and where it has not."""

from __future__ import annotations

import contextlib
import json
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cluster import lab as lab_module
from tests.integration.cluster.lab import Lab
from tests.integration.cluster.test_overlay import addresses, ask, look_up
from tests.support.patience import FACTOR
from worker.network import netns, wireguard

MISSING = wireguard.missing()
ASKED = b"GET /cgi-bin/who"
SEALED = (7790, 7791)
pytestmark = [pytest.mark.root, pytest.mark.timeout(300 * FACTOR)]


def eventually(what: str, probe: Any) -> Any:
    return lab_module.eventually(what, probe, deadline_s=lab_module.DEADLINE_S * FACTOR)


@pytest.fixture
def sealed(lab: Lab) -> Iterator[str]:
    lab.swarmctl("network", "create", "--opt", "encrypted", "sealed")
    yield "sealed"
    for name in ("vault", "asking"):
        lab.swarmctl("service", "rm", name, check=False)
    eventually(
        "the network is removed",
        lambda: lab.run("network", "rm", "sealed", check=False).returncode == 0,
    )


class Capture:
    """What passes the switch between the nodes while the context lasts."""

    def __init__(self, lab: Lab) -> None:
        self._path = Path(f"/run/netns/shoal-{lab.name}-switch")
        self.frames: list[bytes] = []

    def __enter__(self) -> Capture:
        with netns.entered(self._path):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        return self

    def __exit__(self, *_: object) -> None:
        with self._socket, contextlib.suppress(BlockingIOError):
            while True:
                self.frames.append(self._socket.recv(65536, socket.MSG_DONTWAIT))

    def sealed(self) -> int:
        """Datagrams over IPv4 to WireGuard's ports."""
        return sum(
            frame[12:14] == b"\x08\x00"
            and frame[23] == socket.IPPROTO_UDP
            and int.from_bytes(frame[36:38], "big") in SEALED
            for frame in self.frames
        )


class Asking:
    """Asks a service by its virtual address, again and again, until the context ends."""

    def __init__(self, task: dict[str, Any], address: str) -> None:
        self._task, self._address = task, address
        self.answers, self.failures = 0, list[str]()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(0.1):
            try:
                ask(self._task, self._address)
                self.answers += 1
            except OSError as error:
                self.failures.append(str(error))


def _keys(lab: Lab) -> dict[str, list[int]]:
    """The generations of each node's private keys, which only its owner may read."""
    found = {}
    for path in (lab.base / "lab" / lab.name).glob("*/state/worker/wireguard.json"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        found[path.parts[-4]] = sorted(map(int, json.loads(path.read_text())["keys"]))
    return found


def _generation(lab: Lab) -> int:
    shown: int = json.loads(lab.swarmctl("cluster", "inspect"))[0]["NetworkKeyGeneration"]
    return shown


@pytest.mark.skipif(bool(MISSING), reason=MISSING)
def test_services_speak_in_secret_and_go_on_while_keys_change(lab: Lab, sealed: str) -> None:
    for name in ("vault", "asking"):
        lab.swarmctl(
            "service", "create", "--detach", "--name", name, "--replicas", "3",
            "--network", sealed, "web:1",
        )  # fmt: skip
    askers = eventually("one on each node", lambda: len(r := lab.running("asking")) == 3 and r)
    vault = eventually("the servers run", lambda: len(r := lab.running("vault")) == 3 and r)
    assert len({task["NodeID"] for task in (*askers, *vault)}) == 3
    for asker in askers:
        eventually(
            "the tasks are known",
            lambda asker=asker: look_up(asker, "tasks.vault") == addresses(vault),
        )
        (vip,) = look_up(asker, "vault")
        with Capture(lab) as seen:
            hosts = {ask(asker, vip)[0] for _ in range(30)}
        assert hosts == {task["ID"][:12] for task in vault}
        assert not any(ASKED in frame for frame in seen.frames)
        assert seen.sealed() >= 30

    before = _generation(lab)
    lab.swarmctl("cluster", "update", "--network-key-rotation", "1m")
    try:
        with Asking(askers[0], vip) as asking:
            eventually("new keys are asked for", lambda: _generation(lab) > before)
            now = _generation(lab)
            eventually(
                "every node has one",
                lambda: len(keys := _keys(lab)) == 3 and all(now in one for one in keys.values()),
            )
            answers = asking.answers
            eventually("it goes on", lambda: asking.answers > answers + 50)
    finally:
        lab.swarmctl("cluster", "update", "--network-key-rotation", "12h")
    print(f"keys {before} to {now}: {asking.answers} answers, {len(asking.failures)} failures")
    assert not asking.failures

    lab.swarmctl("service", "rm", "vault", "asking")
    eventually(
        "no node has tunnels left",
        lambda: not list((lab.base / "lab" / lab.name).glob("*/run/overlay/wireguard")),
    )


@pytest.mark.skipif(not MISSING, reason="this kernel has WireGuard")
def test_without_wireguard_nothing_is_placed_and_the_task_says_why(lab: Lab, sealed: str) -> None:
    lab.swarmctl("service", "create", "--detach", "--name", "vault", "--network", sealed, "web:1")
    reason = "no WireGuard (CONFIG_WIREGUARD) for encrypted networks on 3 nodes"
    (task,) = eventually(
        "it says why",
        lambda: [t for t in lab.tasks("vault") if reason in t["Status"].get("Err", "")],
    )
    assert task["Status"]["State"] == "pending"
    assert not task.get("NodeID")
    assert reason in lab.swarmctl("service", "ps", "vault", "--no-trunc")
    (shown,) = json.loads(lab.swarmctl("network", "inspect", sealed))
    assert shown["Options"]["encrypted"] == ""
    doctor = lab.swarmctl("node", "doctor", "--format", "{{.State}} {{.What}}", check=False)
    assert f"warning {MISSING}" in doctor
    assert not _keys(lab)
