"""One member of our side: what holds a manager's state, in a process of its own.

Log (encrypted, synced), Raft, store with its indexes, and mutual TLS between members are the
product's own. On top is the smallest possible service, so that it is comparable with etcd: its
`Put`, byte for byte, which writes one config object as one transaction. A second method does what
the measurement asks for inside of this process: writes without a network in front of them.
Started by `bench.raft_cluster`; ends with it.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import msgspec

from manager.consensus.changes import MembershipChanges
from manager.consensus.driver import RaftDriver
from manager.consensus.recovery import Place, recover
from manager.consensus.roster import Member
from manager.permissions import permissions
from manager.storage.member import Opening
from manager.store.store import Store
from manager.transport.server import RaftServer
from manager.transport.transport import GrpcTransport
from shoal import heap
from shoal.api.v1 import raft_pb2_grpc
from shoal.clock import SystemClock
from shoal.errors import SwarmError, violated
from shoal.etcd.v1 import rpc_pb2
from shoal.ids import ClusterId
from shoal.model.enums import TaskState
from shoal.model.objects import Config, StoreEntry, Task
from shoal.model.plan import Change, create, update
from shoal.model.specs import ConfigSpec, ContainerSpec, TaskSpec
from shoal.model.types import Annotations, NetworkAttachment, TaskStatus
from shoal.security.grpc_tls import (
    channel_credentials,
    secure_channel,
    server_credentials,
    server_options,
)
from shoal.security.identity import read_identity
from shoal.security.interceptor import AuthorizationInterceptor
from shoal.security.peer import PeerVerifier
from shoal.settings.process import die_with_parent
from shoal.telemetry.logs import configure
from shoal.wire.errors import ErrorInterceptor

VALUE_BYTES = 1024
TASK_BYTES = 440
"""About what a task of a small service takes in the log."""
TASK_SPEC = TaskSpec(
    runtime=ContainerSpec(
        image="registry.example.org/measured/service:1.0@sha256:" + 64 * "a",
        args=("serve", "--port", "80"),
        env=("A=1", "LOG_LEVEL=info"),
    )
)
STALL_PROBE_S = 0.005
"""Often enough for stalls that matter, and rare beside the writes."""


class MemberPlan(msgspec.Struct, frozen=True):
    """How to start a member. first: it founds the cluster."""

    directory: str
    identity: str
    node_id: str
    cluster_id: ClusterId
    port: int
    client_port: int
    first: bool
    parent_pid: int


class Load(msgspec.Struct, frozen=True):
    """Writes from inside: so many callers, each with one transaction of `changes` at a time."""

    callers: int
    seconds: float
    changes: int = 1


class Done(msgspec.Struct, frozen=True):
    """What came of a load. stall_ms: the longest time the event loop was late."""

    transactions: int
    seconds: float
    p50_ms: float
    p99_ms: float
    stall_ms: float


class Request(msgspec.Struct, frozen=True, omit_defaults=True):
    """One of them: add a member, run a load; without either, only tell the status."""

    add: Member | None = None
    load: Load | None = None


class Answer(msgspec.Struct, frozen=True):
    """me: this member; leads: whether it may write; applied: the last entry."""

    me: Member
    leads: bool
    applied: int
    load: Done | None = None


class Service:
    """What the member answers to."""

    def __init__(self, store: Store, driver: RaftDriver, me: Member) -> None:
        self._store = store
        self._driver = driver
        self._changes = MembershipChanges(driver)
        self._me = me

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """For a server."""
        put = grpc.unary_unary_rpc_method_handler(
            self.put,
            request_deserializer=rpc_pb2.PutRequest.FromString,
            response_serializer=rpc_pb2.PutResponse.SerializeToString,
        )
        do = grpc.unary_unary_rpc_method_handler(
            self.do,
            request_deserializer=msgspec.json.Decoder(Request).decode,
            response_serializer=msgspec.json.encode,
        )
        return [
            grpc.method_handlers_generic_handler("etcdserverpb.KV", {"Put": put}),
            grpc.method_handlers_generic_handler("shoal.bench.Member", {"Do": do}),
        ]

    async def put(self, request: rpc_pb2.PutRequest, context: Any) -> rpc_pb2.PutResponse:
        """Write an object; answered when it is durable on a majority and applied."""
        commit = await self._store.commit([self._config(request.key.decode(), request.value)])
        return rpc_pb2.PutResponse(header=rpc_pb2.ResponseHeader(revision=commit.version))

    async def do(self, request: Request, context: Any) -> Answer:
        """Do what the measurement asks for."""
        if request.add is not None:
            await self._changes.add_learner(request.add)
            await self._promote(request.add.raft_id)
        done = None if request.load is None else await self._run(request.load)
        ready = self._driver.leading.value.ready
        return Answer(self._me, ready, self._driver.replica.applied, done)

    async def _promote(self, raft_id: int) -> None:
        while True:
            try:
                await self._changes.promote(raft_id)
                return
            except SwarmError:  # it is not connected, or has not caught up
                await asyncio.sleep(0.05)

    def _config(self, name: str, data: bytes) -> Change:
        row = Config(id=name, spec=ConfigSpec(annotations=Annotations(name=name), data=data))
        return update(row) if self._store.view.configs.get(name) is not None else create(row)

    async def _run(self, load: Load) -> Done:
        taken: list[float] = []
        late: list[float] = []
        watch = asyncio.create_task(watch_loop(late))
        await asyncio.sleep(0)
        began = time.perf_counter()
        until = began + load.seconds
        one = self._one_config if load.changes == 1 else self._one_batch
        await asyncio.gather(*(_call(one, n, load, until, taken) for n in range(load.callers)))
        took = time.perf_counter() - began
        watch.cancel()
        taken.sort()
        return Done(
            transactions=len(taken),
            seconds=took,
            p50_ms=taken[len(taken) // 2] * 1000,
            p99_ms=taken[int(len(taken) * 0.99)] * 1000,
            stall_ms=max(late, default=0.0) * 1000,
        )

    async def _one_config(self, caller: int, turn: int, load: Load) -> None:
        name = f"caller{caller}-{turn % 100}"
        await self._store.commit([self._config(name, os.urandom(8) * (VALUE_BYTES // 8))])

    async def _one_batch(self, caller: int, turn: int, load: Load) -> None:
        """Tasks of a service that move on together."""
        state = TaskState.RUNNING if turn % 2 else TaskState.STARTING
        first = (turn % 10) * load.changes
        rows = [a_task(f"{caller}-{n}", state) for n in range(first, first + load.changes)]
        known = self._store.view.tasks
        await self._store.commit(
            [update(row) if known.get(row.id) is not None else create(row) for row in rows]
        )


def a_task(name: str, state: TaskState) -> Task:
    """A task of a small service. The rows of one log entry share nothing with those of another."""
    return Task(
        id=f"task{name:0>21}",
        spec=TASK_SPEC,
        service_id="service-of-the-measurements",
        node_id=f"node-{hash(name) % 50:020}",
        slot=1,
        annotations=Annotations(name=f"measured.{name}.abcdefghijklmnopqrstuvwxy"),
        service_annotations=Annotations(name="measured", labels={"org.example.stack": "measured"}),
        status=TaskStatus(state=state, timestamp_ns=time.time_ns(), message="started"),
        desired_state=TaskState.RUNNING,
        networks=(NetworkAttachment(network_id="network-of-the-measurements"),),
    )


async def _call(
    one: Callable[[int, int, Load], Awaitable[None]],
    caller: int,
    load: Load,
    until: float,
    taken: list[float],
) -> None:
    turn = 0
    while (began := time.perf_counter()) < until:
        await one(caller, turn, load)
        taken.append(time.perf_counter() - began)
        turn += 1


async def watch_loop(late: list[float]) -> None:
    """Note how late the event loop is, seconds, again and again."""
    while True:
        asked = time.perf_counter()
        await asyncio.sleep(STALL_PROBE_S)
        late.append(time.perf_counter() - asked - STALL_PROBE_S)


async def main(plan: MemberPlan) -> None:
    """Run until the parent ends."""
    identity = read_identity(Path(plan.identity))
    address = f"127.0.0.1:{plan.port}"
    place = Place(Path(plan.directory), Opening(plan.cluster_id), plan.node_id, address)
    recovery = recover(place, StoreEntry() if plan.first else None)
    heap.settle()
    store = Store(recovery.tables, SystemClock())
    credentials = channel_credentials(identity.root_pem, identity.certificate_pem, identity.key_pem)
    transport = GrpcTransport(recovery.me, lambda target: secure_channel(target, credentials))
    driver = RaftDriver(recovery, store, transport)
    store.attach(driver)
    transport.attach(driver)
    service = Service(store, driver, recovery.me)
    tls = server_credentials(identity.root_pem, identity.certificate_pem, identity.key_pem)
    verifier = PeerVerifier(identity.root_pem, cluster_id=plan.cluster_id, clock=SystemClock())
    between = grpc.aio.server(
        interceptors=[AuthorizationInterceptor(verifier, permissions()), ErrorInterceptor()],
        options=server_options(),
    )
    raft_pb2_grpc.add_RaftServicer_to_server(RaftServer(transport), between)
    between.add_secure_port(address, tls.credentials)
    clients = grpc.aio.server(interceptors=[ErrorInterceptor()], options=server_options())
    clients.add_generic_rpc_handlers(service.handlers())
    clients.add_insecure_port(f"127.0.0.1:{plan.client_port}")
    async with transport, driver:
        await between.start()
        await clients.start()
        await driver.wait_failed()
    violated("a member of the measurement has ended")


def arguments(plan: MemberPlan) -> Sequence[str]:
    """The command that starts a member."""
    return [sys.executable, "-m", "bench.raft_member", msgspec.json.encode(plan).decode()]


if __name__ == "__main__":
    configure("bench", "warning")
    wanted = msgspec.json.decode(sys.argv[1], type=MemberPlan)
    die_with_parent(wanted.parent_pid)
    asyncio.run(main(wanted))
