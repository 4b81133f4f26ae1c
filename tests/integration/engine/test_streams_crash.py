"""`kill -9` of the process that serves streams, files and commits, in the middle of each."""

from __future__ import annotations

import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.engine.daemon import DEADLINE_S, EngineNode
from tests.integration.engine.seeded import (
    UnixConnection,
    ask,
    ok,
    remains,
    seeded_node,
    state_of,
    until,
)
from tests.integration.engine.test_archive import child_of
from tests.integration.engine.test_streams import NONE, Terminal, command, docker

pytestmark = pytest.mark.root
MAKE_NODE = seeded_node


@pytest.fixture(autouse=True)
def nothing_left(node: EngineNode) -> Iterator[None]:
    yield
    found = ok(node, "ps", "-aq").split()
    if found:
        ok(node, "rm", "-f", *found)
    until(lambda: not remains(node))


def crash(node: EngineNode) -> None:
    node.stop(signal.SIGKILL)
    node.socket.unlink()
    node.start()


def test_execs_and_terminals_go_on(node: EngineNode):
    ok(node, "run", "-dit", "--name", "shell", *NONE, "busybox", "sh")
    pid = state_of(node, "shell")["Pid"]
    ok(node, "exec", "-d", "shell", "sleep", "601")
    attached = subprocess.Popen(command(node, "exec", "shell", "sleep", "602"))
    until(lambda: {"sleep 601", "sleep 602"} <= running(node))
    crash(node)
    assert attached.wait(DEADLINE_S) != 0
    assert state_of(node, "shell")["Pid"] == pid
    assert {"sleep 601", "sleep 602"} <= running(node)
    again = Terminal(node, "attach", "shell")
    again.see("# ")
    again.type("echo st''ill here\r")
    again.see("still here")
    again.type("\x10\x11")
    again.end()
    assert docker(node, "exec", "-i", "shell", "cat", given="x") == (0, "x", "")
    ok(node, "kill", "shell")
    assert not Path(f"/proc/{pid}").exists()


def running(node: EngineNode) -> set[str]:
    processes = ask(node, "GET", "/containers/shell/top?ps_args=-o+pid,args")[1]["Processes"]
    return {row[1] for row in processes}


def test_a_copy_dies_with_it(node: EngineNode):
    ok(node, "create", "--name", "rests", *NONE, "busybox", "true")
    slow = UnixConnection(str(node.socket))
    try:
        slow.putrequest("PUT", "/containers/rests/archive?path=/tmp")
        slow.putheader("Transfer-Encoding", "chunked")
        slow.endheaders()
        head = tarfile.TarInfo("f").tobuf()
        slow.send(f"{len(head):x}\r\n".encode() + head + b"\r\n")
        child = child_of(node)
        crash(node)
    finally:
        slow.close()
    until(lambda: not Path(f"/proc/{child}").exists())
    assert docker(node, "start", "-a", "rests").code == 0


@pytest.mark.parametrize("delay_s", [0.05, 0.25])
def test_a_commit_leaves_its_container_running(node: EngineNode, delay_s: float):
    ok(node, "run", "-d", "--name", "source", *NONE, "busybox", "sleep", "600")
    pid = state_of(node, "source")["Pid"]
    commit = subprocess.Popen(
        command(node, "commit", "source", f"cut:{int(delay_s * 100)}"),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    time.sleep(delay_s)
    crash(node)
    commit.wait(DEADLINE_S)
    until(lambda: state_of(node, "source")["Status"] == "running")
    assert state_of(node, "source")["Pid"] == pid
    assert not list((node.state / "engine" / "committing").iterdir())
    assert not [p for p in (node.state / "images/content/ingest").iterdir() if p.name != "trash"]
    assert ok(node, "commit", "source", "whole").startswith("sha256:")


def test_what_was_paused_for_a_commit_is_let_go(node: EngineNode):
    """Killed between pausing and letting go; a note may also have outlived its container."""
    identifier = ok(node, "run", "-d", "--name", "source", *NONE, "busybox", "sleep", "600")
    ok(node, "pause", "source")
    notes = node.state / "engine" / "committing"
    (notes / identifier).touch()
    (notes / ("0" * 64)).touch()
    crash(node)
    until(lambda: state_of(node, "source")["Status"] == "running")
    assert not list(notes.iterdir())
