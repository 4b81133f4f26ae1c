"""Attach, exec, logs, top, stats and commit with the real docker command line."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.integration.engine.daemon import DEADLINE_S, DOCKER, EngineNode, Ran
from tests.integration.engine.seeded import (
    UnixConnection,
    ask,
    ok,
    refused,
    remains,
    state_of,
    until,
)

pytestmark = pytest.mark.root
NONE = ("--network", "none")
TALK = "i=0; while :; do echo o$i; echo e$i >&2; i=$((i+1)); sleep 0.1; done"


@pytest.fixture
def node(seeded: EngineNode) -> EngineNode:
    return seeded


@pytest.fixture(autouse=True)
def nothing_left(node: EngineNode) -> Iterator[None]:
    yield
    found = ok(node, "ps", "-aq").split()
    if found:
        ok(node, "rm", "-f", *found)
    until(lambda: not remains(node))


def docker(node: EngineNode, *arguments: str, given: str = "") -> Ran:
    """A docker command that reads `given`."""
    done = subprocess.run(
        command(node, *arguments), input=given, capture_output=True, text=True,
        timeout=DEADLINE_S, check=False, env=_environment(node),
    )  # fmt: skip
    return Ran(done.returncode, done.stdout, done.stderr)


def run(node: EngineNode, *command: str, options: tuple[str, ...] = (), given: str = "") -> Ran:
    return docker(node, "run", "--rm", *NONE, *options, "busybox", *command, given=given)


def talking(node: EngineNode) -> str:
    return ok(node, "run", "-d", "--name", "talker", *NONE, "busybox", "sh", "-c", TALK)


def command(node: EngineNode, *arguments: str) -> list[str]:
    """A docker command, word by word."""
    assert DOCKER is not None
    return [DOCKER, "-H", f"unix://{node.socket}", *arguments]


def _environment(node: EngineNode) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": str(node.base / "home"), "TERM": "xterm"}


class Terminal:
    """A docker command at a terminal of 24 rows and 80 columns."""

    def __init__(self, node: EngineNode, *arguments: str) -> None:
        self._fd, other = pty.openpty()
        self.resize(24, 80)
        self._process = subprocess.Popen(
            ["setsid", "-c", *command(node, *arguments)],
            stdin=other, stdout=other, stderr=other, env=_environment(node),
        )  # fmt: skip
        os.close(other)
        self.shown = ""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def see(self, text: str) -> None:
        """Wait until it is shown; what was shown up to it is forgotten."""
        deadline_s = time.monotonic() + DEADLINE_S
        while text not in self.shown:
            assert time.monotonic() < deadline_s, self.shown
            assert self._read(), self.shown
        self.shown = self.shown.partition(text)[2]

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def end(self) -> int:
        """Wait for its end; its exit code."""
        while self._read():
            pass
        os.close(self._fd)
        return self._process.wait(DEADLINE_S)

    def _read(self) -> bool:
        if select.select([self._fd], [], [], 0.1)[0]:
            try:
                data = os.read(self._fd, 65536)
            except OSError:  # the command has ended
                return False
            self.shown += data.decode(errors="replace")
        return True


# Foreground ---------------------------------------------------------------------------------


def test_run_shows_output_and_exit_codes(node: EngineNode):
    assert run(node, "echo", "hi") == (0, "hi\n", "")
    assert run(node, "sh", "-c", "echo out; echo err >&2; exit 7") == (7, "out\n", "err\n")
    for program, code in (("/nosuch", 127), ("nosuch", 127), ("/etc", 126)):
        assert run(node, program).code == code
    assert ok(node, "ps", "-aq") == ""


def test_run_reads_standard_input_to_its_end(node: EngineNode):
    assert run(node, "cat", options=("-i",), given="x\n") == (0, "x\n", "")
    assert run(node, "cat", options=("-i",)) == (0, "", "")
    assert run(node, "cat").code == 0
    much = "0123456789abcde\n" * 200_000
    assert run(node, "wc", "-c", options=("-i",), given=much) == (0, f"{len(much)}\n", "")
    echoed = run(node, "cat", options=("-i", "-a", "stdin", "-a", "stdout"), given=much)
    assert (echoed.code, len(echoed.out)) == (0, len(much))


def test_a_slow_client_gets_everything(node: EngineNode):
    """What is written is kept back in the container's own pipe, also past its end."""
    with subprocess.Popen(
        command(node, "run", "--rm", *NONE, "busybox", "head", "-c", "3000000", "/dev/zero"),
        stdout=subprocess.PIPE, env=_environment(node),
    ) as process:  # fmt: skip
        assert process.stdout is not None
        time.sleep(2.5)  # longer than anybody waits for last words
        assert len(process.stdout.read()) == 3_000_000
        assert process.wait(DEADLINE_S) == 0


