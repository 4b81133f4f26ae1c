"""Managers whose disks lose power all at once, while clients write; then: what was acknowledged?

Every manager is a lab node whose whole state directory is on a disk of its own. One round: clients
create services and change registers by version over every node; the power of all disks is cut, all
processes are killed; the disks are mounted again, the nodes started, and everything acknowledged in
this round or an earlier one is looked for. No acknowledged write may be missing, and no register
may be older than its last acknowledged value.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc
import msgspec

from shoal.api.v1 import control_pb2 as pb
from shoal.api.v1.control_pb2_grpc import ControlStub
from swarmctl.lab import nodes, verbs
from swarmctl.lab.plan import LabPlan, NodePlan, daemon_command
from tests.linearizability.history import Call, Item, Kind, Outcome, Result
from tests.linearizability.service import GrpcService, Unknown, item_of
from tests.powercut import unsynced
from tests.powercut.disks import Disk

REPOSITORY = Path(__file__).parents[2]
ACKNOWLEDGED_WITHIN_S = 60.0
SERVES_WITHIN_S = 30.0
SNAPSHOT_INTERVAL = 300


class Settings(msgspec.Struct, frozen=True):
    """What to run. no_sync: managers forget to sync their log; acks: drawn for each cut.

    cpus: those the managers may run on, as taskset takes them.
    """

    managers: int = 1
    cuts: int = 20
    seed: int = 1
    no_sync: bool = False
    clients: int = 12
    acks: tuple[int, int] = (20, 400)
    cpus: str = "0"


class Round(msgspec.Struct, frozen=True):
    """What one cut did. acknowledged: writes of all rounds so far; detail: of a loss."""

    cut: int
    acknowledged: int
    lost: int
    detail: str
    serving_after_s: float


class Ledger:
    """What was acknowledged."""

    def __init__(self) -> None:
        self.created: dict[str, Item] = {}
        self.registers: dict[str, Item] = {}
        self.count = 0

    def wrote(self, call: Call, outcome: Outcome) -> None:
        """Take note of an answer."""
        if outcome.result is not Result.OK:
            return
        (item,) = outcome.items
        self.count += 1
        kept = self.registers if call.group == "register" else self.created
        kept[call.name] = item

    def lost(self, found: Sequence[Item]) -> list[str]:
        """Names of what is missing or older than acknowledged."""
        present = {item.name: item for item in found}
        gone = [name for name, item in self.created.items() if present.get(name) != item]
        for name, item in self.registers.items():
            now = present.get(name)
            if now is None or (now.version, now.value) < (item.version, item.value):
                gone.append(name)
        return gone


class Rig:
    """A lab on disks of its own. Use it inside a private mount namespace."""

    def __init__(self, scratch: Path, settings: Settings) -> None:
        self.settings = settings
        self.lab = f"cut{secrets.token_hex(3)}"
        self._scratch = scratch
        self._names = [f"m{number}" for number in range(1, settings.managers + 1)]
        self._disks = [Disk(scratch, name) for name in self._names]
        self._ledger = Ledger()
        self._random = random.Random(settings.seed)

    def run(self) -> Iterator[Round]:
        """One result a cut."""
        for disk in self._disks:
            disk.make()
        options = verbs.UpOptions(
            name=self.lab, root=str(self._scratch), managers=len(self._names), workers=0, subnet=""
        )
        plan = verbs.up(options, report=lambda text: None, command=self._command).plan
        asyncio.run(self._set_snapshot_interval(plan))
        for number in range(1, self.settings.cuts + 1):
            acks = self._random.randint(*self.settings.acks)
            asyncio.run(self._write_until_cut(plan, number, acks))
            for node in plan.nodes:
                nodes.kill(plan, node, hard=True)
            for disk in self._disks:
                disk.unmount()
            for disk in self._disks:
                disk.mount()
            yield self._compare(plan, number)

    def close(self) -> None:
        """Take everything down, also a half-made lab."""
        verbs.down(str(self._scratch), self.lab)
        for disk in self._disks:
            disk.remove()

    def _command(self, lab: LabPlan, node: NodePlan) -> list[str]:
        words = daemon_command(lab, node, python=sys.executable)
        words[words.index("--state-dir") + 1] = str(self._scratch / node.name / "state")
        if self.settings.no_sync:
            words[3:4] = [unsynced.MODULE, "swarmd"]
        cpus = ["taskset", "--cpu-list", self.settings.cpus]
        return [*cpus, "/usr/bin/env", f"PYTHONPATH={REPOSITORY}", *words]

    async def _write_until_cut(self, plan: LabPlan, number: int, acks: int) -> None:
        """Write until so many were acknowledged, cut, and take note of the answers on the way."""
        goal = self._ledger.count + acks
        cut = asyncio.Event()
        writers = [
            asyncio.create_task(self._write(plan, number, client, cut.is_set))
            for client in range(self.settings.clients)
        ]
        end_s = time.monotonic() + ACKNOWLEDGED_WITHIN_S
        try:
            while self._ledger.count < goal:
                assert time.monotonic() < end_s, "the managers take no writes"
                for writer in writers:
                    assert not writer.done(), writer.exception()
                await asyncio.sleep(0.005)
            for disk in self._disks:
                disk.cut()
            cut.set()
            for node in plan.nodes:
                await asyncio.to_thread(nodes.kill, plan, node)
            await asyncio.gather(*writers)
        finally:
            for writer in writers:
                writer.cancel()

    async def _write(
        self, plan: LabPlan, number: int, client: int, stopping: Callable[[], bool]
    ) -> None:
        """One client; an answer that comes after the cut counts as any other."""
        node = plan.nodes[client % len(plan.nodes)]
        service = GrpcService(nodes.paths_of(plan, node).socket)
        turn = 0
        try:
            while not stopping():
                turn += 1
                call = self._next(number, client, turn)
                try:
                    outcome = await service.call(call)
                except Unknown:
                    await asyncio.sleep(0.02)
                    continue
                self._ledger.wrote(call, outcome)
        finally:
            await service.close()

    def _next(self, number: int, client: int, turn: int) -> Call:
        """Every second write changes the client's register, once it has one."""
        value = f"{number}.{client}.{turn}"
        name = f"register-{number}-{client}"
        last = self._ledger.registers.get(name)
        if last is not None and turn % 2:
            return Call(Kind.UPDATE, "register", name, value, last.version)
        if turn == 1:
            return Call(Kind.CREATE, "register", name, value)
        name = f"made-{number}-{client}-{turn}"
        return Call(Kind.CREATE, "made", name, value)

    def _compare(self, plan: LabPlan, number: int) -> Round:
        began_s = time.monotonic()
        for name in self._names:
            verbs.start(
                str(self._scratch), self.lab, name, timeout_s=SERVES_WITHIN_S,
                command=self._command,
            )  # fmt: skip
        try:
            found = asyncio.run(self._read(plan))
        except TimeoutError:
            # A manager that refuses its log keeps everything from its users: as bad as a loss.
            tails = "\n".join(
                nodes.log_tail(nodes.paths_of(plan, node), lines=5) for node in plan.nodes
            )
            text = f"no answer within {SERVES_WITHIN_S:g} s\n{tails}"
            return Round(number, self._ledger.count, self._ledger.count, text, 0.0)
        serving_after_s = time.monotonic() - began_s
        lost = self._ledger.lost(found)
        text = f"e.g. {lost[0]}" if lost else ""
        return Round(number, self._ledger.count, len(lost), text, round(serving_after_s, 2))

    async def _read(self, plan: LabPlan) -> list[Item]:
        """Everything, as soon as any node answers; every node must in the end."""
        found: list[Item] = []
        async with asyncio.timeout(SERVES_WITHIN_S):
            for node in plan.nodes:
                found = await _services(nodes.paths_of(plan, node).socket)
        return found

    async def _set_snapshot_interval(self, plan: LabPlan) -> None:
        """Snapshots often, so that cuts meet them and the release of old segments."""
        socket = nodes.paths_of(plan, plan.nodes[0]).socket
        async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
            stub = ControlStub(channel)
            cluster = (await stub.GetCluster(pb.GetClusterRequest())).cluster
            request = pb.UpdateClusterRequest(version=cluster.meta.version, spec=cluster.spec)
            request.spec.raft.snapshot_interval = SNAPSHOT_INTERVAL
            await stub.UpdateCluster(request)


async def _services(socket: str) -> list[Item]:
    """Every service over one socket, however long it takes the node to answer."""
    while True:
        found: list[Item] = []
        request = pb.ListServicesRequest()
        try:
            async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
                while True:
                    page = await ControlStub(channel).ListServices(request, timeout=10)
                    found += [item_of(service) for service in page.services]
                    request.page_token = page.next_page_token
                    if not request.page_token:
                        return found
        except grpc.aio.AioRpcError as error:
            if error.code() not in (
                grpc.StatusCode.UNAVAILABLE,
                grpc.StatusCode.DEADLINE_EXCEEDED,
            ):
                raise
            await asyncio.sleep(0.05)


@contextmanager
def a_rig(scratch: Path, settings: Settings) -> Iterator[Rig]:
    """A rig that leaves nothing behind."""
    os.environ["SHOAL_CONFIG_DIR"] = str(scratch / "config")
    rig = Rig(scratch, settings)
    try:
        yield rig
    finally:
        rig.close()
        shutil.rmtree(scratch / "config", ignore_errors=True)
