"""Our side: a lab of its own with an image on every node, and a client of its first manager.

Invariant: whatever happens, the lab is down when the context ends, and the user's own contexts
were never touched (the configuration directory is a temporary one).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from bench.priority import urgent
from shoal.errors import SequenceConflict
from shoal.model.enums import TaskState
from shoal.model.objects import Service, Task
from shoal.model.specs import ContainerSpec, ReplicatedMode, ServiceSpec, TaskSpec
from shoal.model.types import Annotations, EndpointSpec, PortConfig
from swarmctl.client import Client
from swarmctl.lab import nodes, record
from swarmctl.lab.plan import CGROUP_ROOT, LabPlan, NodePlan, lab_cgroup
from swarmctl.target import Choice, parse_host
from swarmctl.types import Filters

IMAGE = "bench:1"
ROOT = Path(__file__).resolve().parent.parent
SLEEP = ("sleep", "1000000")
TIMEOUT_S = 120.0
DIRECTORY_VARIABLE = "SHOAL_BENCH_DIR"
"""Where both contenders keep their files, if not in /var/tmp."""


class Lab:
    """A running lab. `client` talks to its first manager."""

    name = "shoal"

    def __init__(self, plan: LabPlan, root: str, client: Client) -> None:
        self.plan = plan
        self.root = root
        self.client = client

    async def create(self, name: str, *, replicas: int, port: int = 0) -> Service:
        """Create a service of sleeping containers; port: published, 0 for none."""
        return (await self.client.create_service(service_spec(name, replicas, port))).service

    async def scale(self, service: Service, replicas: int) -> None:
        """Ask for another number of replicas."""
        while True:
            known = (await self.client.service(service.id)).service
            spec = msgspec.structs.replace(known.spec, mode=ReplicatedMode(replicas=replicas))
            try:
                await self.client.update_service(known, spec)
                return
            except SequenceConflict:  # the cluster has just given it its addresses
                continue

    async def running(self, service: Service) -> list[Task]:
        """The service's tasks that run and should."""
        tasks = await self.client.tasks(Filters(services=(service.id,)))
        return [
            task
            for task in tasks
            if task.status.state is TaskState.RUNNING and task.desired_state is TaskState.RUNNING
        ]

    async def remove(self, service: Service) -> None:
        """Remove the service and wait until nothing of its tasks is left, in the store or on disk.

        With one service at a time that is: until no node keeps any container.
        """
        await self.client.remove_service(service.id)
        async with asyncio.timeout(TIMEOUT_S):
            while await self.client.tasks(Filters(services=(service.id,))) or self._kept():
                await asyncio.sleep(0.02)

    def _kept(self) -> bool:
        states = (nodes.paths_of(self.plan, node).state for node in self.plan.nodes)
        places = [
            Path(state, "worker", part) for state in states for part in ("containers", "trash")
        ]
        return any(place.is_dir() and any(place.iterdir()) for place in places)

    def node(self, name: str) -> NodePlan:
        """The node of that name."""
        return self.plan.node(name)

    def processes(self, name: str) -> dict[str, int]:
        """Pids of a node's daemon and the processes it supervises, by module."""
        daemon = nodes.daemon(self.plan, self.node(name))
        if daemon is None:
            raise RuntimeError(f"{name} is not running")
        found = {"swarmd": daemon.pid}
        for directory in Path("/proc").glob("[0-9]*"):
            try:
                stat = (directory / "stat").read_text().rpartition(")")[2].split()
                words = (directory / "cmdline").read_text().split("\0")
            except OSError:  # it has ended
                continue
            if int(stat[1]) == daemon.pid and "-m" in words:
                found[words[words.index("-m") + 1]] = int(directory.name)
        return found

    def log(self, name: str) -> Path:
        """The log of a node's daemon."""
        return Path(nodes.paths_of(self.plan, self.node(name)).log)

    def kill(self, name: str) -> None:
        """Cut the node's power; returns when it is off. For the clock: in this process."""
        with record.lock(self.plan.name):
            nodes.kill(self.plan, self.node(name), hard=True)

    async def start(self, name: str) -> None:
        """Start a killed node and wait until the cluster says that it is ready."""
        for verb in ("start", "wait"):
            await asyncio.to_thread(
                _swarmctl, "lab", verb, *_where(self.plan.name, self.root), name
            )


@asynccontextmanager
async def lab(*, managers: int = 1, workers: int = 0) -> AsyncIterator[Lab]:
    """A lab for the length of the context, with `IMAGE` (busybox) on every node."""
    scratch = tempfile.mkdtemp(
        prefix="shoal-bench-", dir=os.environ.get(DIRECTORY_VARIABLE, "/var/tmp")
    )
    os.environ["SHOAL_CONFIG_DIR"] = f"{scratch}/config"
    name = f"bench-{os.getpid()}"
    where = _where(name, f"{scratch}/labs")
    try:
        size = ("--managers", str(managers), "--workers", str(workers))
        await asyncio.to_thread(_swarmctl, "lab", "up", *where, *size)
        archive = make_rootfs(f"{scratch}/root.tar")
        await asyncio.to_thread(_swarmctl, "image", "import", archive, IMAGE)
        plan = record.read_lab(f"{scratch}/labs", name).plan
        socket = nodes.paths_of(plan, plan.nodes[0]).socket
        async with Client(parse_host(f"unix://{socket}", Choice())) as client:
            with urgent(CGROUP_ROOT, lab_cgroup(name)):
                yield Lab(plan, f"{scratch}/labs", client)
    finally:
        await asyncio.to_thread(_swarmctl, "lab", "down", *where)
        shutil.rmtree(scratch)


def service_spec(name: str, replicas: int, port: int = 0) -> ServiceSpec:
    """Sleeping containers which end at once when told to, so that cleaning up is quick.

    Nothing listens on their port, and Swarm does not wait for it either.
    """
    container = ContainerSpec(image=IMAGE, args=SLEEP, stop_signal="SIGKILL")
    ports = (PortConfig(target_port=80, published_port=port),) if port else ()
    return ServiceSpec(
        annotations=Annotations(name=name),
        task=TaskSpec(runtime=container, listen_timeout_ns=0),
        mode=ReplicatedMode(replicas=replicas),
        endpoint=EndpointSpec(ports=ports),
    )


def make_rootfs(path: str) -> str:
    """Write the demo's root file system, Debian's busybox, to `path`."""
    words = [sys.executable, "-P", str(ROOT / "tools/demo.py"), "rootfs", path]
    subprocess.run(words, check=True, cwd=ROOT)
    return path


def require_root() -> None:
    """End with the remedy unless this is root."""
    if os.geteuid() != 0:
        raise SystemExit("bench: namespaces and control groups need root: run with sudo")


def cpu_s(pid: int) -> float:
    """Processor time the process has used, seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _where(name: str, root: str) -> tuple[str, ...]:
    return ("--name", name, "--dir", root)


def _swarmctl(*words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "swarmctl", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"swarmctl {' '.join(words)}: {done.stderr.strip()}")
