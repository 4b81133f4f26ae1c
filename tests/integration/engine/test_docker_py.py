"""docker-py, the client Docker itself publishes for Python, against a node: its public API."""

from __future__ import annotations

import io
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from docker import errors, types

from tests.integration.engine.daemon import DEADLINE_S, EngineNode
from tests.integration.engine.seeded import remains, seeded_node, until

pytestmark = [
    pytest.mark.root,
    # docker-py leaves the connections it has taken over to the garbage collector
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
TALK = "i=0; while :; do echo line$i; i=$((i+1)); sleep 0.1; done"


@pytest.fixture(scope="module")
def node() -> Iterator[EngineNode]:
    made = seeded_node()
    try:
        made.start()
        yield made
        until(lambda: not remains(made))
    finally:
        made.close()


@pytest.fixture
def client(node: EngineNode) -> Iterator[docker.DockerClient]:
    made = docker.DockerClient(base_url=f"unix://{node.socket}", timeout=int(DEADLINE_S))
    try:
        yield made
        for container in made.containers.list(all=True):
            container.remove(force=True, v=True)
    finally:
        made.close()


# The node -----------------------------------------------------------------------------------


def test_the_node(client):
    assert client.ping()
    assert client.version()["ApiVersion"] == client.api.api_version == "1.45"
    client.containers.create("busybox")
    assert client.info()["Containers"] == 1
    usage = client.df()
    assert len(usage["Containers"]) == 1
    assert usage["Images"][0]["RepoTags"] == ["busybox:latest"]


# Containers ---------------------------------------------------------------------------------


def test_run(client):
    assert client.containers.run("busybox", ["echo", "hi"], remove=True) == b"hi\n"
    both = client.containers.run(
        "busybox", ["sh", "-c", "echo o; echo e >&2"], stdout=True, stderr=True, remove=True
    )
    assert sorted(both.split()) == [b"e", b"o"]
    lines = client.containers.run("busybox", ["seq", "3"], stream=True)
    assert b"".join(lines) == b"1\n2\n3\n"
    with pytest.raises(errors.ContainerError) as failed:
        client.containers.run("busybox", ["sh", "-c", "echo why >&2; exit 3"], remove=True)
    assert (failed.value.exit_status, failed.value.stderr) == (3, b"why\n")
    with pytest.raises(errors.APIError) as missing:
        client.containers.run("busybox", ["/nosuch"], remove=True)
    assert "/nosuch" in missing.value.explanation
    with pytest.raises(errors.ImageNotFound):
        client.images.get("nowhere:1")
    with pytest.raises(errors.NotFound):
        client.containers.get("nobody")


def test_a_container_as_asked_for(client, node):
    shared = node.base / "shared"
    shared.mkdir()
    container = client.containers.run(
        "busybox",
        ["sh", "-c", "hostname; id -u; pwd; echo $A; cat /proc/self/limits | grep 'open files';"
         " mount | grep -c ' /t '; cat /etc/hosts | grep elsewhere; ulimit -n;"
         " echo kept > /shared/f; sleep 600"],
        detach=True, name="asked", hostname="host-1", user="0:7", working_dir="/tmp",
        environment={"A": "b"}, labels={"l": "v"}, mem_limit="64m", nano_cpus=500_000_000,
        cpu_shares=512, pids_limit=50, cap_drop=["NET_RAW"], cap_add=["SYS_PTRACE"],
        security_opt=["no-new-privileges"], extra_hosts={"elsewhere": "192.0.2.9"},
        ulimits=[types.Ulimit(name="nofile", soft=99, hard=100)], tmpfs={"/t": "size=1m"},
        volumes={str(shared): {"bind": "/shared", "mode": "rw"}}, init=True, shm_size="8m",
        restart_policy={"Name": "on-failure", "MaximumRetryCount": 2}, stop_signal="SIGINT",
        log_config=types.LogConfig(type="json-file", config={"max-size": "1m"}),
        sysctls={"net.core.somaxconn": "64"}, read_only=True, dns=["192.0.2.53"],
        healthcheck={"test": ["CMD", "true"], "interval": 200_000_000, "timeout": 30_000_000_000},
    )  # fmt: skip
    until(lambda: (shared / "f").exists())
    said = container.logs().decode().splitlines()
    assert said[:4] == ["host-1", "0", "/tmp", "b"]
    assert said[4].split()[3:5] == ["99", "100"]
    assert said[5] == "1"
    assert "192.0.2.9" in said[6]
    assert (container.name, container.status, container.labels) == ("asked", "created", {"l": "v"})
    assert container.image.tags == ["busybox:latest"]

    def healthy() -> bool:
        container.reload()
        return container.health == "healthy"

    until(healthy)
    assert container.status == "running"
    host = container.attrs["HostConfig"]
    assert (host["Memory"], host["NanoCpus"], host["PidsLimit"]) == (64 << 20, 500_000_000, 50)
    assert host["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 2}
    assert [m["Destination"] for m in container.attrs["Mounts"]] == ["/shared"]


def test_a_life(client):
    container = client.containers.create("busybox", ["sh", "-c", TALK], name="life")
    assert container.status == "created"
    container.start()
    until(lambda: b"line2" in container.logs(tail=3))
    container.pause()
    container.reload()
    assert container.status == "paused"
    container.unpause()
    container.rename("lives")
    assert client.containers.get("lives").id == container.id
    container.update(mem_limit="32m", memswap_limit="32m")
    titles = container.top()["Titles"]
    assert titles == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    assert container.top(ps_args="-o pid,comm")["Processes"][0][1] == "sh"
    sample = container.stats(stream=False)
    assert sample["memory_stats"]["limit"] == 32 << 20
    streamed = container.stats(decode=True, stream=True)
    assert next(streamed)["id"] == container.id
    streamed.close()
    container.restart(timeout=0)
    container.kill("SIGKILL")
    assert container.wait() == {"StatusCode": 137, "Error": None}
    container.start()
    container.stop(timeout=0)
    assert container.wait(condition="not-running")["StatusCode"] == 137
    container.remove()
    with pytest.raises(errors.NotFound):
        container.reload()


def test_lists_and_prunes(client):
    kept = client.containers.run("busybox", ["sleep", "600"], detach=True, labels={"k": "1"})
    ended = client.containers.run("busybox", ["sh", "-c", "exit 4"], detach=True, labels=["k"])
    ended.wait()

    def ids(**how: object) -> set[str]:
        return {one.id for one in client.containers.list(**how)}

    assert ids() == {kept.id}
    assert ids(all=True) == {kept.id, ended.id}
    assert ids(filters={"label": "k=1"}) == {kept.id}
    assert ids(all=True, filters={"exited": 4}) == {ended.id}
    assert ids(all=True, filters={"status": ["exited", "running"]}) == {kept.id, ended.id}
    assert ids(all=True, filters={"before": ended.id}) == {kept.id}
    assert ids(limit=1) == {ended.id}
    assert [one.id for one in client.containers.list(sparse=True)] == [kept.id]
    assert client.containers.prune()["ContainersDeleted"] == [ended.id]


def test_logs_and_attach(client):
    container = client.containers.run("busybox", ["sh", "-c", TALK], detach=True)
    followed = container.logs(stream=True, follow=True)
    assert next(followed).startswith(b"line0\n")
    followed.close()
    attached = container.attach(stream=True)
    assert next(attached).startswith(b"line")
    attached.close()
    assert container.logs(timestamps=True, tail=1).split(b" ")[1].startswith(b"line")
    assert container.logs(since=int(time.time()) + 100) == b""
    reads = client.containers.create("busybox", ["cat"], stdin_open=True)
    wire = reads.attach_socket(params={"stdin": 1, "stdout": 1, "stream": 1})
    reads.start()
    wire._sock.sendall(b"through\n")
    assert wire.read(8 + 8) == b"\1\0\0\0\0\0\0\x08through\n"
    wire._sock.close()
    wire.close()


def test_terminals(client):
    container = client.containers.run("busybox", ["sh"], tty=True, stdin_open=True, detach=True)
    container.resize(height=31, width=77)
    code, wire = container.exec_run(["sh"], tty=True, stdin=True, socket=True)
    assert code is None
    wire._sock.sendall(b"tty; exit\n")
    assert b"/dev/pts/" in wire.read()
    wire.close()
    until(lambda: b"31 77" in container.exec_run(["stty", "-F", "/dev/console", "size"]).output)


# Exec ---------------------------------------------------------------------------------------


def test_exec(client):
    container = client.containers.run("busybox", ["sleep", "600"], detach=True)
    assert container.exec_run("echo 'a b'") == (0, b"a b\n")
    both = container.exec_run(["sh", "-c", "echo o; echo e >&2; exit 5"], demux=True)
    assert both == (5, (b"o\n", b"e\n"))
    as_asked = container.exec_run(
        ["sh", "-c", "id -u; pwd; echo $A"], user="7", workdir="/tmp", environment={"A": "b"}
    )
    assert as_asked.output.split() == [b"7", b"/tmp", b"b"]
    streamed = container.exec_run(["seq", "3"], stream=True)
    assert b"".join(streamed.output) == b"1\n2\n3\n"
    assert container.exec_run(["touch", "/d"], detach=True).output == ""
    until(lambda: container.exec_run(["test", "-e", "/d"]).exit_code == 0)
    assert container.exec_run(["/nosuch"]).exit_code == 127
    made = client.api.exec_create(container.id, ["cat"], stdin=True)
    wire = client.api.exec_start(made, socket=True)
    wire._sock.sendall(b"in\n")
    assert wire.read(8 + 3)[8:] == b"in\n"
    assert client.api.exec_inspect(made)["Running"]
    wire._sock.shutdown(1)
    until(lambda: not client.api.exec_inspect(made)["Running"])
    wire.close()


# Files --------------------------------------------------------------------------------------


def an_archive(name: str, content: bytes) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def unpacked(pieces) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as tar:
        files = [entry for entry in tar if entry.isfile()]
        return {entry.name: tar.extractfile(entry).read() for entry in files}


def test_files(client):
    container = client.containers.create("busybox", ["cat", "/tmp/given"])
    assert container.put_archive("/tmp", an_archive("given", b"content"))
    assert container.diff() == [{"Path": "/tmp", "Kind": 0}, {"Path": "/tmp/given", "Kind": 1}]
    container.start()
    container.wait()
    assert container.logs() == b"content"
    pieces, stat = container.get_archive("/tmp/given")
    assert (stat["name"], stat["size"]) == ("given", 7)
    assert unpacked(pieces) == {"given": b"content"}
    assert unpacked(container.export())["tmp/given"] == b"content"
    with pytest.raises(errors.NotFound):
        container.get_archive("/nowhere")


# Images -------------------------------------------------------------------------------------


def test_images(client):
    image = client.images.get("busybox")
    assert image.attrs["Config"]["Cmd"] == ["sh"]
    assert image.tag("second", "2")
    assert client.images.list(name="second")[0].id == image.id
    image.reload()
    assert image.tags == ["busybox:latest", "second:2"]
    assert len(image.history()) == 1
    archive = b"".join(image.save(named="second:2"))
    client.images.remove("second:2")
    assert client.images.list(name="second") == []
    assert [one.id for one in client.images.load(archive)] == [image.id]
    client.images.remove("second:2", force=True)
    container = client.containers.create("busybox", ["true"])
    made = container.commit("made", "1", message="why", author="who", conf={"Cmd": ["made"]})
    assert made.attrs["Config"]["Cmd"] == ["made"]
    assert made.attrs["Comment"] == "why"
    container.remove()
    client.images.remove(made.id, force=True)
    assert client.images.prune(filters={"dangling": True})["ImagesDeleted"] is None
    assert {one.id for one in client.images.list()} == {image.id}


def test_imports(client):
    said = client.api.import_image_from_data(an_archive("f", b"1"), repository="flat", tag="1")
    assert "sha256:" in said
    assert client.images.get("flat:1").attrs["RootFS"]["Layers"]
    client.images.remove("flat:1")


def test_builds(client, tmp_path: Path):
    (tmp_path / "Dockerfile").write_text(
        "FROM busybox AS one\nARG A=0\nRUN echo built $A > /f\n"
        "FROM one\nCOPY given /\nCMD cat /f /given\n"
    )
    (tmp_path / "given").write_text("given\n")
    image, said = client.images.build(
        path=str(tmp_path), tag="built:1", buildargs={"A": "1"}, labels={"l": "v"},
        network_mode="none", rm=True, forcerm=True,
    )  # fmt: skip
    assert any("Step 1/7 : FROM busybox AS one" in line.get("stream", "") for line in said)
    assert image.tags == ["built:1"]
    assert image.labels == {"l": "v"}
    assert client.containers.run("built:1", remove=True) == b"built 1\ngiven\n"
    with pytest.raises(errors.BuildError) as failed:
        client.images.build(fileobj=io.BytesIO(b"FROM busybox\nRUN exit 3\n"), network_mode="none")
    assert "returned a non-zero code: 3" in failed.value.msg
    client.images.remove("built:1")
    client.images.prune_builds()


# Volumes and networks -----------------------------------------------------------------------


def test_volumes(client):
    volume = client.volumes.create("kept", driver="local", labels={"l": "v"})
    assert client.volumes.get("kept").attrs["Labels"] == {"l": "v"}
    mounted = {"kept": {"bind": "/v", "mode": "rw"}}
    client.containers.run("busybox", ["sh", "-c", "echo d > /v/f"], volumes=mounted, remove=True)
    again = client.containers.run(
        "busybox", ["cat", "/m/f"], remove=True,
        mounts=[types.Mount("/m", "kept", read_only=True)],
    )  # fmt: skip
    assert again == b"d\n"
    user = client.containers.create("busybox", volumes=mounted)
    with pytest.raises(errors.APIError) as used:
        volume.remove()
    assert used.value.status_code == 409
    user.remove()
    assert [one.name for one in client.volumes.list(filters={"label": "l=v"})] == ["kept"]
    volume.remove()
    client.volumes.create()
    assert len(client.volumes.prune()["VolumesDeleted"]) == 1


def test_networks(client):
    pool = types.IPAMPool(subnet="10.213.7.0/24", gateway="10.213.7.1")
    network = client.networks.create(
        "lan", driver="bridge", ipam=types.IPAMConfig(pool_configs=[pool]), labels={"l": "v"},
        internal=True,
    )  # fmt: skip
    assert network.attrs["IPAM"]["Config"][0]["Subnet"] == "10.213.7.0/24"
    server = client.containers.run(
        "busybox", ["sh", "-c", "echo served > /f; exec httpd -f -p 80 -h /"], detach=True,
        name="server", network="lan", ports={"80/tcp": ("127.0.0.1", None)},
    )  # fmt: skip
    visitor = client.containers.run("busybox", ["sleep", "600"], detach=True, network="none")
    with pytest.raises(errors.APIError):
        network.connect(visitor)  # none and others exclude each other
    visitor.remove(force=True)
    visitor = client.containers.run("busybox", ["sleep", "600"], detach=True)
    network.connect(visitor, aliases=["guest"], ipv4_address="10.213.7.9")
    network.reload()
    assert {one.id for one in network.containers} == {server.id, visitor.id}
    until(lambda: visitor.exec_run("wget -qO- http://server/f").output == b"served\n")
    assert b"10.213.7.9" in server.exec_run("nslookup guest").output
    network.disconnect(visitor)
    assert [one.name for one in client.networks.list(names=["lan"], greedy=True)] == ["lan"]
    for one in (server, visitor):
        one.remove(force=True)
    network.remove()
    client.networks.create("spare")
    assert client.networks.prune()["NetworksDeleted"] == ["spare"]
    assert {one.name for one in client.networks.list()} == {"bridge", "host", "none"}


def test_ports(client):
    container = client.containers.run(
        "busybox", ["sleep", "600"], detach=True, ports={"80/tcp": None, "53/udp": 5353}
    )
    container.reload()
    assert container.ports["53/udp"][0]["HostPort"] == "5353"
    assert int(container.ports["80/tcp"][0]["HostPort"]) >= 32768


# Events -------------------------------------------------------------------------------------


def test_events(client):
    told: list[dict[str, object]] = []
    stream = client.events(decode=True, filters={"type": "container", "label": "told"})

    def read() -> None:
        told.extend(stream)

    reader = threading.Thread(target=read)
    reader.start()
    began_s = int(time.time())
    client.containers.run("busybox", ["true"], labels=["told"], remove=True)
    until(lambda: told and told[-1]["Action"] == "destroy")
    stream.close()
    reader.join(DEADLINE_S)
    actions = [one["Action"] for one in told]
    assert [one for one in actions if one != "attach"] == ["create", "start", "die", "destroy"]
    past = client.events(since=began_s, until=int(time.time()) + 1, decode=True)
    assert {"create", "start", "die", "destroy"} <= {one["Action"] for one in past}
