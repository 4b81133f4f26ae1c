"""A whole manager: killed while services are created, stopped, and refusing what it must.

The kills are SHOAL_KILL_ROUNDS rounds on one state directory, 3 unless the variable says otherwise;
the long form is `SHOAL_KILL_ROUNDS=20 make test`, or that file alone with pytest.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket

import grpc
import pytest

from shoal.api.v1 import ca_pb2, dispatcher_pb2, logs_pb2, specs_pb2
from shoal.api.v1 import control_pb2 as pb
from shoal.api.v1.ca_pb2_grpc import CaStub
from shoal.api.v1.control_pb2_grpc import ControlStub
from shoal.api.v1.dispatcher_pb2_grpc import DispatcherStub
from shoal.api.v1.logs_pb2_grpc import LogBrokerStub
from shoal.security.grpc_tls import (
    channel_credentials,
    joiner_credentials,
    local_channel,
    secure_channel,
)
from shoal.security.keys import make_csr, make_key
from shoal.wire.objects import to_pb
from tests.integration.manager.process import DEADLINE_S, ManagerProcess, a_manager
from tests.support.managing import refusal
from tests.support.planning import a_service

ROUNDS = int(os.environ.get("SHOAL_KILL_ROUNDS", "3"))
SERVICES = 100


@pytest.fixture
def manager(tmp_path):
    with a_manager(tmp_path) as manager:
        yield manager


def spec_pb(name: str, **fields) -> specs_pb2.ServiceSpec:
    return to_pb(a_service(name, replicas=1, **fields).spec, specs_pb2.ServiceSpec)


def control(manager: ManagerProcess) -> grpc.aio.Channel:
    return local_channel(manager.paths.manager_socket)


async def services_of(manager: ManagerProcess) -> dict[str, bytes]:
    """Every service: its spec by name."""
    found, token = {}, ""
    async with control(manager) as channel:
        while True:
            response = await ControlStub(channel).ListServices(
                pb.ListServicesRequest(page_token=token)
            )
            for service in response.services:
                found[service.spec.annotations.name] = service.spec.SerializeToString(
                    deterministic=True
                )
            token = response.next_page_token
            if not token:
                return found


async def create_until_killed(
    manager: ManagerProcess, prefix: str, kill_after: int
) -> dict[str, bytes]:
    """Create SERVICES at once; kill after so many answers. Result: what was acknowledged."""
    acknowledged: dict[str, bytes] = {}
    enough = asyncio.Event()
    async with control(manager) as channel:

        async def one(name: str) -> None:
            spec = spec_pb(name)
            try:
                await ControlStub(channel).CreateService(
                    pb.CreateServiceRequest(spec=spec), timeout=DEADLINE_S
                )
            except grpc.aio.AioRpcError:
                return
            acknowledged[name] = spec.SerializeToString(deterministic=True)
            if len(acknowledged) >= kill_after:
                enough.set()

        calls = [asyncio.create_task(one(f"{prefix}-{number}")) for number in range(SERVICES)]
        async with asyncio.timeout(DEADLINE_S):
            await enough.wait()
        manager.kill()
        await asyncio.gather(*calls)
    return acknowledged


@pytest.mark.timeout(60 + 20 * ROUNDS)
async def test_every_service_that_was_acknowledged_survives_kill_9(manager):
    chosen = random.Random(5)
    acknowledged: dict[str, bytes] = {}
    await manager.start_serving()
    for number in range(ROUNDS):
        kill_after = chosen.randint(1, SERVICES - 5)
        new = await create_until_killed(manager, f"r{number}", kill_after)
        assert len(new) >= kill_after
        acknowledged |= new
        await manager.start_serving()
        found = await services_of(manager)
        lost = acknowledged.keys() - found.keys()
        assert not lost, f"round {number}: {len(lost)} of {len(acknowledged)} lost"
        assert {name: found[name] for name in acknowledged} == acknowledged
    assert manager.stop() == 0


async def test_it_stops_in_order_and_goes_on_where_it_was(manager):
    await manager.start_serving()
    assert not manager.paths.bootstrap.exists()
    async with control(manager) as channel:
        stub = ControlStub(channel)
        created = (await stub.CreateService(pb.CreateServiceRequest(spec=spec_pb("web")))).service
        (node,) = (await stub.ListNodes(pb.ListNodesRequest())).nodes
        assert node.id == manager.node_id
        assert node.manager_status.address == manager.address
    assert manager.stop() == 0
    assert "manager.stopping" in manager.log
    await manager.start_serving()
    async with control(manager) as channel:
        again = await ControlStub(channel).GetService(pb.GetServiceRequest(service="web"))
        assert again.service.id == created.id
        assert again.service.meta.created_at_ns == created.meta.created_at_ns


async def test_too_much_in_one_request_is_refused_and_nothing_breaks(manager):
    await manager.start_serving()
    big = spec_pb("big")
    big.annotations.labels["big"] = "x" * (5 << 20)
    options = [("grpc.max_send_message_length", -1)]
    target = f"unix:{manager.paths.manager_socket}"
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        stub = ControlStub(channel)
        text = await refusal(stub.CreateService(pb.CreateServiceRequest(spec=big)))
        assert text.startswith("RESOURCE_EXHAUSTED")
        big.annotations.labels["big"] = "x" * (1 << 20)
        text = await refusal(stub.CreateService(pb.CreateServiceRequest(spec=big)))
        assert text.startswith("INVALID_ARGUMENT spec: ")
        await stub.CreateService(pb.CreateServiceRequest(spec=spec_pb("small")))
    assert set(await services_of(manager)) == {"small"}


async def test_a_service_whose_tasks_do_not_fit_into_one_entry_gets_them_in_several(manager):
    await manager.start_serving()
    spec = spec_pb("large")
    spec.replicated.replicas = 150
    spec.task.container.env.append("BIG=" + "x" * 60_000)
    async with control(manager) as channel:
        stub = ControlStub(channel)
        await stub.CreateService(pb.CreateServiceRequest(spec=spec))
        found: set[str] = set()
        async with asyncio.timeout(DEADLINE_S):
            while len(found) < 150:
                token = ""
                while True:
                    response = await stub.ListTasks(pb.ListTasksRequest(page_token=token))
                    found |= {task.id for task in response.tasks}
                    token = response.next_page_token
                    if not token:
                        break


async def join(manager: ManagerProcess):
    """A worker's channel, by the join token."""
    root = manager.secrets.root_certificate_pem
    key = make_key()
    async with secure_channel(manager.address, joiner_credentials(root)) as channel:
        request = ca_pb2.IssueNodeCertificateRequest(
            csr=make_csr(key), token=manager.secrets.tokens.worker, hostname="w1"
        )
        issued = await CaStub(channel).IssueNodeCertificate(request)
        text = await refusal(ControlStub(channel).ListNodes(pb.ListNodesRequest()))
        assert text.startswith("PERMISSION_DENIED")
    credentials = channel_credentials(root, issued.certificate, key)
    return issued.node_id, secure_channel(manager.address, credentials)


