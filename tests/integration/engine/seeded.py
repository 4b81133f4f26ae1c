"""A node with an image to run, and what tests of containers ask of it."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import os
import socket
import subprocess
import tarfile
import time
from collections.abc import Callable
from typing import Any

from tests.integration.engine.daemon import DEADLINE_S, EngineNode
from worker.images.store import ImageStore

BUSYBOX = "/bin/busybox"
_DIRECTORIES = ("bin", "etc", "tmp", "root", "proc", "sys", "dev", "var")


def seeded_node(*more: str, isolated: bool = True) -> EngineNode:
    """A node that has `busybox`, not started yet. isolated: in a network of its own."""
    node = EngineNode(*more)
    try:
        if isolated:
            node.isolate()
        seed(node)
    except BaseException:
        node.close()
        raise
    return node


def seed(node: EngineNode) -> None:
    """Give a node the image `busybox`."""
    asyncio.run(_seed(node))


async def _seed(node: EngineNode) -> None:
    archive = node.base / "busybox.tar"
    with tarfile.open(archive, "w") as tar:
        for name in _DIRECTORIES:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        tar.add(BUSYBOX, "bin/busybox")
        applets = subprocess.run([BUSYBOX, "--list"], check=True, capture_output=True, text=True)
        for name in applets.stdout.split():
            entry = tarfile.TarInfo(f"bin/{name}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            if name != "busybox":
                tar.addfile(entry)
        _add(tar, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    store = await ImageStore.open(node.state / "images")
    await store.import_rootfs(archive, "busybox", changes=['CMD ["sh"]', "ENV FROM=image"])
    await store.aclose()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("docker", timeout=DEADLINE_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(DEADLINE_S)
        self.sock.connect(self._path)


def ask(node: EngineNode, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """One exchange: status, and the JSON of the answer if it has any."""
    connection = UnixConnection(str(node.socket))
    try:
        content = None if body is None else json.dumps(body)
        headers = {} if body is None else {"Content-Type": "application/json"}
        connection.request(method, path, content, headers)
        answer = connection.getresponse()
        data = answer.read()
    finally:
        connection.close()
    return answer.status, json.loads(data) if data else None


def ok(node: EngineNode, *arguments: str) -> str:
    """The output of a docker command that must succeed."""
    ran = node.docker(*arguments)
    assert ran.code == 0, (arguments, ran)
    return ran.out.strip()


def refused(node: EngineNode, *arguments: str) -> str:
    """What the daemon says to a docker command that must fail."""
    ran = node.docker(*arguments)
    assert ran.code != 0, (arguments, ran)
    _, _, text = ran.err.partition("Error response from daemon: ")
    return text.split("\n")[0]


def until(holds: Callable[[], object]) -> None:
    """Wait until something holds."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline_s, "it does not come to hold"
        time.sleep(0.02)


def state_of(node: EngineNode, container: str) -> dict[str, Any]:
    """`State` of an inspection."""
    status, words = ask(node, "GET", f"/containers/{container}/json")
    assert status == 200, words
    found: dict[str, Any] = words["State"]
    return found


def remains(node: EngineNode) -> list[str]:
    """What is left of containers when there are none: records, directories."""
    places = (node.state / "engine" / "containers", node.state / "worker" / "containers")
    return [str(path) for place in places if place.exists() for path in place.iterdir()]


def end_process(pid: int) -> None:
    """SIGKILL to a process of a container."""
    os.kill(pid, 9)
