"""`kill -9` of the process in the middle of every change: afterwards all is consistent again.

Each change is made while the process is killed after a pause, chosen so that the kills fall before,
into and after it. Then the process is started again: every container that is shown can be looked
at, started, stopped and removed; what is not shown has left nothing.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import pytest

from tests.integration.engine.daemon import EngineNode
from tests.integration.engine.seeded import ask, ok, remains, seeded_node, state_of, until
from worker.runtime.lean import cgroups

pytestmark = pytest.mark.root
MAKE_NODE = seeded_node
NONE = ("--network", "none")
ROUNDS = int(os.environ.get("SHOAL_KILL_ROUNDS", "3"))
PAUSES_S = [0.03 * number / max(1, ROUNDS - 1) for number in range(ROUNDS)]


def kill_while(node: EngineNode, change: Callable[[], object], pause_s: float) -> None:
    """Begin a change, kill the process after a pause, start it again."""

    def attempt() -> None:
        try:
            change()
        except OSError:
            return  # the process was gone before it answered

    client = threading.Thread(target=attempt)
    client.start()
    time.sleep(pause_s)
    node.stop(signal.SIGKILL)
    client.join()
    node.socket.unlink(missing_ok=True)
    node.start()


def check_usable(node: EngineNode) -> None:
    """Every container that is shown works."""
    for container in ask(node, "GET", "/containers/json?all=1")[1]:
        name = container["Names"][0][1:]
        until(lambda name=name: state_of(node, name)["Status"] in {"created", "running", "exited"})
        status, answer = ask(node, "POST", f"/containers/{name}/start")
        assert status in {204, 304}, answer
        until(lambda name=name: state_of(node, name)["Running"])
        assert ask(node, "POST", f"/containers/{name}/stop?t=0")[0] == 204
        assert state_of(node, name)["ExitCode"] == 137


def check_nothing_left(node: EngineNode) -> None:
    for container in ok(node, "ps", "-aq").split():
        ok(node, "rm", "-f", container)
    until(lambda: not remains(node))
    until(lambda: not _cgroups(node))


def _cgroups(node: EngineNode) -> list[str]:
    with open("/proc/self/mountinfo") as file:
        driver = cgroups.find_driver(node.cgroup_parent, file.read())
    return [
        name
        for path in driver.paths("")
        if os.path.isdir(path)
        for name in os.listdir(path)
        if os.path.isdir(path + name)
    ]


BODY = {"Image": "busybox", "Cmd": ["sleep", "600"], "HostConfig": {"NetworkMode": "none"}}


def create(node: EngineNode) -> None:
    ask(node, "POST", "/containers/create?name=web", BODY)


def start(node: EngineNode) -> None:
    ask(node, "POST", "/containers/web/start")


def stop(node: EngineNode) -> None:
    ask(node, "POST", "/containers/web/stop?t=0")


def remove(node: EngineNode) -> None:
    ask(node, "DELETE", "/containers/web?force=1")


@pytest.mark.parametrize(
    ("before", "change"),
    [
        pytest.param((), create, id="create"),
        pytest.param((create,), start, id="start"),
        pytest.param((create, start), stop, id="stop"),
        pytest.param((create, start), remove, id="rm"),
    ],
)
def test_killed_in_the_middle(node: EngineNode, before, change):
    ok(node, "run", "-d", "--name", "bystander", *NONE, "busybox", "sleep", "600")
    pid = state_of(node, "bystander")["Pid"]
    for pause_s in PAUSES_S:
        for step in before:
            step(node)
        kill_while(node, lambda: change(node), pause_s)
        names = {one["Names"][0] for one in ask(node, "GET", "/containers/json?all=1")[1]}
        assert names <= {"/web", "/bystander"}
        if change is not remove and change is not create:
            assert "/web" in names
        assert state_of(node, "bystander")["Pid"] == pid
        ok(node, "rename", "bystander", "other")
        ok(node, "rename", "other", "bystander")
        if "/web" in names and ask(node, "GET", "/containers/web/json")[0] == 200:
            check_one(node, "web")
            assert ask(node, "DELETE", "/containers/web?force=1")[0] in {204, 404, 409}
        until(lambda: ask(node, "GET", "/containers/web/json")[0] == 404)
        assert len(remains(node)) == 2, remains(node)
    check_usable(node)
    check_nothing_left(node)


def check_one(node: EngineNode, name: str) -> None:
    """It can be started and stopped, unless it is being removed."""
    status, words = ask(node, "POST", f"/containers/{name}/start")
    if status in {404, 409}:  # its removal goes on
        return
    assert status in {204, 304}, words
    assert ask(node, "POST", f"/containers/{name}/stop?t=0")[0] in {204, 304}
    assert state_of(node, name)["Status"] == "exited"
