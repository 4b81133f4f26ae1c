"""Their side: Debian's dockerd as a swarm of one node, in namespaces of its own.

dockerd gets its own network namespace (its iptables rules, bridges and VXLAN live and die there),
its own mount namespace, data, sockets and cgroup parent; the machine's Docker, if any, is neither
used nor disturbed. Spoken to over its socket with http.client. Invariant: when the context ends,
its containers, processes, mounts, cgroups and files are gone.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from typing_extensions import override

from bench.lab import DIRECTORY_VARIABLE, IMAGE, SLEEP, make_rootfs
from bench.priority import urgent

PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
START_TIMEOUT_S = 60.0
TIMEOUT_S = 600.0

# The names are those of a namespace that nobody else sees. Arguments: dockerd's command line.
# Like a lab's daemons it has a control group for its processor time, which its shims inherit.
_ENTER = """
set -e
group="/sys/fs/cgroup/cpu$GROUP/daemons"
[ ! -d "${group%%$GROUP*}" ] || { mkdir -p "$group"; echo $$ >"$group/cgroup.procs"; }
mount --make-rprivate /
ip link set lo up
ip link add eth0 type veth peer name eth1
ip address add 192.0.2.1/24 dev eth0
ip link set eth0 up
ip link set eth1 up
echo 1 >/proc/sys/net/ipv4/ip_forward
exec "$@"
"""


def why_not() -> str:
    """Why dockerd cannot be measured here; "" when it can."""
    missing = [name for name in ("dockerd", "containerd", "iptables") if not _which(name)]
    return f"{', '.join(missing)} not installed: run `make bench-peers`" if missing else ""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    @override
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(self._path)


class Docker:
    """A dockerd's API, blocking. The connection is kept."""

    name = "docker swarm"

    def __init__(self, path: str, pid: int) -> None:
        self.path = path
        self.pid = pid
        self._http = _UnixConnection(path)

    def call(self, method: str, path: str, body: object = None) -> Any:
        """The decoded answer. Raises: RuntimeError with dockerd's message."""
        raw = isinstance(body, bytes)
        content = body if raw else json.dumps(body) if body is not None else None
        kind = "application/x-tar" if raw else "application/json"
        self._http.request(method, path, content, {"Content-Type": kind})  # type: ignore[arg-type]
        answer = self._http.getresponse()
        text = answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {text.decode()}")
        lines = text.splitlines()
        return json.loads(lines[-1]) if lines else None

    def hang_up(self) -> None:
        """Close the connection; the next call opens another."""
        self._http.close()

    def create(self, name: str, *, replicas: int, port: int = 0) -> str:
        """Create the same service as `Lab.create`; its id."""
        container = {"Image": IMAGE, "Command": list(SLEEP), "StopSignal": "SIGKILL"}
        ports = [{"TargetPort": 80, "PublishedPort": port, "Protocol": "tcp"}] if port else []
        answer = self.call("POST", "/services/create", {
            "Name": name,
            "TaskTemplate": {"ContainerSpec": container},
            "Mode": {"Replicated": {"Replicas": replicas}},
            "EndpointSpec": {"Ports": ports},
        })  # fmt: skip
        return str(answer["ID"])

    def scale(self, service: str, replicas: int) -> None:
        """Ask for another number of replicas."""
        found = self.call("GET", f"/services/{service}")
        found["Spec"]["Mode"] = {"Replicated": {"Replicas": replicas}}
        version = found["Version"]["Index"]
        self.call("POST", f"/services/{service}/update?version={version}", found["Spec"])

    def running(self, service: str) -> int:
        """How many of the service's tasks run and should."""
        wanted = {"service": [service], "desired-state": ["running"]}
        tasks = self.call("GET", f"/tasks?filters={quote(json.dumps(wanted))}")
        return sum(task["Status"]["State"] == "running" for task in tasks or [])

    def remove(self, service: str) -> None:
        """Remove the service and wait until none of its containers is left."""
        self.call("DELETE", f"/services/{service}")
        mine = quote(json.dumps({"label": [f"com.docker.swarm.service.id={service}"]}))
        deadline_s = time.monotonic() + TIMEOUT_S
        while self.call("GET", f"/containers/json?all=1&filters={mine}"):
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"containers of service {service} do not go away")
            time.sleep(0.05)

    def run(self) -> str:
        """`docker run -d --network none`: the container's id."""
        made = self.call("POST", "/containers/create", {
            "Image": IMAGE, "Cmd": list(SLEEP), "HostConfig": {"NetworkMode": "none"},
        })  # fmt: skip
        self.call("POST", f"/containers/{made['Id']}/start")
        return str(made["Id"])

    def remove_containers(self) -> None:
        """Remove every container there is."""
        for container in self.call("GET", "/containers/json?all=1"):
            self.call("DELETE", f"/containers/{container['Id']}?force=1")

    def shims(self) -> list[int]:
        """Pids of this dockerd's containerd-shims: those that share its network namespace."""
        own = os.stat(f"/proc/{self.pid}/ns/net").st_ino
        found = []
        for directory in Path("/proc").glob("[0-9]*"):
            try:
                name = (directory / "comm").read_text()
                if name.startswith("containerd-shim") and (
                    os.stat(directory / "ns/net").st_ino == own
                ):
                    found.append(int(directory.name))
            except OSError:  # it has ended
                continue
        return found


