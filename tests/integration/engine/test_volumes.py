"""Volumes through the real docker command line: what outlives containers, and what does not."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.engine.daemon import EngineNode
from tests.integration.engine.seeded import ask, ok, refused, remains, seeded_node, until
from worker.volumes import kernel

pytestmark = pytest.mark.root
MAKE_NODE = seeded_node
NONE = ("--network", "none")
ROUNDS = int(os.environ.get("SHOAL_KILL_ROUNDS", "1"))
PAUSES_S = [0.03 * number / (ROUNDS + 1) for number in range(1, ROUNDS + 1)]


@pytest.fixture(autouse=True)
def nothing_left(node: EngineNode) -> Iterator[None]:
    yield
    for container in ok(node, "ps", "-aq").split():
        ok(node, "rm", "-fv", container)
    for volume in ok(node, "volume", "ls", "-q").split():
        ok(node, "volume", "rm", volume)
    until(lambda: not remains(node))
    until(lambda: not list((node.state / "volumes").iterdir()))
    assert not [point for point in kernel.mount_points() if point.startswith(str(node.state))]


def run(node: EngineNode, script: str, *options: str) -> str:
    """Run a container to its end and remove it; what its log says."""
    container = ok(node, "run", "-d", *NONE, *options, "busybox", "sh", "-c", script)
    assert ok(node, "wait", container) == "0", script
    ok(node, "rm", container)
    return container


def data(node: EngineNode, volume: str) -> Path:
    return Path(ok(node, "volume", "inspect", "-f", "{{.Mountpoint}}", volume))


def test_commands_of_the_recordings(node: EngineNode):
    assert ok(node, "volume", "create", "v1") == "v1"
    assert ok(node, "volume", "create", "v1") == "v1"
    tmpfs = ("-o", "type=tmpfs", "-o", "device=tmpfs", "-o", "o=size=1m")
    assert ok(node, "volume", "create", "--driver", "local", *tmpfs, "--label", "a=b", "v2") == "v2"
    nameless = ok(node, "volume", "create")
    assert re.fullmatch("[0-9a-f]{64}", nameless)
    assert refused(node, "volume", "create", "--driver", "nosuch", "v9") == (
        'create v9: error looking up volume plugin nosuch: plugin "nosuch" not found'
    )
    assert refused(node, "volume", "create", "bad name") == (
        'create bad name: "bad name" includes invalid characters for a local volume name, only'
        ' "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use'
        " absolute path"
    )
    listed = ok(node, "volume", "ls").splitlines()
    assert listed == [
        "DRIVER    VOLUME NAME",
        *(f"local     {x}" for x in sorted((nameless, "v1", "v2"))),
    ]
    assert (
        ok(node, "volume", "ls", "-q", "--filter", "dangling=true", "--filter", "name=v1") == "v1"
    )
    assert (
        ok(node, "volume", "ls", "-q", "--filter", "label=a=b", "--filter", "driver=local") == "v2"
    )
    assert refused(node, "volume", "ls", "--filter", "bad=1") == "Invalid filter 'bad'"
    shown = ask(node, "GET", "/v1.41/volumes/v2")[1]
    assert shown.pop("CreatedAt").endswith("Z")
    assert shown == {
        "Driver": "local", "Labels": {"a": "b"}, "Name": "v2", "Scope": "local",
        "Mountpoint": f"{node.state}/volumes/v2/_data",
        "Options": {"device": "tmpfs", "o": "size=1m", "type": "tmpfs"},
    }  # fmt: skip
    assert ask(node, "GET", f"/v1.41/volumes/{nameless}")[1]["Labels"] is None
    assert refused(node, "volume", "inspect", "nosuch") == "get nosuch: no such volume"
    used = ok(node, "run", "-d", "--name", "vu", *NONE, "-v", "v1:/x", "busybox", "sleep", "50")
    assert refused(node, "volume", "rm", "v1") == f"remove v1: volume is in use - [{used}]"
    assert ok(node, "volume", "ls", "-q", "--filter", "dangling=false") == "v1"
    ok(node, "rm", "-f", "vu")
    assert ok(node, "volume", "rm", "v1", "v2") == "v1\nv2"
    assert refused(node, "volume", "rm", "nosuch") == "get nosuch: no such volume"
    assert ok(node, "volume", "rm", "-f", "nosuch") == "nosuch"
    ok(node, "volume", "create", "kept")
    assert nameless in ok(node, "volume", "prune", "-f")
    assert ok(node, "volume", "ls", "-q") == "kept"
    assert "kept" not in ok(node, "volume", "prune", "-a", "-f", "--filter", "label=x")
    assert "kept" in ok(node, "volume", "prune", "-a", "-f")
    status, answer = ask(node, "PUT", "/volumes/kept?version=1", {})
    assert (status, answer["message"][:30]) == (503, "This node is not a swarm manag")


def test_data_outlives_its_containers_and_the_process(node: EngineNode):
    run(node, "echo precious >/data/file; chown 7:8 /data/file", "-v", "keep:/data")
    kill_and_start(node)
    run(node, "grep -qx precious /data/file && stat -c %u:%g /data/file | grep -qx 7:8; ",
        "--mount", "type=volume,source=keep,target=/data,readonly")  # fmt: skip
    run(node, "! touch /data/new", "-v", "keep:/data:ro")
    assert (data(node, "keep") / "file").read_text() == "precious\n"


def test_two_containers_share_what_is_written(node: EngineNode):
    ok(node, "run", "-d", "--name", "one", *NONE, "-v", "shared:/a", "busybox", "sleep", "600")
    run(node, "echo hello >/a/x", "--volumes-from", "one")
    run(node, "! echo hello >/a/y", "--volumes-from", "one:ro")
    assert (data(node, "shared") / "x").read_text() == "hello\n"


def test_image_content_is_copied_up_once(node: EngineNode):
    run(node, "ls -l /bin/sh; test -x /bin/busybox", "-v", "programs:/bin")
    assert os.readlink(data(node, "programs") / "sh") == "busybox"
    (data(node, "programs") / "sed").unlink()
    run(node, "test ! -e /bin/sed", "-v", "programs:/bin")
    run(node, 'test -z "$(ls /etc)"', "-v", "empty:/etc:nocopy")
    (data(node, "empty") / "mine").touch()
    run(node, 'test "$(ls /etc)" = mine', "-v", "empty:/etc")


def test_anonymous_volumes_go_with_their_container_if_asked(node: EngineNode):
    ok(node, "create", "--name", "one", *NONE, "-v", "/data", "-v", "named:/n", "busybox", "true")
    (mount, other) = sorted(
        ask(node, "GET", "/containers/one/json")[1]["Mounts"], key=lambda m: m["Destination"]
    )
    assert (mount["Destination"], mount["Driver"], other["Name"]) == ("/data", "local", "named")
    ok(node, "rm", "one")
    assert mount["Name"] in ok(node, "volume", "ls", "-q")
    ok(node, "create", "--name", "one", *NONE, "-v", "/data", "-v", "named:/n", "busybox", "true")
    ok(node, "rm", "-v", "one")
    assert ok(node, "volume", "ls", "-q").split() == sorted((mount["Name"], "named"))
    ok(node, "run", "-d", "--rm", "--name", "two", *NONE, "-v", "/data", "busybox", "true")
    until(lambda: not ok(node, "ps", "-aq"))
    assert ok(node, "volume", "ls", "-q").split() == sorted((mount["Name"], "named"))


def test_binds(node: EngineNode):
    outside = node.base / "outside"
    run(node, "echo x >/host/file", "-v", f"{outside}:/host")
    assert (outside / "file").read_text() == "x\n"
    run(node, "! touch /host/new", "--mount", f"type=bind,source={outside},target=/host,readonly")
    missing = node.base / "missing"
    text = refused(
        node, "create", *NONE, "--mount", f"type=bind,source={missing},target=/x", "busybox"
    )
    assert text == (
        f'invalid mount config for type "bind": bind source path does not exist: {missing}'
    )
    assert not missing.exists()
    run(node, "grep -q 'tmpfs /scratch tmpfs .*size=64k' /proc/mounts",
        "--mount", "type=tmpfs,target=/scratch,tmpfs-size=65536")  # fmt: skip


def test_mounted_volumes(node: EngineNode):
    ok(
        node,
        "volume",
        "create",
        "-o",
        "type=tmpfs",
        "-o",
        "device=tmpfs",
        "-o",
        "o=size=1m",
        "fast",
    )
    place = str(data(node, "fast"))
    first = ok(
        node, "run", "-d", *NONE, "-v", "fast:/x", "busybox", "sh", "-c", "echo 1 >/x/a; sleep 600"
    )
    until(lambda: os.path.exists(f"{place}/a"))
    run(node, "grep -q 1 /x/a; df -k /x | grep -q 1024", "-v", "fast:/x")
    assert place in kernel.mount_points()
    ok(node, "stop", "-t", "0", first)
    until(lambda: place not in kernel.mount_points())
    options = ("-o", "type=nosuchfs", "-o", "device=x")
    ok(node, "volume", "create", *options, "never")
    text = refused(node, "run", "-d", *NONE, "-v", "never:/x", "busybox", "true")
    assert f"failed to mount local volume: mount x:{data(node, 'never')}: no such device" in text


def test_subpaths_do_not_leave_the_volume(node: EngineNode):
    made = "mkdir -p /v/a/b; echo in >/v/a/b/c; ln -s a /v/in"
    run(node, f"{made}; ln -s /etc /v/out; ln -s ../../.. /v/up", "-v", "tree:/v")

    def at(path: str) -> tuple[str, str]:
        return "--mount", f"type=volume,source=tree,target=/x,volume-subpath={path}"

    run(node, 'test "$(ls /x)" = c', *at("a/b"))
    run(node, "grep -qx in /x", *at("in/b/c"))
    for path in ("out", "up", "up/etc"):
        text = refused(node, "run", "-d", *NONE, *at(path), "busybox", "true")
        assert text == f"volume tree: subpath {path}: leads out of the volume"
    text = "subpath must be a relative path within the volume"
    assert text in refused(node, "create", *NONE, *at("../x"), "busybox", "true")
    assert "no such file or directory" in refused(
        node, "run", "-d", *NONE, *at("no"), "busybox", "true"
    )


def test_links_in_a_volume_lead_nowhere_else(node: EngineNode):
    run(node, "ln -s /etc/passwd /v/link; ln -s / /v/root", "-v", "links:/v")
    script = "test \"$(cat /v/link)\" = 'root:x:0:0:root:/root:/bin/sh' && touch /mnt/inside"
    run(node, script, "-v", "links:/v", "-v", "other:/v/root/mnt")
    assert (data(node, "other") / "inside").exists()
    run(node, "echo escaped >/v/sub/file; ls /v/sub", "-v", "links:/v", "-v", "other:/v/sub")
    assert (data(node, "other") / "file").read_text() == "escaped\n"


def test_events(node: EngineNode):
    before = time.time()
    run(node, "true", "-v", "told:/x")
    ok(node, "volume", "rm", "told")
    span = ("--since", f"{before:.6f}", "--until", f"{time.time() + 0.1:.6f}")
    words = ("--filter", "type=volume", "--format", "{{.Action}} {{.Actor.ID}}")
    assert ok(node, "events", *span, *words).splitlines() == [
        "create told",
        "mount told",
        "unmount told",
        "destroy told",
    ]


def test_volumes_of_a_container_whose_record_is_damaged_are_kept(node: EngineNode):
    made = ok(node, "create", *NONE, "-v", "kept:/x", "busybox", "true")
    record = node.state / f"engine/containers/{made}.json"
    whole = record.read_bytes()
    node.stop()
    record.write_bytes(whole[:-10])
    node.start()
    assert ok(node, "ps", "-aq") == ""
    assert refused(node, "volume", "rm", "kept") == f"remove kept: volume is in use - [{made}]"
    assert "kept" not in ok(node, "volume", "prune", "-a", "-f")
    node.stop()
    record.write_bytes(whole)
    node.start()
    ok(node, "rm", made)


def kill_and_start(node: EngineNode) -> None:
    node.stop(signal.SIGKILL)
    node.socket.unlink(missing_ok=True)
    node.start()


def kill_while(node: EngineNode, method: str, path: str, body: object, pause_s: float) -> None:
    """Ask for something and kill the process after a pause; start it again."""

    def attempt() -> None:
        try:
            ask(node, method, path, body)
        except OSError:
            return

    client = threading.Thread(target=attempt)
    client.start()
    time.sleep(pause_s)
    kill_and_start(node)
    client.join()


@pytest.mark.parametrize("pause_s", PAUSES_S[1:])  # the next test makes and removes volumes, too
def test_killed_while_a_volume_is_made_or_removed(node: EngineNode, pause_s: float):
    kill_while(node, "POST", "/volumes/create", {"Name": "v1", "Labels": {"a": "b"}}, pause_s)
    there = ok(node, "volume", "ls", "-q")
    assert there in {"", "v1"}
    ok(node, "volume", "create", "--label", "a=b", "v1")
    assert ask(node, "GET", "/volumes/v1")[1]["Labels"] == {"a": "b"}
    for number in range(100):
        (data(node, "v1") / f"file{number}").touch()
    kill_while(node, "DELETE", "/volumes/v1", None, pause_s)
    left = ok(node, "volume", "ls", "-q")
    if left:
        assert len(list(data(node, "v1").iterdir())) == 100
    assert [path.name for path in (node.state / "volumes").iterdir()] == left.split()


@pytest.mark.parametrize("pause_s", PAUSES_S)
def test_killed_while_a_container_with_volumes_is_made_or_removed(node: EngineNode, pause_s: float):
    body = {
        "Image": "busybox", "Cmd": ["sh", "-c", "test -x /bin/busybox && test -e /bin/sed"],
        "Volumes": {"/data": {}},
        "HostConfig": {"NetworkMode": "none", "Binds": ["programs:/bin"]},
    }  # fmt: skip
    kill_while(node, "POST", "/containers/create?name=web", body, pause_s)
    if ask(node, "GET", "/containers/web/json")[0] == 404:
        ask(node, "POST", "/containers/create?name=web", body)
    ok(node, "start", "web")
    assert ok(node, "wait", "web") == "0"  # all of the image's content is in the volume
    names = {m["Name"] for m in ask(node, "GET", "/containers/web/json")[1]["Mounts"]}
    kill_while(node, "DELETE", "/containers/web?v=1", None, pause_s)
    ask(node, "DELETE", "/containers/web?v=1")  # where the first one had not even arrived
    until(lambda: ask(node, "GET", "/containers/web/json")[0] == 404)
    assert names & set(ok(node, "volume", "ls", "-q").split()) == {"programs"}
