"""`docker run -it` and `exec -it` where people use them: at a terminal, here tmux's."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.integration.engine.daemon import DEADLINE_S, DOCKER, EngineNode
from tests.integration.engine.seeded import ok, state_of, until

TMUX = shutil.which("tmux")
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(TMUX is None, reason="tmux is not installed"),
    pytest.mark.skipif(DOCKER is None, reason="the docker command line is not installed"),
]
NONE = "--network none"


class Tmux:
    """One window of a tmux server of its own, with a shell in it."""

    def __init__(self, node: EngineNode) -> None:
        self._socket = str(node.base / "tmux")
        self._environment = {
            "PATH": os.environ["PATH"], "HOME": str(node.base / "home"),
            "DOCKER_HOST": f"unix://{node.socket}", "TERM": "screen", "LC_ALL": "C.UTF-8",
        }  # fmt: skip
        self.call("-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", "sh")

    def call(self, *arguments: str) -> str:
        assert TMUX is not None
        return subprocess.run(
            [TMUX, "-S", self._socket, *arguments], check=True, capture_output=True, text=True,
            timeout=DEADLINE_S, env=self._environment,
        ).stdout  # fmt: skip

    def type(self, text: str) -> None:
        """Type a line."""
        self.call("send-keys", "-l", text)
        self.press("Enter")

    def press(self, *keys: str) -> None:
        self.call("send-keys", *keys)

    def see(self, text: str) -> None:
        """Wait until a line of the screen ends with this text, which what was typed must not."""
        until(lambda: any(line.endswith(text) for line in self.lines()))

    def lines(self) -> list[str]:
        """What is on the screen, without spaces at the ends of lines."""
        return self.call("capture-pane", "-p").splitlines()

    def clear(self) -> None:
        """Forget what was shown."""
        self.call("send-keys", "-R")
        self.call("clear-history")

    def resize(self, columns: int, rows: int) -> None:
        self.call("resize-window", "-x", str(columns), "-y", str(rows))

    def code(self, command: str, expected: int) -> None:
        """Run a command to its end and compare its exit code."""
        self.type(f"{command}; echo code=$?.")
        self.see(f"code={expected}.")
        self.clear()


@pytest.fixture
def node(seeded: EngineNode) -> Iterator[EngineNode]:
    yield seeded
    if found := ok(seeded, "ps", "-aq").split():
        ok(seeded, "rm", "-f", *found)


@pytest.fixture
def screen(node: EngineNode) -> Iterator[Tmux]:
    made = Tmux(node)
    try:
        yield made
    finally:
        made.call("kill-server")


def test_a_shell(node: EngineNode, screen: Tmux):
    screen.type(f"docker run -it --rm --name shell {NONE} busybox sh; echo left with $?.")
    screen.see("/ #")
    screen.type("stty size; tty; echo $TERM")
    screen.see("24 80")
    screen.see("/dev/pts/0")
    screen.see("xterm")

    screen.type("trap 'stty size' WINCH; while :; do sleep 0.1; done")
    screen.resize(100, 30)
    screen.see("30 100")
    screen.resize(60, 20)
    screen.see("20 60")
    screen.press("C-c")
    screen.clear()
    screen.type("echo still''here")
    screen.see("stillhere")

    screen.type("sh -c 'echo begun; exec sleep 600'")
    screen.see("begun")
    screen.press("C-c")
    screen.type("echo interrupted $?.")
    screen.see("interrupted 130.")
    screen.type("cat")
    screen.type("twice")
    until(lambda: screen.lines().count("twice") == 2)
    screen.press("C-d")
    screen.type("exit 3")
    screen.see("left with 3.")
    screen.type("stty -a | grep -o ' icanon'")  # the terminal is as it was
    screen.see(" icanon")
    assert ok(node, "ps", "-aq") == ""


def test_interrupting_what_runs_at_a_terminal(node: EngineNode, screen: Tmux):
    command = shlex.quote("trap 'echo told; exit 5' INT; echo ready; while :; do sleep 0.1; done")
    for terminal in ("-it", ""):  # by the terminal's own means, and by the client's
        screen.type(f"docker run --rm {terminal} {NONE} busybox sh -c {command}; echo code=$?.")
        screen.see("ready")
        screen.press("C-c")
        screen.see("code=5.")
        assert "told" in screen.call("capture-pane", "-p")
        screen.clear()


def test_detaching(node: EngineNode, screen: Tmux):
    screen.type(f"docker run -it --name kept {NONE} busybox sh; echo de''tached")
    screen.see("/ #")
    screen.type("echo $((20 + 3))")
    screen.see("23")
    screen.press("C-p", "C-q")
    screen.see("detached")
    assert state_of(node, "kept")["Running"]
    screen.clear()

    screen.type("docker attach --detach-keys ctrl-x,d kept")
    until(lambda: "docker attach" in screen.call("capture-pane", "-p"))
    screen.press("Enter")
    screen.see("/ #")
    screen.type("echo $((30 + 4))")
    screen.see("34")
    screen.press("C-p", "C-q")  # mean nothing now
    screen.type("")
    screen.type("echo $((40 + 5))")
    screen.see("45")
    screen.press("C-x", "d")
    screen.see("read escape sequence")
    assert state_of(node, "kept")["Running"]
    screen.clear()

    screen.type("docker exec -it kept sh; echo exec $?.")
    screen.see("/ #")
    screen.type("stty size; tty")
    screen.see("24 80")
    screen.see("/dev/pts/1")
    screen.resize(90, 28)
    screen.type("until stty size | grep '28 90'; do sleep 0.1; done")
    screen.see("28 90")
    screen.type("exit 6")
    screen.see("exec 6.")
    screen.clear()
    screen.type("docker attach kept; echo attach $?.")
    until(lambda: "docker attach" in screen.call("capture-pane", "-p"))
    screen.type("exit 7")
    screen.see("attach 7.")


def test_exit_codes(node: EngineNode, screen: Tmux):
    run = f"docker run -it --rm {NONE}"
    screen.code(f"{run} busybox true", 0)
    screen.code(f"{run} --nosuch busybox true", 125)
    screen.code(f"{run} --memory 1k busybox true", 125)
    screen.code(f"{run} busybox /etc", 126)
    screen.code(f"{run} busybox nosuch", 127)
    screen.code(f"{run} busybox sh -c 'exit 42'", 42)
    screen.code(f"{run} --init busybox sh -c 'kill -9 $$'", 137)
    screen.type(f"{run} --name killed busybox sh; echo code=$?.")
    screen.see("/ #")
    screen.type("docker exec -it")  # whatever is typed does not keep it
    ok(node, "kill", "killed")
    screen.see("code=137.")
    screen.clear()
    ok(node, "run", "-d", "--name", "up", "--network", "none", "busybox", "sleep", "600")
    screen.code("docker exec -it up /etc", 126)
    screen.code("docker exec -it up nosuch", 127)
    screen.code("docker exec -it up sh -c 'exit 9'", 9)
    screen.code("docker exec -it up sh -c 'kill -9 $$'", 137)
    screen.code("docker exec -it nobody sh", 1)
