"""Three real managers, each on a disk of its own; the leader's fails, in one way after the other.

Run inside a private mount namespace: `unshare -m --propagation private python -m
tests.integration.raft.failing_disks DIRECTORY`. Prints one JSON object: what each fault did.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc

from shoal.api.v1 import control_pb2
from shoal.api.v1.control_pb2_grpc import ControlStub
from shoal.security.grpc_tls import local_channel
from tests.integration.manager.failing_disk import (
    becomes_read_only,
    ended,
    fails_every_sync,
    mounted_at,
)
from tests.integration.manager.process import DEADLINE_S, ManagerProcess
from tests.integration.raft.processes import Managers, some_managers
from tests.integration.raft.test_processes import RETRIED, a_spec, names

IMAGE_BYTES = 200 << 20
CALL_S = 10.0
LABEL_BYTES = 200_000
"""A label of each service: a few dozen of them fill a segment of the log."""


class Disks:
    """An ext4 for each manager's state, mounted and mended at will."""

    def __init__(self, scratch: Path, count: int) -> None:
        self._scratch = scratch
        self._mounts: dict[int, contextlib.ExitStack] = {}
        for number in range(count):
            image = self._image(number)
            with image.open("wb") as file:
                file.truncate(IMAGE_BYTES)
            subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True, timeout=60)
            self.place(number).mkdir()
            self.mount(number)
            (self.place(number) / "state").mkdir()
            (scratch / f"m{number}").mkdir()
            (scratch / f"m{number}" / "state").symlink_to(self.place(number) / "state")

    def place(self, number: int) -> Path:
        """Where it is mounted."""
        return self._scratch / f"disk{number}"

    def mount(self, number: int) -> None:
        """Check it and mount it."""
        mounts = contextlib.ExitStack()
        mounts.enter_context(mounted_at(self._image(number), self.place(number)))
        self._mounts[number] = mounts

    def mend(self, number: int) -> None:
        """As after a new start of the machine."""
        self._mounts.pop(number).close()
        self.mount(number)

    def close(self) -> None:
        """Unmount all."""
        for mounts in self._mounts.values():
            mounts.close()

    def _image(self, number: int) -> Path:
        return self._scratch / f"disk{number}.img"


class Cluster:
    """The managers, and every service that was acknowledged."""

    def __init__(self, managers: Managers) -> None:
        self.managers = managers
        self.acknowledged: set[str] = set()
        self._written = 0

    async def write(self, through: ManagerProcess) -> str:
        """Create one more service. Result: why not, empty when it was acknowledged."""
        self._written += 1
        spec = a_spec(f"s{self._written}")
        spec.annotations.labels["big"] = "x" * LABEL_BYTES
        async with local_channel(through.paths.manager_socket) as channel:
            request = control_pb2.CreateServiceRequest(spec=spec)
            try:
                await ControlStub(channel).CreateService(request, timeout=CALL_S)
            except grpc.aio.AioRpcError as error:
                if error.code() not in {*RETRIED, grpc.StatusCode.RESOURCE_EXHAUSTED}:
                    raise
                return error.details() or ""
        self.acknowledged.add(spec.annotations.name)
        return ""

    async def write_somewhere(self, managers: list[ManagerProcess]) -> None:
        """Until one write is acknowledged."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                for through in managers:
                    if not await self.write(through):
                        return

    async def lost(self) -> list[str]:
        """What was acknowledged and some manager does not know, once all are members again."""
        await self.managers.until_members(len(self.managers.all))
        await self.write_somewhere(list(self.managers.all))
        missing = set[str]()
        for manager in self.managers.all:
            missing |= self.acknowledged - await names(manager)
        return sorted(missing)


async def fails(cluster: Cluster, disks: Disks, fault: str) -> dict[str, object]:
    """The leader's disk fails: it ends, the others go on, and mended it is one of them again."""
    leader = await cluster.managers.leader()
    number = cluster.managers.all.index(leader)
    others = [one for one in cluster.managers.all if one is not leader]
    {"eio": fails_every_sync, "read-only": becomes_read_only}[fault](disks.place(number))
    await cluster.write(leader)
    await cluster.write_somewhere(others)
    code = await ended(leader)
    disks.mend(number)
    leader.start()
    return {"code": code, "lost": await cluster.lost()}


async def fills_up(cluster: Cluster, disks: Disks) -> dict[str, object]:
    """The leader's disk has no space left: another one leads, and it follows when there is some."""
    leader = await cluster.managers.leader()
    number = cluster.managers.all.index(leader)
    others = [one for one in cluster.managers.all if one is not leader]
    ballast = disks.place(number) / "ballast"
    _fill(ballast)
    refusals = set[str]()
    async with asyncio.timeout(2 * DEADLINE_S):
        while "log.disk_full" not in leader.log:
            refusals.update(await asyncio.gather(*(cluster.write(leader) for _ in range(8))))
    await cluster.write_somewhere(others)
    for _ in range(3):
        await cluster.write_somewhere(others)
    successor = await cluster.managers.leader()
    runs_on = leader in cluster.managers.running
    ballast.unlink()
    return {
        "handed_over": successor is not leader,
        "runs_on": runs_on,
        "refusals": sorted(refusals - {""}),
        "lost": await cluster.lost(),
    }


def _fill(path: Path) -> None:
    """A file that takes all the space there is: asked for more, ext4 gives what it has."""
    command = ["fallocate", "-l", str(IMAGE_BYTES), str(path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert "No space left on device" in done.stderr, done.stderr


@contextlib.contextmanager
def some_disks(scratch: Path, count: int) -> Iterator[Disks]:
    disks = Disks(scratch, count)
    try:
        yield disks
    finally:
        disks.close()


async def run(scratch: Path) -> dict[str, object]:
    """One cluster for all faults; its files are gone with the mount namespace."""
    memory = ["mount", "-t", "tmpfs", "-o", "size=1g", "shoal-test", str(scratch)]
    subprocess.run(memory, check=True, timeout=30)
    with some_disks(scratch, 3) as disks, some_managers(scratch, 3) as managers:
        await managers.start()
        cluster = Cluster(managers)
        return {
            "full": await fills_up(cluster, disks),
            "eio": await fails(cluster, disks, "eio"),
            "read-only": await fails(cluster, disks, "read-only"),
            "acknowledged": len(cluster.acknowledged),
        }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(Path(sys.argv[1])))))
