"""`docker service` against a lab: services are made, changed, scaled and followed with the CLI."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import pty
import shutil
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker as docker_py
import pytest
from docker.types import EndpointSpec, Resources, RestartPolicy, ServiceMode, UpdateConfig

from engine.cluster.client import ClusterClient
from engine.cluster.registry_auth import auth_of
from tests.integration.cluster.docker_cli import command, docker, environment, output, socket_of
from tests.integration.cluster.lab import Lab, eventually

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("docker") is None, reason="the docker command is missing"),
]
SLEEPER = ("web:1", "sleep", "1000")
LOCAL = "--no-resolve-image"
AUTH = base64.urlsafe_b64encode(b'{"username":"one","password":"p1"}').decode()
OTHER = base64.urlsafe_b64encode(b'{"username":"two","password":"p2"}').decode()
AT_ONCE = (LOCAL, "--stop-grace-period", "0s")
"""What does not heed signals is not waited for."""


@pytest.fixture
def name(lab: Lab, request: pytest.FixtureRequest) -> Iterator[str]:
    """A name for the test's service, which is removed afterwards."""
    chosen = request.node.originalname.removeprefix("test_").replace("_", "-")[:40].strip("-")
    yield chosen
    docker(lab, "m1", "service", "rm", chosen)


def spec_of(lab: Lab, name: str) -> dict[str, Any]:
    """The service's spec as the command shows it: what Docker knows."""
    return json.loads(output(lab, "service", "inspect", name))[0]["Spec"]


def running(lab: Lab, name: str, count: int) -> set[str]:
    """The service's tasks once there are so many that run, and no others are to run."""
    words = ("--no-trunc", "--filter", "desired-state=running")
    found: set[str] = set()

    def are_there() -> bool:
        shown = output(lab, "service", "ps", name, *words, "--format", "{{.ID}} {{.CurrentState}}")
        states = dict(line.split(maxsplit=1) for line in shown.splitlines())
        found.clear()
        found.update(states)
        return len(states) == count and all(one.startswith("Running") for one in states.values())

    eventually(f"{count} tasks of {name} run", are_there)
    return found


