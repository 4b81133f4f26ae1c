"""The node through the docker command line: version, info, events, login, swarm and plugins."""

from __future__ import annotations

import base64
import json
import os
import platform
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.integration.engine.core import write_certificates
from tests.integration.engine.daemon import DOCKER, EngineNode
from tests.support.ports import free_port

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(DOCKER is None, reason="the docker command line is not installed"),
]
NOT_A_MANAGER = (
    'Error response from daemon: This node is not a swarm manager. Use "docker swarm init" or'
    ' "docker swarm join" to connect this node to swarm and try again.\n'
)


def test_version(node: EngineNode):
    found = node.docker_json("version")
    assert found["Client"]["ApiVersion"] == found["Server"]["ApiVersion"] == "1.45"
    assert found["Server"]["MinAPIVersion"] == "1.24"
    assert found["Server"]["Os"] == "linux"
    assert found["Server"]["KernelVersion"] == platform.release()
    ran = node.docker("version")
    assert ran.code == 0
    assert " API version:       1.45 (downgraded from" in ran.out
    assert "  API version:      1.45 (minimum version 1.24)" in ran.out


def test_info(node: EngineNode):
    found = node.docker_json("info")
    assert found["Name"] == "node-1"
    assert found["ID"] == (node.state / "engine" / "id").read_text().strip()
    assert found["DockerRootDir"] == str(node.state)
    assert found["NCPU"] == len(os.sched_getaffinity(0))
    assert found["MemTotal"] == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert found["KernelVersion"] == platform.release()
    assert found["Swarm"]["LocalNodeState"] == "inactive"
    assert (found["Containers"], found["Images"]) == (0, 0)
    forwards = Path("/proc/sys/net/ipv4/ip_forward").read_text().strip() == "1"
    assert found["IPv4Forwarding"] is forwards
    assert ("WARNING: IPv4 forwarding is disabled" in (found["Warnings"] or [])) is not forwards
    assert found["CgroupVersion"] == (
        "2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "1"
    )
    assert node.docker("info").code == 0


@pytest.mark.parametrize("version", ["1.24", "1.30", "1.41", "1.45"])
def test_every_version_a_client_may_ask_for(node: EngineNode, version: str):
    assert DOCKER is not None
    done = subprocess.run(
        [DOCKER, "-H", f"unix://{node.socket}", "info", "--format", "{{.Name}}"],
        env={"PATH": os.environ["PATH"], "HOME": str(node.base), "DOCKER_API_VERSION": version},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "node-1\n")


def test_events_end_at_their_time(node: EngineNode):
    ran = node.docker("events", "--since", "1h", "--until", "0s", "--filter", "bad=1")
    assert (ran.code, ran.out, ran.err) == (0, "", "")


@pytest.mark.parametrize(
    "command",
    [
        ("node", "ls"), ("service", "ls"), ("secret", "ls"), ("config", "ls"),
        ("service", "inspect", "x"), ("swarm", "unlock-key"), ("swarm", "ca"),
        ("stack", "ls"),
    ],
)  # fmt: skip
def test_swarm_operations_answer_as_outside_a_swarm(node: EngineNode, command):
    ran = node.docker(*command)
    assert ran.code == 1
    assert NOT_A_MANAGER.strip() in ran.err.strip() or "not a swarm manager" in ran.err


def test_joining_and_leaving_a_swarm(node: EngineNode):
    ran = node.docker("swarm", "leave")
    assert ran == (1, "", "Error response from daemon: This node is not part of a swarm\n")
    ran = node.docker("swarm", "init")
    assert ran.code == 1
    assert "start the node with `swarmd`" in ran.err  # here the engine runs without one


def test_plugins(node: EngineNode):
    assert node.docker("plugin", "ls", "-q") == (0, "", "")
    ran = node.docker("plugin", "inspect", "nosuch")
    assert ran.code == 1
    assert 'plugin "nosuch" not found' in ran.err


