"""A real worker process in a network namespace of its own, and a scripted manager for it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from shoal.api.v1 import node_pb2, node_pb2_grpc
from shoal.ids import ClusterId, NodeId, base36
from shoal.model.enums import PublishMode, TaskState
from shoal.model.objects import Task
from shoal.model.specs import ContainerSpec, TaskSpec
from shoal.model.types import Annotations, Endpoint, NodeIngress, PortConfig, TaskStatus
from shoal.security.grpc_tls import local_channel, server_credentials
from shoal.security.identity import NodeIdentity, make_identity, write_identity
from shoal.security.keys import make_csr, make_key
from shoal.security.roles import PeerIdentity, Role
from shoal.security.root import RootCA
from shoal.settings.node import NodeConfig, write_node_config
from shoal.settings.paths import NodePaths
from tests.integration.runtime.site import Site
from tests.support.dispatcher import ScriptedDispatcher

DEADLINE_S = 60.0
UNDERLAY = "198.51.100.1"
SUBNET = "10.241.0.0/22"
BUSYBOX = "/bin/busybox"
_CLUSTER = ClusterId("c" * 25)


def task_id(number: int) -> str:
    return base36(number, 25)[::-1]  # links are named by the first characters, which are random


def a_task(
    number: int,
    script: str,
    *,
    desired: TaskState = TaskState.RUNNING,
    host_port: int = 0,
    image: str = "box",
    **spec: Any,
) -> Task:
    endpoint = None
    if host_port:
        port = PortConfig(target_port=80, published_port=host_port, publish_mode=PublishMode.HOST)
        endpoint = Endpoint(ports=(port,))
    container = ContainerSpec(image=image, command=("/bin/sh", "-c", script), **spec)
    return Task(
        id=task_id(number),
        spec=TaskSpec(runtime=container, listen_timeout_ns=0),
        service_id="service1",
        service_annotations=Annotations(name="front"),
        slot=number,
        node_id="n" * 25,
        status=TaskStatus(state=TaskState.ASSIGNED),
        desired_state=desired,
        endpoint=endpoint,
    )


class Place:
    """One node. The worker may be killed and started again; `destroy` removes every trace.

    module: what is run: the worker alone, or the engine with the worker in it. more: arguments
    besides those every worker needs.
    """

    def __init__(self, module: str = "worker", *more: str) -> None:
        self._module = module
        self._more = more
        self.prefix: tuple[str, ...] = ()
        """What the worker is started through."""
        self.directory = Path(tempfile.mkdtemp(prefix="shoal-worker-", dir="/var/tmp"))
        self.paths = NodePaths(state=self.directory / "state", run=self.directory / "run")
        for path in (self.paths.state, self.paths.run):
            path.mkdir(mode=0o700)
        self.cgroup_parent = f"/{self.directory.name}"
        self.log = self.directory / "worker.log"
        self.root = RootCA.create(now_ns=time.time_ns())
        manager = _identity(self.root, Role.MANAGER, "m" * 25)
        tls = server_credentials(manager.root_pem, manager.certificate_pem, manager.key_pem)
        self.manager = ScriptedDispatcher(self.directory / "manager.sock", tls.credentials)
        self.manager.node_id = "n" * 25
        self.manager.ingress = NodeIngress(index=1, subnet=SUBNET)
        self.renew_identity()
        config = NodeConfig(
            advertise_address=f"{UNDERLAY}:2377",
            listen_address=f"{UNDERLAY}:2377",
            data_path_address=UNDERLAY,
            managers=(self.manager.address,),
        )
        write_node_config(self.paths.node_config, config)
        self._namespace = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        self.worker: subprocess.Popen[bytes] | None = None
        self._mounts: list[Path] = []

    def renew_identity(self) -> bytes:
        """Write another certificate for the node; its PEM."""
        identity = _identity(self.root, Role.WORKER, "n" * 25)
        write_identity(self.paths.identity, identity)
        return identity.certificate_pem

    async def open(self) -> None:
        """Set up the namespace, start manager and worker, import an image."""
        here = os.readlink("/proc/self/ns/net")
        namespace = f"/proc/{self._namespace.pid}/ns/net"
        await until(lambda: os.readlink(namespace) != here)
        for line in ("ip link set lo up", f"ip addr add {UNDERLAY}/24 dev lo"):
            subprocess.run(self.inside(*line.split()), check=True, timeout=DEADLINE_S)
        await self.manager.start()
        await self.start_worker()
        await self.import_image("box")

    def inside(self, *command: str) -> list[str]:
        """The command, run in the node's network namespace."""
        return ["nsenter", f"--net=/proc/{self._namespace.pid}/ns/net", *command]

    def mount_small(self, path: Path, size_bytes: int) -> None:
        """A file system of that size at `path`."""
        path.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=711", "tmpfs", str(path)],
            check=True,
        )
        self._mounts.append(path)

    async def start_worker(self) -> None:
        sessions = len(self.manager.sessions)
        with open(self.log, "ab") as log:
            self.worker = subprocess.Popen(
                self.inside(
                    *self.prefix, sys.executable, "-m", self._module,
                    "--state-dir", str(self.paths.state),
                    "--run-dir", str(self.paths.run),
                    "--hostname", "alpha",
                    "--cgroup-parent", self.cgroup_parent, *self._more,
                ),
                stderr=log,
            )  # fmt: skip
        await self.until(lambda: len(self.manager.sessions) > sessions)
        streams = len(self.manager.streams)
        await self.until(lambda: len(self.manager.streams) >= max(streams, sessions + 1))

    def kill_worker(self) -> None:
        assert self.worker is not None
        self.worker.kill()
        self.worker.wait(DEADLINE_S)

    async def stop_worker(self) -> int:
        """In order, as swarmd does; the exit code."""
        assert self.worker is not None
        self.worker.send_signal(signal.SIGTERM)
        await until(lambda: self.worker is None or self.worker.poll() is not None)
        return self.worker.returncode

    async def until(self, condition: Callable[[], object]) -> None:
        """Poll until true; the worker's log if it never is."""
        try:
            await until(condition)
        except TimeoutError:
            raise AssertionError(self.log.read_text()[-8_000:]) from None

    async def reach(self, number: int, state: TaskState) -> TaskStatus:
        statuses = self.manager.statuses
        await self.until(
            lambda: task_id(number) in statuses and statuses[task_id(number)].state is state
        )
        return statuses[task_id(number)]

    async def import_image(self, name: str, *, marker: str = "") -> str:
        """A root file system of a static busybox; the image's id."""

        async def requests() -> Any:
            yield node_pb2.ImportImageRequest(reference=name)
            data = root_tar(marker)
            for start in range(0, len(data), 1 << 20):
                yield node_pb2.ImportImageRequest(chunk=data[start : start + (1 << 20)])

        async with local_channel(self.paths.worker_socket) as channel:
            stub = node_pb2_grpc.ImagesStub(channel)
            answer = await stub.ImportImage(requests(), timeout=DEADLINE_S, wait_for_ready=True)
        return str(answer.image.id)

    async def call(self, stub: Any, method: str, request: Any) -> Any:
        async with local_channel(self.paths.worker_socket) as channel:
            return await getattr(stub(channel), method)(request, timeout=DEADLINE_S)

    def containers(self) -> list[str]:
        return sorted(os.listdir(self.paths.worker / "containers"))

    def namespaces(self) -> list[str]:
        return sorted(os.listdir(self.paths.run / "netns"))

    async def destroy(self) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError):
            await self.call(
                node_pb2_grpc.WorkerControlStub, "RemoveTasks", node_pb2.RemoveTasksRequest()
            )
        if self.worker is not None and self.worker.poll() is None:
            self.worker.kill()
            self.worker.wait(DEADLINE_S)
        await self.manager.stop()
        site = _NodeSite(self)
        async with asyncio.timeout(DEADLINE_S):
            await site.destroy()
        run = f"{self.paths.run}/"
        while any(line.split()[4].startswith(run) for line in _mountinfo()):
            deepest = max(line.split()[4] for line in _mountinfo() if run in line)
            subprocess.run(["umount", "-l", deepest], check=True)
        for path in self._mounts:
            subprocess.run(["umount", "-l", str(path)], check=True)
        self._namespace.kill()
        self._namespace.wait(DEADLINE_S)
        shutil.rmtree(self.directory)