@asynccontextmanager
async def docker(*, swarm: bool = True) -> AsyncIterator[Docker]:
    """A private dockerd for the length of the context, with `IMAGE`; a swarm if wanted."""
    scratch = tempfile.mkdtemp(
        prefix="shoal-bench-docker-", dir=os.environ.get(DIRECTORY_VARIABLE, "/var/tmp")
    )
    parent = f"/shoal-bench-docker-{os.getpid()}"
    words = [
        _which("dockerd"), "--data-root", f"{scratch}/data", "--exec-root", f"{scratch}/exec",
        "--host", f"unix://{scratch}/docker.sock", "--pidfile", f"{scratch}/pid",
        "--config-file", f"{scratch}/daemon.json",
        "--cgroup-parent", parent, "--log-level", "error",
    ]  # fmt: skip
    Path(f"{scratch}/daemon.json").write_text("{}")
    with Path(f"{scratch}/log").open("wb") as log:
        process = subprocess.Popen(
            ["unshare", "--net", "--mount", "sh", "-c", _ENTER, "sh", *words],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, "PATH": PATH, "GROUP": parent},
        )  # fmt: skip
    try:
        daemon = await asyncio.to_thread(_started, process, scratch)
        if swarm:
            await asyncio.to_thread(
                daemon.call, "POST", "/swarm/init",
                {"ListenAddr": "192.0.2.1:2377", "AdvertiseAddr": "192.0.2.1"},
            )  # fmt: skip
        with urgent(parent):
            yield daemon
        if swarm:
            await asyncio.to_thread(daemon.call, "POST", "/swarm/leave?force=1")
        await asyncio.to_thread(daemon.remove_containers)
        daemon.hang_up()
    finally:
        await asyncio.to_thread(_stop, process)
        _remove_cgroups(parent)
        shutil.rmtree(scratch)


def _started(process: subprocess.Popen[bytes], scratch: str) -> Docker:
    daemon = Docker(f"{scratch}/docker.sock", process.pid)
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            daemon.call("GET", "/version")
            break
        except (OSError, http.client.HTTPException):
            daemon.hang_up()
            if process.poll() is not None or time.monotonic() > deadline_s:
                log = Path(f"{scratch}/log").read_text(errors="replace")
                raise RuntimeError(f"dockerd does not start:\n{log[-2000:]}") from None
            time.sleep(0.05)
    archive = Path(make_rootfs(f"{scratch}/root.tar")).read_bytes()
    name, _, tag = IMAGE.partition(":")
    daemon.call("POST", f"/images/create?fromSrc=-&repo={name}&tag={tag}", archive)
    return daemon


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End dockerd; then whatever is left in its network namespace, which is nobody else's."""
    namespace = os.stat(f"/proc/{process.pid}/ns/net").st_ino if process.poll() is None else 0
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if not namespace or namespace == os.stat("/proc/self/ns/net").st_ino:
        return
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if os.stat(directory / "ns/net").st_ino == namespace:
                os.kill(int(directory.name), signal.SIGKILL)
        except OSError:  # it has ended
            continue


def _remove_cgroups(parent: str) -> None:
    """Remove what dockerd made below `parent`, ending containers that outlived it."""
    deadline_s = time.monotonic() + 10
    top = Path("/sys/fs/cgroup")
    while found := [*top.glob(f"*{parent}"), *top.glob(parent.strip("/"))]:  # version 1, version 2
        for directory in (place for top in found for place, _, _ in os.walk(top, topdown=False)):
            try:
                for pid in Path(directory, "cgroup.procs").read_text().split():
                    os.kill(int(pid), signal.SIGKILL)
                os.rmdir(directory)
            except OSError:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(0.05)


def _which(name: str) -> str:
    return shutil.which(name, path=PATH) or ""