class Registry(BaseHTTPRequestHandler):
    """Knows `me` with password `secret`; with `bearer`, through a token."""

    bearer = False

    def do_GET(self) -> None:
        given = self.headers.get("Authorization", "")
        known = "Basic " + base64.b64encode(b"me:secret").decode()
        port = self.server.server_address[1]
        if self.path.startswith("/token"):
            assert "account=me" in self.path
            self._answer(200, {"token": "t0"}) if given == known else self._answer(401, _wrong())
        elif given == ("Bearer t0" if self.bearer else known):
            self._answer(200, {})
        elif self.bearer:
            where = f'Bearer realm="http://127.0.0.1:{port}/token",service="here"'
            self._answer(401, _wrong(), where)
        else:
            self._answer(401, _wrong(), 'Basic realm="here"')

    def _answer(self, status: int, content: object, challenge: str = "") -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        if challenge:
            self.send_header("WWW-Authenticate", challenge)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _wrong() -> dict[str, object]:
    return {"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}


@contextmanager
def a_registry(*, bearer: bool) -> Iterator[str]:
    kind = type("OneRegistry", (Registry,), {"bearer": bearer})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("bearer", [False, True])
def test_login(node: EngineNode, bearer: bool):
    with a_registry(bearer=bearer) as address:
        ran = node.docker("login", "-u", "me", "-p", "secret", address)
        assert (ran.code, ran.out) == (0, "Login Succeeded\n"), ran.err
        ran = node.docker("login", "-u", "me", "-p", "wrong", address)
        assert ran.code == 1
        assert "unauthorized: authentication required" in ran.err


def test_login_where_nobody_listens(node: EngineNode):
    port = free_port()
    ran = node.docker("login", "-u", "me", "-p", "p", f"127.0.0.1:{port}")
    assert ran.code == 1
    assert f'Get "http://127.0.0.1:{port}/v2/": ' in ran.err


def test_the_id_survives_and_the_socket_goes_with_the_process():
    node = EngineNode("--generic-resource=gpu=U1", "--generic-resource=apple=3")
    try:
        node.start()
        info = node.docker_json("info")
        first = info["ID"]
        assert info["GenericResources"] == [
            {"NamedResourceSpec": {"Kind": "gpu", "Value": "U1"}},
            {"DiscreteResourceSpec": {"Kind": "apple", "Value": 3}},
        ]
        assert node.stop() == 0
        assert not node.socket.exists()
        node.start()
        assert node.docker_json("info")["ID"] == first
        node.stop(signal.SIGKILL)
        assert node.socket.exists()
        (node.run / "docker.sock.new").touch()  # of a start that was cut short
        node.socket.unlink()
        node.start()
        assert node.docker_json("info")["ID"] == first
    finally:
        node.close()


def test_over_tcp_with_client_certificates(tmp_path: Path):
    write_certificates(tmp_path)
    port = free_port()
    node = EngineNode("--docker-addr", f"127.0.0.1:{port}", "--docker-tls", str(tmp_path))
    try:
        node.start()
        host = f"tcp://127.0.0.1:{port}"
        shown = (
            "--tlsverify", "--tlscacert", f"{tmp_path}/ca.pem", "--tlscert", f"{tmp_path}/cert.pem",
            "--tlskey", f"{tmp_path}/key.pem",
        )  # fmt: skip
        ran = node.docker(*shown, "info", "--format", "{{.Name}}", host=host)
        assert (ran.code, ran.out) == (0, "node-1\n"), ran.err
        for less in (shown[:3], ()):
            ran = node.docker(*less, "info", "--format", "{{.Name}}", host=host)
            assert ran.code == 1
            assert "node-1" not in ran.out
    finally:
        node.close()


def test_certificates_that_are_not_there_are_named(tmp_path: Path):
    node = EngineNode("--docker-addr", "127.0.0.1:0", "--docker-tls", str(tmp_path))
    try:
        with pytest.raises(AssertionError, match=r"must hold ca\.pem, cert\.pem and key\.pem"):
            node.start()
    finally:
        node.close()
