"""The life of containers through the real docker command line and raw requests."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.integration.engine.daemon import EngineNode
from tests.integration.engine.seeded import (
    UnixConnection,
    ask,
    ok,
    refused,
    remains,
    seeded_node,
    state_of,
    until,
)

pytestmark = pytest.mark.root
MAKE_NODE = seeded_node
NONE = ("--network", "none")


@pytest.fixture(autouse=True)
def nothing_left(node: EngineNode) -> Iterator[None]:
    yield
    found = ok(node, "ps", "-aq").split()
    if found:
        ok(node, "rm", "-f", *found)
    until(lambda: not remains(node))


def run(node: EngineNode, name: str, *command: str, options: tuple[str, ...] = ()) -> str:
    return ok(node, "run", "-d", "--name", name, *NONE, *options, "busybox", *command)


def test_from_creation_to_removal(node: EngineNode):
    made = ok(node, "create", "--name", "one", *NONE, "-l", "x=y", "busybox", "sleep", "600")
    assert len(made) == 64
    assert state_of(node, "one")["Status"] == "created"
    assert ok(node, "start", "one") == "one"
    state = state_of(node, made[:12])
    assert state["Running"]
    assert Path(f"/proc/{state['Pid']}").exists()
    assert refused(node, "rm", "one") == (
        f"You cannot remove a running container {made}. Stop the container before attempting"
        " removal or force remove"
    )
    assert ok(node, "stop", "-t", "0", "one") == "one"
    ended = state_of(node, "one")
    assert (ended["Status"], ended["ExitCode"], ended["Pid"]) == ("exited", 137, 0)
    assert ok(node, "wait", "one") == "137"
    assert ok(node, "rm", "one") == "one"
    assert refused(node, "start", "one") == "No such container: one"


def test_list_words(node: EngineNode):
    run(node, "up", "sleep", "600", options=("-l", "tier=web"))
    run(node, "down", "sh", "-c", "exit 3")
    ok(node, "wait", "down")
    (up,) = ask(node, "GET", "/v1.45/containers/json")[1]
    assert up["Names"] == ["/up"]
    assert up["Command"] == "sleep 600"
    assert up["State"] == "running"
    assert up["Status"].startswith("Up ")
    assert up["Labels"] == {"tier": "web"}
    assert up["HostConfig"] == {"NetworkMode": "none"}
    assert up["Ports"] == []
    both = ask(node, "GET", "/containers/json?all=1&size=1")[1]
    assert [one["Names"] for one in both] == [["/down"], ["/up"]]
    assert both[0]["Status"].startswith("Exited (3) ")
    assert both[0]["SizeRootFs"] > 1_000_000
    assert ok(node, "ps", "-aq", "--filter", "exited=3", "--no-trunc") == both[0]["Id"]
    assert ok(node, "ps", "-q", "--filter", "ancestor=busybox", "--no-trunc") == up["Id"]
    assert refused(node, "ps", "--filter", "bad=1") == "Invalid filter 'bad'"
    assert ok(node, "ps", "-a", "--format", "{{.Names}}", "-n", "1") == "down"


def test_what_compose_asks(node: EngineNode):
    run(node, "up", "sleep", "600", options=("-l", "com.docker.compose.project=p"))
    filters = '{"label":["com.docker.compose.project=p"]}'
    path = f"/v1.41/containers/json?limit=-1&all=1&size=0&trunc_cmd=0&filters={filters}"
    assert [one["Names"] for one in ask(node, "GET", path)[1]] == [["/up"]]


def test_names(node: EngineNode):
    first = run(node, "one", "sleep", "600")
    conflict = (
        f'Conflict. The container name "/one" is already in use by container "{first}". You have to'
        " remove (or rename) that container to be able to reuse that name."
    )
    assert refused(node, "create", "--name", "one", *NONE, "busybox") == conflict
    ok(node, "create", "--name", "two", *NONE, "busybox")
    assert refused(node, "rename", "two", "one") == f"Error when allocating new name: {conflict}"
    ok(node, "rename", "two", "three")
    assert refused(node, "inspect", "--type", "container", "two") == "No such container: two"
    ok(node, "rename", "one", "two")
    assert state_of(node, "two")["Running"]
    text = "Invalid container name (u), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
    assert refused(node, "create", "--name", "u", *NONE, "busybox") == text
    assert ok(node, "create", *NONE, "busybox") in ok(node, "ps", "-aq", "--no-trunc")


def test_pause_kill_restart(node: EngineNode):
    made = run(node, "one", "sleep", "600")
    ok(node, "pause", "one")
    assert state_of(node, "one")["Status"] == "paused"
    assert refused(node, "pause", "one") == f"Container {made} is already paused"
    assert refused(node, "start", "one") == "cannot start a paused container, try unpause instead"
    ok(node, "unpause", "one")
    before = state_of(node, "one")["Pid"]
    ok(node, "restart", "-t", "0", "one")
    assert state_of(node, "one")["Pid"] != before
    ok(node, "kill", "one")
    assert refused(node, "kill", "one") == (
        f"Cannot kill container: one: Container {made} is not running"
    )
    assert refused(node, "kill", "-s", "ODD", "one") == "Invalid signal: ODD"


def test_nothing_to_do_is_304(node: EngineNode):
    run(node, "one", "sleep", "600")
    assert ask(node, "POST", "/containers/one/start")[0] == 304
    assert ask(node, "POST", "/containers/one/stop?t=0")[0] == 204
    assert ask(node, "POST", "/containers/one/stop")[0] == 304


def test_the_stop_signal_is_the_container_s(node: EngineNode):
    script = "trap 'exit 5' USR1; while :; do sleep 0.05; done"
    run(node, "one", "sh", "-c", script, options=("--stop-signal", "SIGUSR1"))
    until(lambda: state_of(node, "one")["Running"])
    ok(node, "stop", "-t", "30", "one")
    assert state_of(node, "one")["ExitCode"] in {5, 138}  # 138: before the trap was set


def test_starts_that_fail(node: EngineNode):
    for command, code, text in (
        ("/nosuch", 127, 'exec: "/nosuch": stat /nosuch: no such file or directory'),
        ("nosuch", 127, 'exec: "nosuch": executable file not found in $PATH'),
        ("/etc", 126, 'exec: "/etc": is a directory'),
    ):
        ran = node.docker("run", "-d", "--name", "bad", *NONE, "busybox", command)
        assert ran.code == code
        assert f"unable to start container process: {text}: unknown" in ran.err
        state = state_of(node, "bad")
        assert (state["Status"], state["ExitCode"], state["Running"]) == ("created", code, False)
        assert text in state["Error"]
        ok(node, "rm", "bad")


def test_a_failed_start_of_a_container_to_be_removed(node: EngineNode):
    assert node.docker("run", "-d", "--rm", *NONE, "busybox", "/nosuch").code == 127
    until(lambda: not ok(node, "ps", "-aq"))


def test_removed_at_its_end_and_waited_for(node: EngineNode):
    made = ok(node, "create", "--rm", *NONE, "busybox", "sh", "-c", "sleep 0.2; exit 4")
    ended = []
    path = f"/containers/{made}/wait?condition=removed"
    waiter = threading.Thread(target=lambda: ended.append(ask(node, "POST", path)))
    waiter.start()
    ok(node, "start", made)
    waiter.join()
    assert ended == [(200, {"StatusCode": 4, "Error": None})]
    assert ask(node, "GET", f"/containers/{made}/json")[0] == 404


def test_restart_policies(node: EngineNode):
    run(node, "twice", "false", options=("--restart", "on-failure:2"))
    until(
        lambda: (
            ok(node, "inspect", "-f", "{{.RestartCount}}{{.State.Running}}", "twice") == "2false"
        )
    )
    run(node, "always", "false", options=("--restart", "always"))
    until(lambda: int(ok(node, "inspect", "-f", "{{.RestartCount}}", "always")) > 2)
    ok(node, "stop", "always")
    state = state_of(node, "always")
    assert (state["Status"], state["Restarting"]) == ("exited", False)
    count = ok(node, "inspect", "-f", "{{.RestartCount}}", "always")
    ok(node, "update", "--restart", "no", "always")
    ok(node, "start", "always")
    assert ok(node, "wait", "always") == "1"
    assert ok(node, "inspect", "-f", "{{.RestartCount}}", "always") == count


def test_what_runs_gets_what_was_asked(node: EngineNode):
    script = (
        'test "$A$FROM" = 1image && test "$(hostname)" = hh && grep -q "1.2.3.4.*foo" /etc/hosts'
        " && test $(pwd) = /tmp && ! touch /x && touch /t/y && test $(ulimit -n) = 100"
        " && test $(cat /proc/self/oom_score_adj) = 10 && exit 42"
    )
    run(
        node, "one", "sh", "-c", script,
        options=(
            "-e", "A=1", "--hostname", "hh", "--add-host", "foo:1.2.3.4", "-w", "/tmp",
            "--read-only", "--mount", "type=tmpfs,target=/t,tmpfs-size=1m", "--oom-score-adj", "10",
            "--ulimit", "nofile=100:200", "-m", "64m", "--cpus", "0.5", "--pids-limit", "50",
        ),
    )  # fmt: skip
    assert ok(node, "wait", "one") == "42"
    (words,) = json.loads(ok(node, "inspect", "one"))
    assert words["HostConfig"]["Memory"] == 64 << 20
    assert words["HostConfig"]["MemorySwap"] == 128 << 20
    assert words["HostConfig"]["Ulimits"] == [{"Name": "nofile", "Hard": 200, "Soft": 100}]
    assert words["Mounts"] == [
        {"Type": "tmpfs", "Source": "", "Destination": "/t", "Mode": "", "RW": True,
         "Propagation": ""}
    ]  # fmt: skip
    assert words["Config"]["Env"] == ["A=1", "FROM=image"]


def test_binds(node: EngineNode):
    source = node.base / "made-for-it"
    run(node, "one", "touch", "/data/file", options=("-v", f"{source}:/data"))
    assert ok(node, "wait", "one") == "0"
    assert (source / "file").exists()
    missing = f"type=bind,source={node.base}/missing,target=/data"
    text = refused(node, "run", "-d", *NONE, "--mount", missing, "busybox", "true")
    assert text == (
        'invalid mount config for type "bind": bind source path does not exist:'
        f" {node.base}/missing"
    )


def test_a_network_namespace_is_shared(node: EngineNode):
    run(node, "one", "sleep", "600")
    options = ("--network", "container:one")
    ok(node, "run", "-d", "--name", "two", *options, "busybox", "sleep", "600")
    first, second = (state_of(node, name)["Pid"] for name in ("one", "two"))
    assert Path(f"/proc/{first}/ns/net").readlink() == Path(f"/proc/{second}/ns/net").readlink()
    ok(node, "rm", "-f", "one")
    ok(node, "stop", "-t", "0", "two")
    assert refused(node, "start", "two") == "No such container: one"


def test_bad_requests(node: EngineNode):
    for body, status, text in (
        ({"Image": "nosuch"}, 404, "No such image: nosuch:latest"),
        ({"Image": "busybox", "HostConfig": {"Memory": 1}}, 400,
         "Minimum memory limit allowed is 6MB"),
        ({"Image": "busybox", "HostConfig": {"LogConfig": {"Type": "asdf"}}}, 400,
         "logger: no log driver named 'asdf' is registered"),
        ({"Image": "busybox", "hostconfig": {"KernelMemory": 99999999}}, 501,
         "KernelMemory: not possible on this node: the kernel has given this limit up"),
    ):  # fmt: skip
        assert ask(node, "POST", "/containers/create", body) == (status, {"message": text})
    assert not remains(node)


def test_prune(node: EngineNode):
    kept = run(node, "up", "sleep", "600")
    gone = run(node, "down", "true", options=("-l", "a=b"))
    ok(node, "wait", "down")
    assert ask(node, "POST", '/containers/prune?filters={"label":["c"]}')[1] == {
        "ContainersDeleted": None, "SpaceReclaimed": 0,
    }  # fmt: skip
    assert ask(node, "POST", '/containers/prune?filters={"label!":["c"]}')[1][
        "ContainersDeleted"
    ] == [gone]
    assert ok(node, "ps", "-aq", "--no-trunc") == kept


def test_events(node: EngineNode):
    made = run(node, "one", "sh", "-c", "exit 3", options=("-l", "k=v"))
    ok(node, "wait", "one")
    ok(node, "rm", "one")
    filters = quote(json.dumps({"container": [made]}))
    connection = UnixConnection(str(node.socket))
    connection.request("GET", f"/events?since=1&until={time.time():.9f}&filters={filters}")
    events = [json.loads(line) for line in connection.getresponse().read().splitlines()]
    connection.close()
    assert [one["Action"] for one in events] == ["create", "start", "die", "destroy"]
    about = {"image": "busybox", "name": "one", "k": "v"}
    assert events[0]["Actor"]["Attributes"] == about
    assert events[2]["Actor"]["Attributes"] == about | {"exitCode": "3"}


def test_containers_run_on_while_the_process_is_restarted(node: EngineNode):
    run(node, "on", "sleep", "600")
    run(node, "ends", "sh", "-c", "while [ ! -e /go ]; do sleep 0.05; done; exit 6")
    run(node, "stopped", "sleep", "600", options=("--restart", "unless-stopped"))
    run(node, "again", "sleep", "600", options=("--restart", "always"))
    ok(node, "stop", "-t", "0", "stopped", "again")
    pid = state_of(node, "on")["Pid"]
    ended = state_of(node, "ends")["Pid"]
    node.stop()
    Path(f"/proc/{ended}/root/go").touch()
    until(lambda: not Path(f"/proc/{ended}").exists())
    node.start()
    assert state_of(node, "on")["Pid"] == pid
    assert ok(node, "wait", "ends") == "6"
    assert state_of(node, "stopped")["Status"] == "exited"
    until(lambda: state_of(node, "again")["Status"] == "running")
    ok(node, "stop", "-t", "0", "on")
    assert state_of(node, "on")["ExitCode"] == 137