def test_start_attached_again_and_again(node: EngineNode):
    ok(node, "create", "-i", "--name", "echo", *NONE, "busybox", "cat")
    for text in ("one\n", "two\n"):
        assert docker(node, "start", "-ai", "echo", given=text) == (0, text, "")
    assert ok(node, "logs", "echo") == "one\ntwo"


def test_attach_without_the_end_of_input(node: EngineNode):
    """A container that is to keep its standard input open: the client goes, it stays."""
    ok(node, "run", "-d", "-i", "--name", "keeps", *NONE, "busybox", "cat")
    connection = hijack(node, "/containers/keeps/attach?stream=1&stdin=1&stdout=1")
    connection.sock.sendall(b"hello\n")
    assert connection.sock.recv(100) == b"\x01\0\0\0\0\0\0\6hello\n"
    connection.sock.shutdown(1)
    assert connection.sock.recv(100) == b""
    connection.close()
    assert state_of(node, "keeps")["Running"]
    assert ok(node, "logs", "keeps") == "hello"


def test_attach_with_logs_shows_everything_once(node: EngineNode):
    """First what is in the log, then what comes, while lines are written as fast as they go."""
    script = "i=0; while [ $i -lt 20000 ]; do echo o$i; i=$((i+1)); done; exec sleep 600"
    ok(node, "run", "-d", "--name", "hasty", *NONE, "busybox", "sh", "-c", script)
    paths = ("/containers/hasty/attach?stream=1&logs=1&stdout=1",) * 5
    seen = [everything(node, path, b"o19999\n") for path in paths]
    expected = b"".join(b"o%d\n" % number for number in range(20_000))
    assert [one == expected for one in seen] == [True] * 5


def test_attach_with_logs_before_the_next_run(node: EngineNode):
    """The log of the runs before, then the whole of the next."""
    ok(node, "create", "--name", "again", *NONE, "busybox", "sh", "-c", "echo run; printf half")
    ok(node, "start", "-a", "again")
    connection = hijack(node, "/containers/again/attach?stream=1&logs=1&stdout=1")
    ok(node, "start", "again")
    assert payload(connection) == b"run\nhalfrun\nhalf"


def everything(node: EngineNode, path: str, last: bytes) -> bytes:
    """What an attachment shows until the text that comes last."""
    connection = hijack(node, path)
    seen = b""
    while not seen.endswith(last):
        seen += frame(connection)
    connection.close()
    return seen


def payload(connection: UnixConnection) -> bytes:
    """What an attachment shows until its end."""
    seen = b""
    while data := frame(connection):
        seen += data
    connection.close()
    return seen


def frame(connection: UnixConnection) -> bytes:
    """The payload of the next frame; b"" at the end."""
    head = exactly(connection, 8)
    return exactly(connection, int.from_bytes(head[4:], "big")) if head else b""


def exactly(connection: UnixConnection, count: int) -> bytes:
    data = b""
    while len(data) < count and (more := connection.sock.recv(count - len(data))):
        data += more
    return data


