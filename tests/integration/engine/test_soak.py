"""Create, start, exec, remove, over and over: nothing grows. SHOAL_SOAK_ROUNDS for a long run."""

from __future__ import annotations

import json
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.integration.engine.daemon import EngineNode
from tests.integration.engine.seeded import UnixConnection, seeded_node, until

pytestmark = [pytest.mark.root, pytest.mark.timeout(7200)]
MAKE_NODE = seeded_node

ROUNDS = int(os.environ.get("SHOAL_SOAK_ROUNDS", "40"))
WARM_UP = 20
GROWTH_KIB_MAX = 8 << 10
"""Of all the node's processes, in the second half: by then what they remember of the past (events,
processes that ended) is as much as it ever is, and the interpreters have their arenas."""
PASSING_DESCRIPTORS = 4
"""What threads of the pool and closing pipes hold for a moment, whatever the number of rounds."""


class Holdings(msgspec.Struct):
    """What the node holds. descriptors, memory_kib: of its worker, keeper, supervisor, logger."""

    descriptors: int
    memory_kib: int
    processes: int
    mounts: int
    groups: int
    directories: int


class Client:
    """The API over one connection, which the server keeps."""

    def __init__(self, node: EngineNode) -> None:
        self._connection = UnixConnection(str(node.socket))

    def ask(self, method: str, path: str, body: Any = None, expected: int = 200) -> Any:
        content = None if body is None else json.dumps(body)
        self._connection.request(method, path, content, {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        data = answer.read()
        assert answer.status == expected, (method, path, answer.status, data)
        if answer.will_close:
            self._connection.close()
        return json.loads(data) if data else None

    def close(self) -> None:
        self._connection.close()


def one_round(client: Client) -> None:
    """A container's whole life, with a process more in it."""
    wish = {
        "Image": "busybox", "Cmd": ["sleep", "1000"], "StopSignal": "SIGKILL",
        "HostConfig": {"NetworkMode": "none", "Init": False},
    }  # fmt: skip
    container = client.ask("POST", "/containers/create", wish, 201)["Id"]
    client.ask("POST", f"/containers/{container}/start", expected=204)
    run = client.ask("POST", f"/containers/{container}/exec", {"Cmd": ["true"]}, 201)["Id"]
    client.ask("POST", f"/exec/{run}/start", {"Detach": True})
    client.ask("DELETE", f"/containers/{container}?force=1", expected=204)


def held(node: EngineNode) -> Holdings:
    """Counted now."""
    mine = str(node.base)
    pids = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _is_of(pid, mine)]
    groups = Path("/sys/fs/cgroup").glob(f"*{node.cgroup_parent}/**/")
    places = (node.state / "engine" / "containers", node.state / "worker" / "containers")
    return Holdings(
        descriptors=sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids),
        memory_kib=sum(_memory_kib(pid) for pid in pids),
        processes=len(pids),
        mounts=Path("/proc/self/mountinfo").read_text().count(mine),
        groups=sum(1 for _ in groups),
        directories=sum(len(list(place.iterdir())) for place in places if place.exists()),
    )


def _is_of(pid: int, base: str) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return False
    return base in words and pid != os.getpid()


def _memory_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def test_a_thousand_lives_leave_nothing(node):
    with closing(Client(node)) as client:
        for _ in range(WARM_UP):
            one_round(client)
        before = settled(node)
        for _ in range(ROUNDS // 2):
            one_round(client)
        midway = settled(node)
        for _ in range(ROUNDS // 2):
            one_round(client)
        after = settled(node)
    print(f"{ROUNDS} rounds: {before} -> {midway} -> {after}")
    assert after.memory_kib - midway.memory_kib < GROWTH_KIB_MAX
    assert after.descriptors - before.descriptors <= PASSING_DESCRIPTORS
    after.memory_kib, after.descriptors = before.memory_kib, before.descriptors
    assert after == before


def settled(node: EngineNode) -> Holdings:
    """Once what is put away behind the answers has gone."""
    until(lambda: held(node).directories == 0)
    last = held(node)

    def is_steady() -> bool:
        nonlocal last
        before, last = last, held(node)
        return last.descriptors == before.descriptors and last.groups == before.groups

    until(is_steady)
    return last