async def ended(call) -> str:
    async with asyncio.timeout(DEADLINE_S):
        try:
            while await call.read() is not grpc.aio.EOF:
                pass
        except grpc.aio.AioRpcError as error:
            return error.code().name
    return "EOF"


async def test_a_removed_node_loses_its_streams_at_once_and_its_certificate(manager):
    await manager.start_serving()
    node_id, channel = await join(manager)
    async with channel, control(manager) as local:
        dispatcher = DispatcherStub(channel)
        assert (await refusal(ControlStub(channel).ListNodes(pb.ListNodesRequest()))).startswith(
            "PERMISSION_DENIED"
        )
        session = dispatcher.Session(dispatcher_pb2.SessionRequest())
        session_id = (await session.read()).session_id
        assignments = dispatcher.Assignments(
            dispatcher_pb2.AssignmentsRequest(session_id=session_id)
        )
        assert not (await assignments.read()).more
        listening = LogBrokerStub(channel).ListenSubscriptions(
            logs_pb2.ListenSubscriptionsRequest()
        )
        stub = ControlStub(local)
        text = await refusal(stub.RemoveNode(pb.RemoveNodeRequest(node=node_id)))
        assert "is not down" in text
        await stub.RemoveNode(pb.RemoveNodeRequest(node=node_id, force=True))
        assert await ended(session) in {"FAILED_PRECONDITION", "PERMISSION_DENIED"}
        assert await ended(assignments) in {"FAILED_PRECONDITION", "PERMISSION_DENIED"}
        assert await ended(listening) in {"EOF", "PERMISSION_DENIED"}
        assert await ended(dispatcher.Session(dispatcher_pb2.SessionRequest())) == (
            "PERMISSION_DENIED"
        )


async def test_a_taken_port_and_missing_state_end_it_with_the_reason(manager):
    host, port = manager.address.split(":")
    with socket.create_server((host, int(port))):
        manager.start()
        assert await exit_code(manager) == 1
    assert "the port is taken" in manager.log
    manager.paths.bootstrap.unlink(missing_ok=True)
    for path in (manager.paths.raft / "wal").iterdir():
        path.unlink()
    manager.start()
    assert await exit_code(manager) == 1
    assert "the log beside it is gone" in manager.log
    manager.paths.node_config.unlink()
    manager.start()
    assert await exit_code(manager) == 1
    assert "leave and join again" in manager.log


async def exit_code(manager: ManagerProcess) -> int:
    assert manager.process is not None
    return await asyncio.to_thread(manager.process.wait, DEADLINE_S)