async def converse(node: EngineNode, path: str, *said: str | bytes) -> list[str | bytes]:
    """Messages one way, all that come the other until the end."""
    connector = aiohttp.UnixConnector(str(node.socket))
    async with (
        asyncio.timeout(60),
        aiohttp.ClientSession(connector=connector) as session,
        session.ws_connect(f"http://docker{path}") as socket,
    ):
        for each in said:
            await (socket.send_str(each) if isinstance(each, str) else socket.send_bytes(each))
        return [message.data async for message in socket]


@pytest.mark.parametrize(("version", "kind"), [("v1.45", bytes), ("v1.27", str)])
def test_attach_over_a_websocket(node: EngineNode, version: str, kind: type):
    script = "read a; echo got $a; echo two >&2; read b; echo got $b"
    ok(node, "run", "-d", "-i", "--name", "web", *NONE, "busybox", "sh", "-c", script)
    wishes = "stream=1&stdin=1&stdout=1&stderr=1" if version == "v1.45" else "stream=1"
    path = f"/{version}/containers/web/attach/ws?{wishes}"
    heard = asyncio.run(converse(node, path, b"one\n", "t\u00e4xt\n"))
    assert {type(each) for each in heard} == {kind}
    whole = b"".join(each if isinstance(each, bytes) else each.encode() for each in heard)
    assert sorted(whole.splitlines()) == [b"got one", "got t\u00e4xt".encode(), b"two"]


def test_a_websocket_that_closes_leaves_the_container(node: EngineNode):
    ok(node, "run", "-d", "-i", "--name", "web", *NONE, "busybox", "sh", "-c", "echo 1; cat")

    async def come_and_go() -> object:
        connector = aiohttp.UnixConnector(str(node.socket))
        path = "http://docker/containers/web/attach/ws?stream=1&logs=1&stdout=1"
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.ws_connect(path) as socket,
        ):
            return (await socket.receive(timeout=60)).data

    until(lambda: ok(node, "logs", "web") == "1")
    assert asyncio.run(come_and_go()) == b"1\n"
    assert state_of(node, "web")["Running"]
    status, words = ask(node, "GET", "/containers/web/attach/ws?stream=1")
    assert status == 400, words
    assert "not a WebSocket handshake" in words["message"]


def test_attach_is_refused(node: EngineNode):
    talking(node)
    status, words = ask(node, "POST", "/containers/talker/attach?stream=1&detachKeys=ctrl-")
    assert (status, words["message"]) == (400, "Invalid escape keys (ctrl-) provided")
    ok(node, "pause", "talker")
    status, words = ask(node, "POST", "/containers/talker/attach?stream=1&stdout=1")
    assert status == 409
    assert "Unpause the container before attach" in words["message"]


