"""The Control and Watch services over a real socket, above a store without a log."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest

from manager.controlapi.server import ControlServer
from manager.controlapi.watch import WatchServer
from manager.store.store import Store
from shoal.api.v1 import control_pb2 as pb
from shoal.api.v1 import specs_pb2
from shoal.api.v1.control_pb2_grpc import ControlStub, add_ControlServicer_to_server
from shoal.api.v1.watch_pb2_grpc import WatchStub, add_WatchServicer_to_server
from shoal.model.objects import Cluster
from shoal.model.specs import ClusterSpec
from shoal.model.types import (
    CaConfig,
    EncryptionKey,
    JoinTokens,
    RootCa,
    RootRotation,
)
from shoal.security.grpc_tls import local_channel
from shoal.wire.objects import to_pb
from tests.support.managing import (
    ROOT,
    HandClock,
    MemoryProposer,
    Served,
    a_store,
    put_now,
    served,
)
from tests.support.planning import a_service

KEY = b"TOPSECRETKEYBYTES"
CLUSTER = Cluster(
    id="c1",
    spec=ClusterSpec(ca=CaConfig(signing_ca_key=KEY)),
    root_ca=RootCa(
        certificate=ROOT.certificate_pem,
        key=ROOT.key_pem + KEY,
        join_tokens=JoinTokens(worker="SWMTKN-w", manager="SWMTKN-m"),
        rotation=RootRotation(ca_certificate=b"new", ca_key=KEY),
    ),
    network_bootstrap_keys=(EncryptionKey(key=KEY),),
    unlock_keys=(EncryptionKey(key=KEY),),
)


class Api:
    def __init__(
        self, store: Store, proposer: MemoryProposer, clock: HandClock, at: Served
    ) -> None:
        self.store, self.proposer, self.clock, self.at = store, proposer, clock, at
        self.channel = local_channel(at.socket_path)
        self.control = ControlStub(self.channel)
        self.watching = WatchStub(self.channel)

    def put(self, *rows) -> None:
        for row in rows:
            put_now(self.store, self.proposer, row)


@pytest.fixture
async def api(tmp_path) -> AsyncIterator[Api]:
    clock = HandClock()
    store, proposer = a_store([CLUSTER], clock)

    def add(server: grpc.aio.Server) -> None:
        add_ControlServicer_to_server(ControlServer(store, clock), server)
        add_WatchServicer_to_server(WatchServer(store), server)

    async with served(add, tmp_path / "manager.sock") as at:
        api = Api(store, proposer, clock, at)
        async with api.channel:
            yield api


def spec_pb(name: str = "web", **fields) -> specs_pb2.ServiceSpec:
    return to_pb(a_service(name, **fields).spec, specs_pb2.ServiceSpec)


async def create(api: Api, name: str = "web", **fields):
    request = pb.CreateServiceRequest(spec=spec_pb(name, **fields))
    return (await api.control.CreateService(request)).service