def on_terminal(lab: Lab, *words: str) -> str:
    """What a command at the manager draws on a terminal; it must succeed."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 160))
    with (
        open(ours, "rb", buffering=0) as screen,
        subprocess.Popen(
            command(lab, "m1", *words),
            stdin=subprocess.DEVNULL, stdout=theirs, env=environment(lab),
        ) as running,
    ):  # fmt: skip
        os.close(theirs)
        drawn = b""
        try:
            while piece := screen.read(65536):
                drawn += piece
        except OSError:  # nobody has the other end any more
            pass
        assert running.wait(timeout=40) == 0, drawn
    return drawn.decode()


def test_created_scaled_updated_and_rolled_back_attached(lab: Lab, name: str):
    fast = ("--update-parallelism", "0", "--update-monitor", "1s", LOCAL)
    create = ("service", "create", "--name", name, "--replicas", "2", "--stop-grace-period", "0s")
    made = on_terminal(lab, *create, *fast, *SLEEPER)
    for text in ("overall progress: 2 out of 2 tasks", "1/2: running   [=======", "converged"):
        assert text in made
    shown = output(lab, "service", "ls", "--filter", f"name={name}", "--format", "{{.Replicas}}")
    assert shown == "2/2\n"
    before = running(lab, name, 2)
    assert output(lab, "service", "scale", "-d", f"{name}=3") == f"{name} scaled to 3\n"
    assert before < running(lab, name, 3)  # nobody restarts for it
    changed = output(
        lab, "service", "update", "--env-add", "N=1", "--label-add", "q=1", LOCAL, name
    )
    assert "converged" in changed
    second = running(lab, name, 3)
    assert not before & second
    assert spec_of(lab, name)["TaskTemplate"]["ContainerSpec"]["Env"] == ["N=1"]
    assert output(lab, "service", "update", "--force", LOCAL, "-q", name) == f"{name}\n"
    assert not second & running(lab, name, 3)
    assert spec_of(lab, name)["TaskTemplate"]["ForceUpdate"] == 1
    output(lab, "service", "rollback", "-d", name)
    assert spec_of(lab, name)["TaskTemplate"]["ForceUpdate"] == 0


FULL = """--network name=%NET,alias=fa --secret source=%SEC,target=/x/s,uid=1,gid=2,mode=0400
 --config source=%CON,target=/c2,mode=0444 -e A=1 --label sl=1 --container-label cl=1
 --constraint node.role==worker --placement-pref spread=node.labels.zone
 --replicas-max-per-node 2 --limit-cpu .5 --limit-memory 64m --limit-pids 50 --reserve-cpu .1
 --reserve-memory 16m --restart-condition on-failure --restart-delay 2s --restart-max-attempts 3
 --restart-window 20s --update-parallelism 2 --update-delay 1s --update-failure-action rollback
 --update-monitor 2s --update-max-failure-ratio .2 --update-order stop-first
 --rollback-parallelism 1 --rollback-delay 1s --rollback-failure-action pause
 --rollback-monitor 1s --rollback-max-failure-ratio .1 --rollback-order stop-first
 --endpoint-mode vip --publish published=18090,target=80,protocol=tcp,mode=host
 --hostname h-{{.Task.Slot}} --host foo:1.2.3.4 --dns 127.0.0.1 --dns-search d
 --dns-option ndots:1 --mount type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1777
 --mount type=bind,source=/tmp,target=/htmp,readonly
 --mount type=volume,source=sv,target=/v,volume-driver=local,volume-label=a=b
 --stop-signal SIGKILL
 --stop-grace-period 0s --user 0:0 --workdir /tmp --group 5 --read-only --tty --init
 --isolation default --log-driver json-file --log-opt max-size=1m --health-cmd true
 --health-interval 2s --health-timeout 1s --health-retries 2 --health-start-period 1s
 --cap-add NET_ADMIN --cap-drop MKNOD --sysctl net.core.somaxconn=99 --ulimit nofile=100:200
 --entrypoint /bin/sh"""


@pytest.fixture
def parts(lab: Lab) -> Iterator[dict[str, str]]:
    """A network, a secret and a config."""
    names = {"NET": "svc-net", "SEC": "svc-sec", "CON": "svc-con"}
    output(lab, "network", "create", "-d", "overlay", names["NET"])
    file = lab.base / "content"
    file.write_text("content")
    output(lab, "secret", "create", names["SEC"], str(file))
    output(lab, "config", "create", names["CON"], str(file))
    yield names
    for kind, key in (("network", "NET"), ("secret", "SEC"), ("config", "CON")):
        gone = (kind, "rm", names[key])
        eventually(f"{kind} is removed", lambda gone=gone: docker(lab, "m1", *gone)[0] == 0)


def test_every_flag_is_followed_and_comes_back(lab: Lab, name: str, parts: dict[str, str]):
    words = FULL
    for key, value in parts.items():
        words = words.replace(f"%{key}", value)
    create = ("service", "create", "-d", "--name", name, LOCAL, *words.split())
    try:
        output(lab, *create, "web:1", "-c", "sleep 1000")
        spec = spec_of(lab, name)
        assert spec["TaskTemplate"]["ContainerSpec"]["Hosts"] == ["1.2.3.4 foo"]
        assert spec["TaskTemplate"]["RestartPolicy"]["Delay"] == 2_000_000_000
        tasks = running(lab, name, 1)
        output(lab, "service", "update", "--label-add", "x=y", "-d", LOCAL, name)
        output(lab, "service", "update", "--label-rm", "x", "-d", LOCAL, name)
        assert spec_of(lab, name) == spec  # also to the command, which sends back all it was shown
        assert running(lab, name, 1) == tasks
        pretty = output(lab, "service", "inspect", "--pretty", name)
        for text in (*parts.values(), "somaxconn", "18090", "spread=node.labels.zone"):
            assert text in pretty
    finally:
        docker(lab, "m1", "service", "rm", name)


ADDED = """--publish-add 18096:80 --network-add %NET --secret-add %SEC --config-add %CON
 --mount-add type=tmpfs,target=/q --constraint-add node.role==worker --host-add a:1.1.1.1
 --dns-add 1.1.1.1 --dns-search-add d --dns-option-add ndots:2 --env-add N=1 --label-add q=1
 --container-label-add r=2 --group-add 7 --cap-add NET_ADMIN --sysctl-add net.core.somaxconn=9
 --ulimit-add nofile=100:200 --placement-pref-add spread=node.labels.zone"""
REMOVED = """--publish-rm 80 --network-rm %NET --secret-rm %SEC --config-rm %CON --mount-rm /q
 --constraint-rm node.role==worker --host-rm a:1.1.1.1 --dns-rm 1.1.1.1 --dns-search-rm d
 --dns-option-rm ndots:2 --env-rm N --label-rm q --container-label-rm r --group-rm 7
 --cap-drop NET_ADMIN --cap-add ALL --sysctl-rm net.core.somaxconn --ulimit-rm nofile
 --placement-pref-rm spread=node.labels.zone"""
CHANGED = """--image web:2 --args x --replicas 0 --limit-memory 64m --limit-cpu .5
 --reserve-memory 8m --health-cmd true --health-retries 3 --stop-grace-period 3s
 --stop-signal SIGINT --user 1 --workdir /w --hostname h --init --read-only --tty
 --restart-condition none --update-delay 1s --update-order start-first --rollback-parallelism 2
 --log-driver json-file --log-opt max-size=1m --endpoint-mode vip --replicas-max-per-node 2
 --entrypoint sh"""


def test_every_flag_of_an_update(lab: Lab, name: str, parts: dict[str, str]):
    def words(flags: str) -> list[str]:
        for key, value in parts.items():
            flags = flags.replace(f"%{key}", value)
        return flags.split()

    update = ("service", "update", "-d", "-q", LOCAL)
    try:
        output(lab, "service", "create", "-d", "--name", name, "--replicas", "0", LOCAL, "web:1")
        before = spec_of(lab, name)
        output(lab, *update, *words(ADDED), name)
        task = spec_of(lab, name)["TaskTemplate"]
        container = task["ContainerSpec"]
        assert container["Hosts"] == ["1.1.1.1 a"]
        assert container["Sysctls"] == {"net.core.somaxconn": "9"}
        assert [one["SecretName"] for one in container["Secrets"]] == [parts["SEC"]]
        assert task["Placement"]["Constraints"] == ["node.role==worker"]
        output(lab, *update, *words(REMOVED), name)
        after = spec_of(lab, name)
        assert after["TaskTemplate"]["ContainerSpec"].pop("CapabilityAdd") == ["ALL"]
        assert after == before
        output(lab, *update, *words(CHANGED), name)
        spec = spec_of(lab, name)
        assert spec["TaskTemplate"]["ContainerSpec"]["Image"] == "web:2"
        assert spec["TaskTemplate"]["Resources"]["Limits"] == {
            "NanoCPUs": 500_000_000, "MemoryBytes": 64 << 20,
        }  # fmt: skip
        assert spec["UpdateConfig"]["Order"] == "start-first"
    finally:
        docker(lab, "m1", "service", "rm", name)


def test_what_is_ours_alone_survives_the_docker_command(lab: Lab, name: str):
    lab.swarmctl(
        "service", "create", "-d", "--name", name, "--drain-timeout", "7s", "--listen-timeout",
        "9s", "--placement-pref", "prefer=node.role==worker", "-p",
        "published=18091,target=80,sticky=true", "web:1",
    )  # fmt: skip
    tasks = running(lab, name, 1)
    before = json.loads(lab.swarmctl("service", "inspect", name))[0]["Spec"]
    assert before["EndpointSpec"]["Ports"][0]["Sticky"]
    output(lab, "service", "scale", "-d", f"{name}=2")
    after = json.loads(lab.swarmctl("service", "inspect", name))[0]["Spec"]
    assert after == {**before, "Mode": {"Replicated": {"Replicas": 2}}}
    assert tasks < running(lab, name, 2)
    assert "Placement" in output(lab, "service", "inspect", "--pretty", name)
    spread = "spread=node.labels.zone"
    for flag in ("--placement-pref-add", "--placement-pref-rm"):
        output(lab, "service", "update", "-d", LOCAL, flag, spread, name)
        shown = json.loads(lab.swarmctl("service", "inspect", name))[0]["Spec"]
        placement = shown["TaskTemplate"]["Placement"]
        assert {"Prefer": "node.role==worker"} in placement["Preferences"]
        assert len(placement["Preferences"]) == 1 + flag.endswith("add")
    assert shown == after


def test_modes(lab: Lab, name: str):
    try:
        every = ("--mode", "global", *AT_ONCE)
        output(lab, "service", "create", "-d", "--name", name, *every, *SLEEPER)
        running(lab, name, 3)
        listed = ("--filter", "mode=global", "--format", "{{.Mode}} {{.Replicas}}")
        assert output(lab, "service", "ls", *listed) == "global 3/3\n"
        job = ("--mode", "replicated-job", "--replicas", "3", "--max-concurrent", "2")
        done = output(lab, "service", "create", "--name", "rj", *job, LOCAL, "web:1", "echo", "x")
        assert "job complete" in done
        output(lab, "service", "create", "--name", "gj", "--mode", "global-job", LOCAL, "web:1",
               "echo", "x")  # fmt: skip
        code, _, err = docker(lab, "m1", "service", "scale", f"{name}=2")
        assert (code, "scale can only be used with replicated" in err) == (1, True)
    finally:
        docker(lab, "m1", "service", "rm", "rj", "gj")


def test_refusals(lab: Lab, name: str):
    output(lab, "service", "create", "-d", "--name", name, *AT_ONCE, *SLEEPER)
    identifier = output(lab, "service", "inspect", "--format", "{{.ID}}", name).strip()
    rpc = "Error response from daemon: rpc error: code ="
    for words, text in {
        ("create", "--name", name, LOCAL, "web:1"): f"{rpc} AlreadyExists desc = name conflicts"
        f" with an existing object: service {name} already exists",
        ("rollback", name): f"{rpc} FailedPrecondition desc = service {identifier} does not have"
        " a previous spec",
        ("update", "nosuch"): "Error response from daemon: service nosuch not found",
        ("create", LOCAL, "--limit-memory", "1k", "web:1"): f"{rpc} InvalidArgument desc =",
        ("create", LOCAL, "--credential-spec", "file://x", "web:1"): "credential spec",
    }.items():
        code, _, err = docker(lab, "m1", "service", *words)
        assert (code, text in err) == (1, True), err


def test_logs_are_followed_through_the_replacement_of_a_task(lab: Lab, name: str):
    script = "echo begun; sleep 1000"
    output(lab, "service", "create", "-d", "--name", name, *AT_ONCE, "web:1", "sh", "-c", script)
    (first,) = running(lab, name, 1)
    heard = lab.base / "heard"
    words = command(lab, "m1", "service", "logs", "-f", "--no-trunc", name)
    with (
        heard.open("wb") as sink,
        subprocess.Popen(words, stdout=sink, env=environment(lab)) as follower,
    ):
        try:
            eventually("the first is heard", lambda: first in heard.read_text())
            output(lab, "service", "update", "--force", "-d", LOCAL, name)
            eventually("the second is heard", lambda: heard.read_text().count("begun") == 2)
            assert follower.poll() is None
        finally:
            follower.kill()


def test_docker_py_makes_changes_and_follows_services(lab: Lab, name: str):
    client = docker_py.DockerClient(
        base_url=f"unix://{socket_of(lab, 'm1')}", version="auto", timeout=60
    )
    try:
        made = client.services.create(
            "web:1", ["sh", "-c", "echo said; exec httpd -f -p 80"], name=name, labels={"a": "b"},
            env=["A=1"], stop_signal="SIGKILL", mode=ServiceMode("replicated", 1),
            resources=Resources(mem_limit=64 << 20),
            endpoint_spec=EndpointSpec(ports={18092: (80, "tcp", "host")}),
            restart_policy=RestartPolicy("on-failure", delay=1_000_000_000),
            update_config=UpdateConfig(parallelism=0, monitor=1_000_000_000, order="stop-first"),
        )  # fmt: skip
        running(lab, name, 1)
        assert made.attrs["Spec"]["UpdateConfig"]["Monitor"] == 1_000_000_000
        assert made.scale(2)
        # Two tasks cannot have one port of a node, but there are two nodes more.
        before = running(lab, name, 2)
        heard = b"".join(made.logs(stdout=True))
        assert heard == b"said\nsaid\n"
        made.reload()
        assert made.update(labels={"a": "c"}, fetch_current_spec=True) == {"Warnings": None}
        assert running(lab, name, 2) == before
        states = {task["ID"] for task in made.tasks({"desired-state": "running"})}
        assert states == before
        made.reload()
        assert made.force_update()
        eventually("others run", lambda: not before & running(lab, name, 2))
        found = client.services.list(filters={"label": "a=c"})
        assert [one.name for one in found] == [name]
        with pytest.raises(docker_py.errors.APIError, match="out of sequence") as refused:
            client.api.update_service(name, 1, name=name, task_template={"ContainerSpec": {
                "Image": "web:1"}})  # fmt: skip
        assert refused.value.status_code == 500
        made.remove()
    finally:
        client.close()


def test_credentials_are_kept_until_others_come_and_are_never_shown(lab: Lab, name: str):
    client = docker_py.APIClient(base_url=f"unix://{socket_of(lab, 'm1')}", version="auto")
    url = client._url("/services/{0}", name)
    spec = {"Name": name, "Mode": {"Replicated": {"Replicas": 0}},
            "TaskTemplate": {"ContainerSpec": {"Image": "web:1"}}}  # fmt: skip

    def update(auth: str = "", **query: str) -> int:
        shown = client.inspect_service(name)
        assert "PullOptions" not in json.dumps(shown)
        assert AUTH not in json.dumps(shown)
        query["version"] = shown["Version"]["Index"]
        headers = {"X-Registry-Auth": auth} if auth else {}
        return client._post_json(
            f"{url}/update", data=shown["Spec"], params=query, headers=headers
        ).status_code

    try:
        client._post_json(
            client._url("/services/create"), data=spec, headers={"X-Registry-Auth": AUTH}
        ).raise_for_status()
        assert update() == 200
        assert _auth(lab, name) == AUTH
        assert update(OTHER) == 200
        assert _auth(lab, name) == OTHER
        assert update(registryAuthFrom="previous-spec") == 200
        assert _auth(lab, name) == AUTH
        assert update(registryAuthFrom="nowhere") == 400
    finally:
        client.close()


def _auth(lab: Lab, name: str) -> str:
    """The credentials that managers have for the service."""

    async def read() -> str:
        client = ClusterClient(Path(lab.socket("m1").removeprefix("unix://")))
        try:
            return auth_of(await client.service(name), "")
        finally:
            await client.close()

    return asyncio.run(read())