def hijack(node: EngineNode, path: str) -> UnixConnection:
    connection = UnixConnection(str(node.socket))
    connection.connect()
    head = f"POST {path} HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
    connection.sock.sendall(head.encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.sock.recv(1)
    assert answer.startswith(b"HTTP/1.1 101 UPGRADED\r\n")
    return connection


# Terminals ----------------------------------------------------------------------------------


def test_a_shell_at_a_terminal(node: EngineNode):
    shell = Terminal(node, "run", "-it", "--rm", *NONE, "busybox", "sh")
    shell.see("# ")
    shell.type("stty size; tty\r")
    shell.see("24 80")
    shell.see("/dev/pts/0")
    shell.resize(40, 100)
    os.kill(child_of(shell), 28)  # SIGWINCH, which a terminal would send
    shell.type("until stty size | grep '40 100'; do sleep 0.1; done; echo s''een\r")
    shell.see("seen")
    shell.type("sh -c 'echo u\"\"p; exec sleep 60'\r")
    shell.see("up")
    shell.type("\x03")
    shell.see("# ")
    shell.type("exit 3\r")
    assert shell.end() == 3
    assert ok(node, "ps", "-aq") == ""


def child_of(shell: Terminal) -> int:
    """The docker command itself, which leads the terminal's session."""
    return shell._process.pid


def test_detach_keys(node: EngineNode):
    ok(node, "run", "-dit", "--name", "shell", *NONE, "busybox", "sh")
    for keys, typed in ((), "\x10\x11"), (("--detach-keys", "ctrl-a,x"), "\x01x"):
        attached = Terminal(node, "attach", *keys, "shell")
        attached.see("# ")
        attached.type(typed)
        attached.see("read escape sequence")
        assert attached.end() == 1
        assert state_of(node, "shell")["Running"]
    inner = Terminal(node, "exec", "-it", "--detach-keys", "ctrl-a", "shell", "sh")
    inner.see("# ")
    inner.type("\x01")
    inner.see("read escape sequence")
    inner.end()
    connection = hijack(node, "/containers/shell/attach?stream=1&stdin=1&detachKeys=a,b")
    connection.sock.sendall(b"ab")  # the server looks for them, too
    assert connection.sock.recv(10) == b""
    connection.close()
    assert state_of(node, "shell")["Running"]


# Exec ---------------------------------------------------------------------------------------


def test_exec(node: EngineNode):
    identifier = talking(node)
    assert docker(node, "exec", "talker", "sh", "-c", "echo o; echo e >&2; exit 5") == (
        5, "o\n", "e\n",
    )  # fmt: skip
    assert docker(node, "exec", "-i", "talker", "cat", given="data") == (0, "data", "")
    assert docker(node, "exec", "talker", "/etc").code == 126
    missing = docker(node, "exec", "talker", "/nosuch")
    assert missing.code == 127
    assert missing.out == (
        "OCI runtime exec failed: exec failed: unable to start container process:"
        ' exec: "/nosuch": stat /nosuch: no such file or directory: unknown\n'
    )
    options = ("-e", "X=1", "-w", "/tmp", "-u", "5:6")
    told = ok(node, "exec", *options, "talker", "sh", "-c", "pwd; echo $X; id -u; id -g")
    assert told.split() == ["/tmp", "1", "5", "6"]
    ok(node, "exec", "-d", "talker", "touch", "/made")
    until(lambda: docker(node, "exec", "talker", "test", "-e", "/made").code == 0)
    assert "OCI runtime exec failed" in docker(node, "exec", "-d", "talker", "/nosuch").err
    events = actions(node, identifier)
    assert "exec_create: /etc" in events
    assert "exec_die" in events
    ok(node, "pause", "talker")
    assert "is paused, unpause the container before exec" in refused(node, "exec", "talker", "true")
    ok(node, "unpause", "talker")
    ok(node, "kill", "talker")
    assert refused(node, "exec", "talker", "true") == f"Container {identifier} is not running"


def actions(node: EngineNode, container: str) -> list[str]:
    """What events have told of a container."""
    out = ok(
        node, "events", "--since", "1", "--until", f"{time.time():.6f}",
        "--filter", f"container={container}", "--format", "{{json .}}",
    )  # fmt: skip
    return [json.loads(line)["Action"] for line in out.splitlines()]


def test_exec_instances(node: EngineNode):
    identifier = talking(node)
    status, made = ask(
        node, "POST", "/containers/talker/exec",
        {"Cmd": ["sleep", "600"], "attachStdout": True, "User": "0"},
    )  # fmt: skip
    assert status == 201
    where = f"/exec/{made['Id']}"
    assert ask(node, "GET", "/containers/talker/json")[1]["ExecIDs"] == [made["Id"]]
    words = ask(node, "GET", f"{where}/json")[1]
    assert (words["Running"], words["ExitCode"], words["Pid"]) == (False, None, 0)
    assert words["ProcessConfig"] == {
        "tty": False, "entrypoint": "sleep", "arguments": ["600"], "privileged": False,
        "user": "0",
    }  # fmt: skip
    assert ask(node, "POST", f"{where}/start", {"Detach": True}) == (200, None)
    until(lambda: ask(node, "GET", f"{where}/json")[1]["Running"])
    assert ask(node, "POST", f"{where}/start", {"Detach": True})[0] == 409
    assert ask(node, "POST", f"{where}/resize?h=1&w=1")[0] == 500
    assert Path(f"/proc/{ask(node, 'GET', f'{where}/json')[1]['Pid']}").exists()
    ok(node, "kill", "talker")
    until(lambda: ask(node, "GET", f"{where}/json")[1]["ExitCode"] == 137)
    assert ask(node, "GET", f"/containers/{identifier}/json")[1]["ExecIDs"] is None
    ok(node, "rm", "talker")
    for method, path in (("GET", f"{where}/json"), ("POST", f"{where}/start")):
        status, words = ask(node, method, path, {} if method == "POST" else None)
        assert (status, words["message"]) == (404, f"No such exec instance: {made['Id']}")


def test_a_process_left_behind_does_not_hold_exec(node: EngineNode):
    talking(node)
    assert ok(node, "exec", "talker", "sh", "-c", "sleep 600 & echo begun") == "begun"


# Looking at ---------------------------------------------------------------------------------


def test_logs(node: EngineNode):
    ok(node, "run", "--name", "said", *NONE, "busybox", "sh", "-c",
       "echo a; sleep 0.2; echo b >&2; sleep 0.2; echo c")  # fmt: skip
    assert docker(node, "logs", "said") == (0, "a\nc\n", "b\n")
    assert docker(node, "logs", "-n", "1", "said") == (0, "c\n", "")
    assert docker(node, "logs", "--details", "-n", "1", "said").out == " c\n"
    shown = docker(node, "logs", "-t", "said")
    times = [line.split()[0] for line in shown.out.splitlines()]
    assert all(len(time) == 30 and time.endswith("Z") for time in times)
    assert docker(node, "logs", "--since", times[1], "said").err == ""
    assert docker(node, "logs", "--until", times[0], "said") == (0, "a\n", "")
    assert refused(node, "logs", "nobody") == "No such container: nobody"
    status, words = ask(node, "GET", "/containers/said/logs")
    assert status == 400
    assert words["message"] == "Bad parameters: you must choose at least one stream"


def test_logs_nobody_keeps(node: EngineNode):
    ok(node, "run", "--name", "silent", *NONE, "--log-driver", "none", "busybox", "true")
    expected = "configured logging driver does not support reading"
    assert refused(node, "logs", "silent") == expected
    status, words = ask(node, "POST", "/containers/silent/attach?logs=1&stdout=1")
    assert (status, words["message"]) == (501, expected)


def test_logs_are_followed_to_the_end(node: EngineNode):
    ok(node, "run", "-d", "--name", "ends", *NONE, "busybox", "sh", "-c",
       "for i in 1 2 3; do echo $i; sleep 0.2; done")  # fmt: skip
    assert docker(node, "logs", "-f", "ends") == (0, "1\n2\n3\n", "")
    assert docker(node, "logs", "-f", "--tail", "0", "ends") == (0, "", "")


def test_followers_get_the_last_lines_of_what_is_removed(node: EngineNode):
    """docker-py follows, waits, removes, and only then reads."""
    ok(node, "run", "-d", "--name", "brief", *NONE, "busybox", "sh", "-c", "sleep 0.2; echo last")
    connection = UnixConnection(str(node.socket))
    try:
        connection.request("GET", "/containers/brief/logs?follow=1&stdout=1")
        answer = connection.getresponse()
        ok(node, "wait", "brief")
        ok(node, "rm", "brief")
        assert answer.read() == b"\x01\0\0\0\0\0\0\5last\n"
    finally:
        connection.close()


def test_clients_that_leave_are_no_errors(node: EngineNode):
    talking(node)
    until(lambda: "o9" in ok(node, "logs", "talker"))
    before = len(node.log.read_bytes())
    for path in ("logs?stdout=1&follow=1", "stats", "export") * 5:
        connection = UnixConnection(str(node.socket))
        connection.request("GET", f"/containers/talker/{path}")
        connection.close()  # before the first byte
    hijack(node, "/containers/talker/attach?stream=1&stdout=1").close()
    time.sleep(0.5)  # some more is written to each
    assert ok(node, "exec", "talker", "echo", "well") == "well"
    said = node.log.read_bytes()[before:]
    assert b"Traceback" not in said, said


def test_logs_of_a_terminal_are_raw(node: EngineNode):
    ok(node, "run", "-t", "--name", "terminal", *NONE, "busybox", "echo", "raw")
    connection = UnixConnection(str(node.socket))
    try:
        connection.request("GET", "/v1.45/containers/terminal/logs?stdout=1")
        answer = connection.getresponse()
        assert answer.getheader("Content-Type") == "application/vnd.docker.raw-stream"
        assert answer.read() == b"raw\r\n"
    finally:
        connection.close()


def test_top_and_stats(node: EngineNode):
    identifier = talking(node)
    lines = ok(node, "top", "talker").splitlines()
    assert lines[0].split() == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    assert lines[1].split()[1] == str(state_of(node, "talker")["Pid"])
    assert ok(node, "top", "talker", "-o", "pid,comm").splitlines()[0].split() == ["PID", "COMMAND"]
    connection = UnixConnection(str(node.socket))
    try:
        connection.request("GET", "/containers/talker/stats")
        answer = connection.getresponse()
        first, sample = (json.loads(answer.readline()) for _ in range(2))
        assert sample["preread"] == first["read"]
    finally:
        connection.close()
    assert sample["name"] == "/talker"
    assert sample["cpu_stats"]["system_cpu_usage"] > sample["precpu_stats"]["system_cpu_usage"] > 0
    assert sample["pids_stats"]["current"] >= 1
    assert sample["memory_stats"]["limit"] > sample["memory_stats"]["usage"] > 0
    once = ask(node, "GET", "/containers/talker/stats?stream=0&one-shot=1")[1]
    assert "system_cpu_usage" not in once["precpu_stats"]
    shown = json.loads(ok(node, "stats", "--no-stream", "--format", "{{json .}}", "talker"))
    assert (shown["ID"], shown["Name"]) == (identifier[:12], "talker")
    ok(node, "kill", "talker")
    assert refused(node, "top", "talker") == f"Container {identifier} is not running"
    idle = ask(node, "GET", "/containers/talker/stats?stream=0")[1]
    assert (idle["read"], idle["memory_stats"]) == ("0001-01-01T00:00:00Z", {})


def test_commit(node: EngineNode):
    ok(node, "run", "-d", "--name", "source", *NONE, "-e", "A=1", "busybox", "sh", "-c",
       "echo kept >/f; rm /bin/awk; sleep 600")  # fmt: skip
    until(lambda: "/bin/awk" in ok(node, "diff", "source"))
    made = ok(node, "commit", "-m", "why", "-a", "who", "-c", "ENV Q=1", "-c", "CMD cat /f; env",
              "source", "made:1")  # fmt: skip
    assert state_of(node, "source")["Status"] == "running"
    shown = ok(node, "run", "--rm", *NONE, "made:1").splitlines()
    assert shown[0] == "kept"
    assert {"A=1", "Q=1", "FROM=image"} <= set(shown)
    assert docker(node, "run", "--rm", *NONE, made, "awk").code == 127
    assert "RUN needs a build" in refused(node, "commit", "-c", "RUN x", "source")
    assert refused(node, "commit", "nobody") == "No such container: nobody"