class _NodeSite(Site):
    """The runtime of the place, to be ended as the runtime's own tests end theirs."""

    def __init__(self, place: Place) -> None:
        super().__init__(str(place.directory), "")
        self.cgroup_parent = place.cgroup_parent
        self.directory = str(place.directory / "link")
        os.mkdir(self.directory)
        os.symlink(place.paths.worker, f"{self.directory}/state")
        os.symlink(place.paths.run, f"{self.directory}/run")
        self.runtime = self.another_client()


def _mountinfo() -> list[str]:
    return Path("/proc/self/mountinfo").read_text().splitlines()


def _identity(root: RootCA, role: Role, node_id: str) -> NodeIdentity:
    key = make_key()
    peer = PeerIdentity(node_id=NodeId(node_id), role=role, cluster_id=_CLUSTER)
    certificate = root.sign(make_csr(key), peer, now_ns=time.time_ns())
    return make_identity(certificate, key, root.certificate_pem)


def root_tar(marker: str) -> bytes:
    out = io.BytesIO()
    applets = subprocess.run([BUSYBOX, "--list"], check=True, capture_output=True, text=True)
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("bin", "etc", "tmp", "sig"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        archive.add(BUSYBOX, "bin/busybox")
        for applet in applets.stdout.split():
            if applet != "busybox":
                entry = tarfile.TarInfo(f"bin/{applet}")
                entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
                archive.addfile(entry)
        for name, text in (("etc/passwd", "root:x:0:0:root:/:/bin/sh\n"), ("etc/marker", marker)):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text), 0o644
            archive.addfile(entry, io.BytesIO(text.encode()))
    return out.getvalue()


async def until(condition: Callable[[], object]) -> None:
    """Poll until true."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.01)
