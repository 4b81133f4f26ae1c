"""A node with --userns-remap, through the docker command line.

Goal: everything a user does with containers works as without it, and root inside is nobody outside.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.engine.daemon import EngineNode
from tests.integration.engine.remapped import RemappedNode
from tests.integration.engine.seeded import ok, refused, seed
from tests.support.accounts import GID, UID

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def node() -> Iterator[EngineNode]:
    made = RemappedNode()
    try:
        seed(made)
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture
def running(node: EngineNode) -> Iterator[str]:
    name = ok(node, "run", "-d", "busybox", "sleep", "1000")
    yield name
    ok(node, "rm", "-f", "-v", name)


def _pid(node: EngineNode, name: str) -> int:
    return int(ok(node, "inspect", "-f", "{{.State.Pid}}", name))


def _owner(node: EngineNode, place: str) -> tuple[int, int]:
    """Whose a file is in the tar that `docker cp` gets."""
    with tarfile.open(fileobj=io.BytesIO(ok(node, "cp", place, "-").encode())) as tar:
        (entry,) = tar.getmembers()
    return entry.uid, entry.gid


def test_the_node_says_so(node: EngineNode):
    assert "name=userns" in node.docker_json("info")["SecurityOptions"]


def test_root_inside_is_nobody_outside(node: EngineNode, running: str):
    status = os.stat(f"/proc/{_pid(node, running)}")
    assert (status.st_uid, status.st_gid) == (UID, GID)
    assert ok(node, "exec", running, "id", "-u") == "0"
    assert ok(node, "exec", "-u", "7:8", running, "sh", "-c", "id -u; id -g") == "7\n8"


def test_the_nodes_ids_on_request(node: EngineNode):
    script = "cat /proc/self/uid_map"
    words = ok(node, "run", "--rm", "--userns", "host", "busybox", "sh", "-c", script).split()
    assert words == ["0", "0", "4294967295"]
    ok(node, "run", "--rm", "--userns", "host", "--privileged", "--pid", "host",
       "--network", "host", "busybox", "true")  # fmt: skip


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--privileged",), "privileged mode is incompatible with user namespaces.  You must run"
         " the container in the host namespace when running privileged mode"),
        (("--network", "host"), "cannot share the host's network namespace when user namespaces"
         " are enabled"),
        (("--pid", "host"), "cannot share the host PID namespace when user namespaces are enabled"),
        (("--ipc", "host"), "cannot share the host IPC namespace when user namespaces are enabled"),
    ],
)  # fmt: skip
def test_what_needs_the_nodes_ids(node: EngineNode, options: tuple[str, ...], reason: str):
    assert reason in refused(node, "create", *options, "busybox", "true")


def test_its_network_is_its_own(node: EngineNode):
    script = "ip addr add 192.0.2.9/32 dev lo && ip -o -4 addr show dev eth0 && ls /sys/class/net"
    text = ok(node, "run", "--rm", "--cap-add", "NET_ADMIN", "busybox", "sh", "-c", script)
    assert "eth0" in text
    assert "inet " in text


def test_names_and_neighbours(node: EngineNode):
    ok(node, "network", "create", "n1")
    server = ok(node, "run", "-d", "--network", "n1", "--name", "server", "busybox", "sh", "-c",
                "echo hello > /tmp/index.html; httpd -f -h /tmp")  # fmt: skip
    try:
        script = "for i in 1 2 3 4 5 6 7 8 9; do wget -qO- http://server && break; sleep 1; done"
        assert ok(node, "run", "--rm", "--network", "n1", "busybox", "sh", "-c", script) == "hello"
    finally:
        ok(node, "rm", "-f", server)
        ok(node, "network", "rm", "n1")


def test_namespaces_of_another_container(node: EngineNode):
    other = ok(node, "run", "-d", "--ipc", "shareable", "busybox", "sleep", "1000")
    try:
        for options in (
            ("--network", f"container:{other}"), ("--pid", f"container:{other}"),
            ("--ipc", f"container:{other}"),
            ("--pid", f"container:{other}", "--network", f"container:{other}"),
        ):  # fmt: skip
            script = "stat -Lc %i /proc/self/ns/user; touch /etc/hosts; ls /sys/class/net"
            words = ok(node, "run", "--rm", *options, "busybox", "sh", "-c", script).split()
            assert int(words[0]) == os.stat(f"/proc/{_pid(node, other)}/ns/user").st_ino
            assert "eth0" in words[1:]
    finally:
        ok(node, "rm", "-f", other)


def test_the_network_of_a_container_with_the_nodes_ids(node: EngineNode):
    other = ok(node, "run", "-d", "--userns", "host", "busybox", "sleep", "1000")
    try:
        assert "--userns host" in refused(
            node, "run", "--rm", "--network", f"container:{other}", "busybox", "true"
        )
        ok(node, "run", "--rm", "--userns", "host", "--network", f"container:{other}", "busybox",
           "true")  # fmt: skip
    finally:
        ok(node, "rm", "-f", other)


def test_files_in_and_out_of_one_that_runs(node: EngineNode, running: str, tmp_path: Path):
    (tmp_path / "in").write_text("in")
    os.chown(tmp_path / "in", 0, 0)
    ok(node, "cp", str(tmp_path / "in"), f"{running}:/root/in")
    ok(node, "cp", "-a", str(tmp_path / "in"), f"{running}:/root/archived")
    ok(node, "exec", running, "sh", "-c", "echo out > /out; chown 5:6 /out")
    script = "stat -c '%u %g' /root/in /root/archived"
    assert ok(node, "exec", running, "sh", "-c", script) == "0 0\n0 0"
    assert _owner(node, f"{running}:/out") == (5, 6)
    assert "A /out" in ok(node, "diff", running)


def test_files_in_and_out_of_one_that_rests(node: EngineNode, tmp_path: Path):
    name = ok(node, "create", "-v", "/volume", "busybox", "sh", "-c",
              "stat -c '%u %g' /in /volume/in; touch /volume/made")  # fmt: skip
    try:
        (tmp_path / "in").write_text("in")
        ok(node, "cp", str(tmp_path / "in"), f"{name}:/in")
        ok(node, "cp", str(tmp_path / "in"), f"{name}:/volume/in")
        assert ok(node, "start", "-a", name) == "0 0\n0 0"
        assert _owner(node, f"{name}:/volume/made") == (0, 0)
    finally:
        ok(node, "rm", "-f", "-v", name)


def test_a_commit_and_what_is_made_of_it(node: EngineNode):
    name = ok(node, "run", "-d", "busybox", "sh", "-c", "touch /a; chown 9:10 /a; sleep 1000")
    try:
        script = "until [ -e /a ] && [ $(stat -c %u /a) = 9 ]; do :; done"
        ok(node, "exec", name, "sh", "-c", script)
        ok(node, "commit", name, "made:1")
    finally:
        ok(node, "rm", "-f", name)
    for options in ((), ("--userns", "host")):
        text = ok(node, "run", "--rm", *options, "made:1", "stat", "-c", "%u %g", "/a", "/bin/sh")
        assert text == "9 10\n0 0"
    ok(node, "rmi", "made:1")


def test_a_build(node: EngineNode, tmp_path: Path):
    (tmp_path / "one").write_text("1")
    os.chown(tmp_path / "one", 4242, 4242)
    (tmp_path / "Dockerfile").write_text(
        "FROM busybox\nCOPY one /one\nCOPY --chown=3:4 one /two\n"
        "RUN cat /proc/self/uid_map > /map; touch /three; chown 5:6 /three\n"
        "USER 11\nRUN id -u > /tmp/user || true\n"
    )
    ok(node, "build", "-t", "built", str(tmp_path))
    script = "stat -c '%u %g' /one /two /three; cat /map"
    lines = ok(node, "run", "--rm", "-u", "0", "built", "sh", "-c", script).splitlines()
    assert lines[:3] == ["0 0", "3 4", "5 6"]
    assert lines[3].split() == ["0", str(UID), "65536"]
    ok(node, "rmi", "built")


def test_volumes_are_shared_between_both_kinds(node: EngineNode):
    ok(node, "volume", "create", "shared")
    for options, script in (
        ((), "mkdir /v/d; touch /v/d/a; chown 12:13 /v/d/a"),
        (("--userns", "host"), "stat -c '%u %g' /v/d /v/d/a; rm /v/d/a; touch /v/d/b"),
        ((), "stat -c '%u %g' /v /v/d/b; rm -r /v/d"),
    ):
        text = ok(node, "run", "--rm", *options, "-v", "shared:/v", "busybox", "sh", "-c", script)
        assert text in {"", "0 0\n12 13", "0 0\n0 0"}
    ok(node, "volume", "rm", "shared")


def test_a_volume_is_filled_with_what_the_image_has(node: EngineNode):
    text = ok(node, "run", "--rm", "-v", "/etc", "busybox", "stat", "-c", "%u", "/etc/passwd")
    assert text == "0"


def test_places_of_the_node_keep_its_ids(node: EngineNode, tmp_path: Path):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "secret").chmod(0o600)
    place = f"{tmp_path}:/p"
    device = ("--opt", "type=none", "--opt", "o=bind", "--opt", f"device={tmp_path}")
    ok(node, "volume", "create", *device, "elsewhere")
    for mount in (place, "elsewhere:/p"):
        script = "stat -c %u /p; cat /p/secret 2>&- || echo no; touch /p/made 2>&- || echo no"
        text = ok(node, "run", "--rm", "-v", mount, "busybox", "sh", "-c", script)
        assert text.split() == ["65534", "no", "no"]
    ok(node, "volume", "rm", "elsewhere")
    assert [one.name for one in tmp_path.iterdir()] == ["secret"]


def test_a_place_that_is_made_for_a_bind_is_the_containers(node: EngineNode):
    place = node.base / "made" / "for"
    ok(node, "run", "--rm", "-v", f"{place}:/p", "busybox", "touch", "/p/a")
    for one in (place, place.parent, place / "a"):
        assert (one.stat().st_uid, one.stat().st_gid) == (UID, GID)


def test_further_flags(node: EngineNode):
    other = ok(node, "run", "-d", "busybox", "sleep", "1000")
    try:
        for options in (
            ("--network", f"container:{other}"), ("--pid", f"container:{other}", "--ipc", "host"),
        ):  # fmt: skip
            ok(node, "run", "--rm", "--userns", "host", *options, "busybox", "true")
        everything = ok(node, "exec", "--privileged", other, "grep", "CapEff", "/proc/self/status")
        assert int(everything.split()[1], 16) & 1 << 21  # CAP_SYS_ADMIN, of its namespace
        script = "echo x > /dev/mine; test ! -e /dev/null/x; hostname; cat /proc/1/cgroup | wc -l"
        options = ("--device", "/dev/zero:/dev/mine", "--read-only", "--uts", "host",
                   "--cgroupns", "host", "--tmpfs", "/tmp", "--sysctl", "net.core.somaxconn=9",
                   "--cap-drop", "ALL", "--security-opt", "no-new-privileges")  # fmt: skip
        assert ok(node, "run", "--rm", *options, "busybox", "sh", "-c", script)
    finally:
        ok(node, "rm", "-f", other)


def test_top_stats_logs_and_a_restart(node: EngineNode, running: str):
    assert "sleep 1000" in ok(node, "top", running)
    assert json.loads(ok(node, "stats", "--no-stream", "--format", "{{json .}}", running))["PIDs"]
    ok(node, "restart", "-t", "0", running)
    assert os.stat(f"/proc/{_pid(node, running)}").st_uid == UID
    text = ok(node, "run", "--rm", "-t", "busybox", "sh", "-c", "tty; id -u")
    assert text.split() == ["/dev/pts/0", "0"]


def test_a_worker_that_comes_back_takes_them_over(node: EngineNode, running: str):
    address = "ip -o -4 addr show dev eth0 | wc -l"
    node.stop()
    node.start()
    assert ok(node, "exec", running, "id", "-u") == "0"
    assert ok(node, "exec", running, "sh", "-c", address) == "1"
    assert os.stat(f"/proc/{_pid(node, running)}").st_uid == UID
