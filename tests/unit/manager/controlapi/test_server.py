"""The Control service over its real wire: filters, pages, versions, removal, and no keys."""

from __future__ import annotations

import asyncio

import grpc

from manager.controlapi.validate import SPEC_BYTES_MAX
from manager.controlapi.watch import PASSED_OVER_MAX
from manager.store.tables import Tables
from shoal.api.v1 import control_pb2 as pb
from shoal.api.v1 import specs_pb2, types_pb2, watch_pb2
from shoal.api.v1.control_pb2_grpc import ControlStub
from shoal.api.v1.watch_pb2_grpc import WatchStub
from shoal.errors import ResourceExhausted
from shoal.model.enums import NodeAvailability, NodeRole, NodeState, TaskState
from shoal.model.objects import Secret
from shoal.model.plan import remove, update
from shoal.model.specs import ContainerSpec, SecretSpec, TaskSpec
from shoal.model.types import (
    Annotations,
    BlacklistedCertificate,
    NetworkAttachmentConfig,
    Placement,
)
from shoal.security.roles import Role
from shoal.security.unlock import make_unlock_key, parse_unlock_key
from shoal.wire.objects import to_pb
from tests.support.managing import (
    ROOT,
    an_identity,
    refusal,
)
from tests.support.planning import a_network, a_node, a_port, a_service, a_task
from tests.unit.manager.controlapi.conftest import CLUSTER, KEY, create, spec_pb


async def test_a_service_is_created_updated_rolled_back_and_removed(api):
    created = await create(api, replicas=2)
    assert created.spec == spec_pb(replicas=2)
    assert created.meta.version.index == api.store.view.version
    request = pb.UpdateServiceRequest(
        service="web", version=created.meta.version, spec=spec_pb(replicas=5)
    )
    updated = (await api.control.UpdateService(request)).service
    assert updated.spec.replicated.replicas == 5
    assert updated.previous_spec == created.spec
    assert updated.spec_version == created.spec_version, "scaling changes no task"
    back = pb.UpdateServiceRequest(service=created.id, version=updated.meta.version, rollback=True)
    rolled = (await api.control.UpdateService(back)).service
    assert rolled.spec == created.spec
    assert rolled.previous_spec == updated.spec
    assert rolled.update_status.message == "manually requested rollback"
    await api.control.RemoveService(pb.RemoveServiceRequest(service=created.id[:10]))
    assert len(api.store.view.services) == 0
    text = await refusal(api.control.GetService(pb.GetServiceRequest(service="web")))
    assert text == "NOT_FOUND service web not found"


async def test_what_no_node_can_give_is_told_with_the_answer(api):
    api.put(a_node("n1", labels={"zone": "a"}))
    impossible = TaskSpec(
        runtime=ContainerSpec(image="nginx:1"),
        placement=Placement(constraints=("node.labels.zone==b",)),
    )
    request = pb.CreateServiceRequest(spec=spec_pb(task=impossible))
    answer = await api.control.CreateService(request)
    told = "constraint 'node.labels.zone==b': no node of the cluster meets it"
    assert list(answer.warnings) == [told]
    version = answer.service.meta.version
    request = pb.UpdateServiceRequest(service="web", version=version, spec=spec_pb())
    possible = await api.control.UpdateService(request)
    assert list(possible.warnings) == []
    back = pb.UpdateServiceRequest(
        service="web", version=possible.service.meta.version, rollback=True
    )
    assert list((await api.control.UpdateService(back)).warnings) == [told]


async def test_versions_names_and_requests_that_say_nothing_are_refused(api):
    created = await create(api)
    control = api.control
    stale = pb.UpdateServiceRequest(
        service="web", version=types_pb2.Version(index=1), spec=spec_pb()
    )
    assert "ABORTED service: update out of sequence (read at version 1" in await refusal(
        control.UpdateService(stale)
    )
    again = pb.CreateServiceRequest(spec=spec_pb("WEB"))
    assert (await refusal(control.CreateService(again))).startswith(
        f"ALREADY_EXISTS service name 'web' is already in use by {created.id}"
    )
    text = await refusal(control.UpdateService(pb.UpdateServiceRequest(service="web")))
    assert text == "INVALID_ARGUMENT spec: must be given"
    both = pb.UpdateServiceRequest(service="web", spec=spec_pb(), rollback=True)
    assert "spec: must be unset" in await refusal(control.UpdateService(both))
    text = await refusal(control.CreateService(pb.CreateServiceRequest()))
    assert text == "INVALID_ARGUMENT spec: must be given"
    text = await refusal(
        control.UpdateService(pb.UpdateServiceRequest(service="web", rollback=True))
    )
    assert text == "FAILED_PRECONDITION service web does not have a previous spec"
    assert api.store.view.services.resolve("web").meta.version.index == created.meta.version.index


async def test_updates_under_way_together_conflict_only_if_they_name_a_version(api):
    created = await create(api)

    async def outcomes(version) -> list[str]:
        requests = [
            pb.UpdateServiceRequest(service="web", spec=spec_pb(replicas=n), version=version)
            for n in range(4)
        ]
        api.proposer.gate.clear()
        calls = [asyncio.ensure_future(outcome(api.control.UpdateService(r))) for r in requests]
        await api.control.GetCluster(pb.GetClusterRequest())  # the updates have been sent by now
        api.proposer.gate.set()
        return sorted(await asyncio.gather(*calls))

    assert await outcomes(created.meta.version) == ["ABORTED"] * 3 + ["OK"]
    assert await outcomes(None) == ["OK"] * 4


async def outcome(call) -> str:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


async def test_a_port_that_another_service_has_is_refused(api):
    await create(api, "one", ports=(a_port(80, 8080),))
    api.put(api.store.view.services.resolve("one").replaced(endpoint=None))
    host = a_service("two", ports=(a_port(80, 8080, host=True),))
    await api.control.CreateService(
        pb.CreateServiceRequest(spec=to_pb(host.spec, specs_pb2.ServiceSpec))
    )
    request = pb.CreateServiceRequest(spec=spec_pb("three", ports=(a_port(81, 8080),)))
    text = await refusal(api.control.CreateService(request))
    assert text.startswith("INVALID_ARGUMENT port 8080/tcp is already in use by service two")


async def test_a_spec_that_is_too_large_is_refused_and_nothing_breaks(api):
    big = spec_pb()
    big.annotations.labels["big"] = "x" * SPEC_BYTES_MAX
    text = await refusal(api.control.CreateService(pb.CreateServiceRequest(spec=big)))
    assert f"at most {SPEC_BYTES_MAX}: keep large content in the image" in text
    assert text.startswith("INVALID_ARGUMENT spec: ")
    await create(api)


async def test_a_request_of_5_mib_is_refused_and_the_connection_goes_on(api):
    big = spec_pb()
    big.annotations.labels["big"] = "x" * (5 << 20)
    options = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(f"unix:{api.at.socket_path}", options=options) as channel:
        control = ControlStub(channel)
        text = await refusal(control.CreateService(pb.CreateServiceRequest(spec=big)))
        assert text.startswith("RESOURCE_EXHAUSTED")
        assert "larger than max (" in text
        await control.CreateService(pb.CreateServiceRequest(spec=spec_pb()))
    assert len(api.store.view.services) == 1


async def everything(call, request, field: str):
    """All pages: their rows, and how many there were."""
    rows, pages = [], 0
    while True:
        response = await call(request)
        rows += getattr(response, field)
        pages += 1
        if not response.next_page_token:
            return rows, pages
        request.page_token = response.next_page_token


async def test_2500_tasks_come_in_pages_each_once_oldest_first(api):
    api.put(*(a_task(f"t{number:04}") for number in range(2500)))
    rows, pages = await everything(api.control.ListTasks, pb.ListTasksRequest(), "tasks")
    assert [row.id for row in rows] == [f"t{number:04}" for number in range(2500)]
    assert pages == 3
    request = pb.ListTasksRequest(page_size=7, filters=pb.Filters(ids=["t00"]))
    rows, pages = await everything(api.control.ListTasks, request, "tasks")
    assert (len(rows), pages) == (100, 15)


async def test_a_page_goes_on_after_its_last_row_whatever_happened_to_it(api):
    api.put(*(a_task(f"t{number}") for number in range(6)))
    first = await api.control.ListTasks(pb.ListTasksRequest(page_size=3))
    await api.store.commit([update(api.store.view.tasks.resolve("t5"))])
    await api.store.commit([remove(api.store.view.tasks.resolve("t2"))])
    request = pb.ListTasksRequest(page_size=3, page_token=first.next_page_token)
    assert [task.id for task in (await api.control.ListTasks(request)).tasks] == ["t3", "t4", "t5"]
    for token in ("x", "-", "12", "²-a", "-1-a", "9" * 50 + "-a"):
        text = await refusal(api.control.ListTasks(pb.ListTasksRequest(page_token=token)))
        assert text.startswith("INVALID_ARGUMENT page token: must be the one")


async def test_a_page_is_bounded_in_bytes_and_ends_nevertheless(api):
    for number in range(12):
        service = a_service(f"s{number:02}")
        labels = {"big": "x" * 1_000_000}
        annotations = service.spec.annotations.replaced(labels=labels)
        api.put(service.replaced(spec=service.spec.replaced(annotations=annotations)))
    rows, pages = await everything(api.control.ListServices, pb.ListServicesRequest(), "services")
    assert [row.id for row in rows] == [f"s{number:02}" for number in range(12)]
    assert pages == 4


async def test_filters_or_within_and_between(api):
    api.put(
        a_node("n1", labels={"zone": "a"}),
        a_node("n2", labels={"zone": "b", "ssd": ""}),
        a_node("m1").replaced(role=NodeRole.MANAGER),
        a_service("web"), a_service("db", replicas=1),
        a_task("a1", node_id="n1", slot=1), a_task("a2", node_id="n2", slot=2),
        a_task("a3", node_id="n2", slot=2, desired=TaskState.SHUTDOWN),
        a_task("b1", service_id="db", node_id="n1"),
    )  # fmt: skip

    async def nodes(**filters) -> str:
        request = pb.ListNodesRequest(filters=pb.Filters(**filters))
        return " ".join(node.id for node in (await api.control.ListNodes(request)).nodes)

    async def tasks(**filters) -> str:
        request = pb.ListTasksRequest(filters=pb.Filters(**filters))
        return " ".join(task.id for task in (await api.control.ListTasks(request)).tasks)

    async def services(**filters) -> str:
        request = pb.ListServicesRequest(filters=pb.Filters(**filters))
        return " ".join(
            service.id for service in (await api.control.ListServices(request)).services
        )

    assert await nodes() == "n1 n2 m1"
    assert await nodes(node_labels=["zone=a"]) == "n1"
    assert await nodes(node_labels=["zone"]) == "n1 n2"
    assert await nodes(node_labels=["zone=b", "ssd"]) == "n2"
    assert await nodes(names=["host-n", "host-m1"], roles=[NodeRole.WORKER]) == "n1 n2"
    assert await nodes(ids=["n", "m"], memberships=[1]) == ""
    assert await services(names=["w"]) == "web"
    assert await services(modes=["replicated"]) == "web db"
    assert await services(modes=["global"]) == ""
    assert await tasks(services=["web"], nodes=["n2"]) == "a2 a3"
    assert await tasks(services=["web", "db"], nodes=["host-n1"]) == "a1 b1"
    assert await tasks(nodes=["n1"]) == "a1 b1"
    assert await tasks(services=["gone"]) == ""
    assert await tasks(nodes=["gone"]) == ""
    assert await tasks(desired_states=[TaskState.SHUTDOWN]) == "a3"
    assert await tasks(slot=2) == "a2 a3"
    text = await refusal(
        api.control.ListServices(pb.ListServicesRequest(filters=pb.Filters(modes=["each"])))
    )
    assert text.startswith("INVALID_ARGUMENT filter mode: 'each' must be one of replicated")
    request = pb.ListNodesRequest()
    request.filters.roles.append(7)
    text = await refusal(api.control.ListNodes(request))
    assert text == "INVALID_ARGUMENT filters: 7 is not a valid NodeRole"


async def test_statuses_count_running_tasks_on_nodes_that_are_up(api):
    api.put(
        a_node("n1"), a_node("n2", state=NodeState.DOWN), a_service("web", replicas=3),
        a_task("t1", node_id="n1"), a_task("t2", node_id="n2"),
        a_task("t3", node_id="n1", desired=TaskState.SHUTDOWN),
        a_task("t4", node_id="n1", state=TaskState.STARTING),
        a_task("t5", node_id="n1", state=TaskState.COMPLETE, desired=TaskState.SHUTDOWN),
    )  # fmt: skip
    (status,) = (await api.control.ListServices(pb.ListServicesRequest())).statuses
    assert (status.running_tasks, status.desired_tasks, status.completed_tasks) == (1, 3, 1)
    one = await api.control.GetService(pb.GetServiceRequest(service="web"))
    assert one.status == status


async def test_defaults_are_shown_only_when_asked_for(api):
    await create(api)
    plain = await api.control.GetService(pb.GetServiceRequest(service="web"))
    assert not plain.service.spec.task.HasField("restart")
    filled = await api.control.GetService(pb.GetServiceRequest(service="web", insert_defaults=True))
    assert filled.service.spec.task.restart.delay_ns == 5_000_000_000
    assert filled.service.spec.update.parallelism == 1


async def test_node_removal_has_its_rules_and_refuses_the_certificate(api):
    api.put(
        a_node("up"), a_node("gone", state=NodeState.DOWN),
        a_node("boss", state=NodeState.DOWN).replaced(role=NodeRole.MANAGER),
    )  # fmt: skip

    async def leave(node: str, *, force: bool = False) -> str:
        try:
            await api.control.RemoveNode(pb.RemoveNodeRequest(node=node, force=force))
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name} {error.details()}"
        return ""

    assert (await leave("up")).startswith("FAILED_PRECONDITION node up is not down")
    assert "demote it first" in await leave("boss", force=True)
    old = BlacklistedCertificate(expires_at_ns=api.clock.now_ns() - 1)
    cluster = api.store.view.cluster
    api.put(cluster.replaced(blacklisted_certificates={"ancient": old}))
    assert await leave("gone") == ""
    assert await leave("up", force=True) == ""
    assert await leave("up", force=True) == "NOT_FOUND node up not found"
    assert [node.id for node in api.store.view.nodes] == ["boss"]
    refused = api.store.view.cluster.blacklisted_certificates
    assert set(refused) == {"gone", "up"}
    assert refused["up"].expires_at_ns > api.clock.now_ns() + 90 * 24 * 3600 * 10**9


async def test_a_worker_removes_itself_and_nobody_else(api):
    api.put(a_node("w1"), a_node("w2", state=NodeState.DOWN))
    async with api.at.channel(an_identity("w1")) as channel:
        control = ControlStub(channel)
        said = await refusal(control.RemoveNode(pb.RemoveNodeRequest(node="w2", force=True)))
        assert said == "PERMISSION_DENIED node: a worker can remove nobody but itself"
        await control.RemoveNode(pb.RemoveNodeRequest(node="w1", force=True))
    assert [node.id for node in api.store.view.nodes] == ["w2"]
    assert set(api.store.view.cluster.blacklisted_certificates) == {"w1"}


async def test_a_node_is_updated_by_version_and_never_without_a_spec(api):
    api.put(a_node("n1", labels={"zone": "a"}))
    text = await refusal(api.control.UpdateNode(pb.UpdateNodeRequest(node="n1")))
    assert text == "INVALID_ARGUMENT spec: must be given"
    assert api.store.view.nodes.resolve("n1").spec.annotations.labels == {"zone": "a"}
    spec = specs_pb2.NodeSpec(availability=types_pb2.NODE_AVAILABILITY_DRAIN)
    request = pb.UpdateNodeRequest(node="n1", spec=spec, version=types_pb2.Version(index=1))
    assert (await refusal(api.control.UpdateNode(request))).startswith("ABORTED node: update out")
    request.version.index = api.store.view.nodes.resolve("n1").meta.version.index
    assert (await api.control.UpdateNode(request)).node.spec == spec
    assert api.store.view.nodes.resolve("n1").spec.availability is NodeAvailability.DRAIN


async def test_cluster_settings_and_tokens(api):
    text = await refusal(api.control.UpdateCluster(pb.UpdateClusterRequest()))
    assert text.startswith("INVALID_ARGUMENT spec: must be given, unless")
    request = pb.UpdateClusterRequest(rotate_worker_token=True)
    cluster = (await api.control.UpdateCluster(request)).cluster
    assert cluster.root_ca.join_tokens.worker.startswith("SWMTKN-1-")
    assert cluster.root_ca.join_tokens.manager == "SWMTKN-m"
    stored = api.store.view.cluster
    assert stored.root_ca.key == CLUSTER.root_ca.key
    assert stored.spec == CLUSTER.spec
    spec = specs_pb2.ClusterSpec(annotations=specs_pb2.ClusterSpec().annotations)
    spec.dispatcher.heartbeat_period_ns = 1
    text = await refusal(api.control.UpdateCluster(pb.UpdateClusterRequest(spec=spec)))
    assert text.startswith("INVALID_ARGUMENT dispatcher heartbeat: must be between")


async def test_the_unlock_key_is_made_rotated_and_taken_away(api):
    async def change(**fields) -> pb.UpdateClusterResponse:
        return await api.control.UpdateCluster(pb.UpdateClusterRequest(**fields))

    async def key() -> pb.GetUnlockKeyResponse:
        return await api.control.GetUnlockKey(pb.GetUnlockKeyRequest())

    assert (await key()).unlock_key == ""
    refused = await refusal(change(rotate_unlock_key=True))
    assert refused.startswith("FAILED_PRECONDITION cannot rotate because autolock is not turned on")
    on, off = specs_pb2.ClusterSpec(autolock_managers=True), specs_pb2.ClusterSpec()
    chosen = make_unlock_key().render()
    assert "must start with" in await refusal(change(spec=on, unlock_key="SWMTKN-1"))
    answers = [await change(spec=on, unlock_key=chosen)]
    made = await key()
    assert (made.unlock_key, made.version.index) == (chosen, api.store.view.version)
    answers.append(await change(rotate_unlock_key=True))
    rotated = (await key()).unlock_key
    parse_unlock_key(rotated)
    assert rotated != chosen
    assert "is chosen only" in await refusal(change(spec=on, unlock_key=chosen))
    answers.append(await change(spec=on))
    assert (await key()).unlock_key == rotated
    answers.append(await change(spec=off))
    assert (await key()).unlock_key == ""
    for answer in answers:
        assert not answer.cluster.unlock_keys
    async with api.at.channel(an_identity("w1")) as channel:
        said = await refusal(ControlStub(channel).GetUnlockKey(pb.GetUnlockKeyRequest()))
        assert said.startswith("PERMISSION_DENIED")


async def test_keys_never_leave_the_managers(api):
    secret = Secret(id="s1", spec=SecretSpec(annotations=Annotations(name="s"), data=KEY))
    stream = api.watching.Watch(watch_pb2.WatchRequest(include_old_object=True))
    await stream.read()
    api.put(secret)
    api.put(secret.replaced(internal=True))
    tokens = pb.UpdateClusterRequest(rotate_manager_token=True)
    answers = [
        await api.control.GetCluster(pb.GetClusterRequest()),
        await api.control.UpdateCluster(tokens),
        *[await stream.read() for _ in range(3)],
    ]
    assert [len(answer.events) for answer in answers[2:]] == [1, 1, 1]
    for answer in answers:
        assert KEY not in answer.SerializeToString()
        assert ROOT.key_pem[30:60] not in answer.SerializeToString()
    assert answers[0].cluster.root_ca.certificate == ROOT.certificate_pem
    stream.cancel()


async def test_a_watch_is_in_place_with_its_first_message_and_selects(api):
    request = watch_pb2.WatchRequest(
        selectors=[
            watch_pb2.WatchSelector(kind="task", service_ids=["web"], actions=[1]),
            watch_pb2.WatchSelector(kind="node", names=["host-n1"]),
        ]
    )
    stream = api.watching.Watch(request)
    first = await stream.read()
    assert (first.version.index, list(first.events)) == (api.store.view.version, [])
    api.put(
        a_task("other", service_id="db"), a_task("t1"), a_task("t1"), a_node("n2"), a_node("n1")
    )
    got = [await stream.read() for _ in range(2)]
    assert [message.events[0].object.WhichOneof("object") for message in got] == ["task", "node"]
    assert got[0].version.index == api.store.view.version - 3
    stream.cancel()


async def test_a_watch_that_cannot_be_served_is_refused(api):
    async def read(request) -> str:
        return await refusal(api.watching.Watch(request).read())

    bad = watch_pb2.WatchRequest(selectors=[watch_pb2.WatchSelector(kind="pod")])
    assert (await read(bad)).startswith("INVALID_ARGUMENT selector kind: 'pod' must be one of")
    many = [watch_pb2.WatchSelector(kind="node")] * 65
    assert "65, at most 64" in await read(watch_pb2.WatchRequest(selectors=many))
    future = watch_pb2.WatchRequest(resume_from=types_pb2.Version(index=99))
    assert (await read(future)).startswith("FAILED_PRECONDITION version 99 is unknown: the cluster")
    api.store.reset(Tables(api.store.rows(), version=50))
    old = watch_pb2.WatchRequest(resume_from=types_pb2.Version(index=7))
    assert await read(old) == (
        "FAILED_PRECONDITION version 7 is compacted: watches can go on from version 50 or later:"
        " read the objects again and watch anew"
    )


async def test_a_watch_goes_on_after_the_version_it_names(api):
    api.put(a_service("web"))
    start = api.store.view.version
    api.put(a_task("t1"), a_task("t1"))
    request = watch_pb2.WatchRequest(
        selectors=[watch_pb2.WatchSelector(kind="task")], include_old_object=True
    )
    request.resume_from.index = start
    stream = api.watching.Watch(request)
    api.put(a_node("n9"), a_task("t2"))
    got = [await stream.read() for _ in range(4)]
    assert [message.version.index for message in got] == [start, start + 1, start + 2, start + 4]
    assert [len(message.events) for message in got] == [0, 1, 1, 1]
    assert got[2].events[0].old_object.task.meta.version.index == start + 1
    stream.cancel()


async def test_a_watcher_whose_wishes_are_rare_learns_how_far_it_is(api):
    request = watch_pb2.WatchRequest(selectors=[watch_pb2.WatchSelector(kind="service")])
    stream = api.watching.Watch(request)
    start = (await stream.read()).version.index
    api.put(*(a_task("t1") for _ in range(PASSED_OVER_MAX + 1)), a_service("web"))
    mark, change = await stream.read(), await stream.read()
    assert (mark.version.index, len(mark.events)) == (start + PASSED_OVER_MAX, 0)
    assert (change.version.index, len(change.events)) == (start + PASSED_OVER_MAX + 2, 1)
    stream.cancel()


async def test_a_worker_and_a_stranger_are_refused(api):
    async with api.at.channel(an_identity("w1")) as channel:
        text = await refusal(ControlStub(channel).ListNodes(pb.ListNodesRequest()))
        assert text.startswith("PERMISSION_DENIED /shoal.api.v1.Control/ListNodes is not open")
        watch = WatchStub(channel).Watch(watch_pb2.WatchRequest())
        assert (await refusal(watch.read())).startswith("PERMISSION_DENIED")
    async with api.at.channel(an_identity("m1", Role.MANAGER)) as channel:
        await ControlStub(channel).ListNodes(pb.ListNodesRequest())


async def test_a_failing_log_is_an_error_of_the_call_alone(api):
    api.proposer.error = ResourceExhausted("no space: free space and try again")
    text = await refusal(api.control.CreateService(pb.CreateServiceRequest(spec=spec_pb())))
    assert text == "RESOURCE_EXHAUSTED no space: free space and try again"
    api.proposer.error = None
    await create(api)


async def test_networks_are_created_found_listed_and_removed_when_nobody_uses_them(api):
    async def make(name: str, **fields):
        spec = to_pb(a_network(name, **fields).spec, specs_pb2.NetworkSpec)
        return (await api.control.CreateNetwork(pb.CreateNetworkRequest(spec=spec))).network

    blue = await make("blue", annotations=Annotations("blue", {"tier": "db"}))
    await make("red")
    assert await refusal(make("BLUE")) == (
        f"ALREADY_EXISTS network name 'blue' is already in use by {blue.id}: choose another name"
        " or remove that one"
    )
    got = await api.control.GetNetwork(pb.GetNetworkRequest(network=blue.id[:6]))
    assert got.network == blue

    async def names(**filters) -> list[str]:
        request = pb.ListNetworksRequest(filters=pb.Filters(**filters), page_size=1)
        found = []
        while True:
            answer = await api.control.ListNetworks(request)
            found += [one.spec.annotations.name for one in answer.networks]
            request.page_token = answer.next_page_token
            if not request.page_token:
                return found

    assert sorted(await names()) == ["blue", "red"]
    assert await names(labels=["tier=db"]) == ["blue"]
    assert await names(names=["re"], drivers=["overlay"]) == ["red"]
    assert await names(drivers=["bridge"]) == []

    task = a_service().spec.task.replaced(networks=(NetworkAttachmentConfig("blue"),))
    service = await create(api, task=task)
    assert [wish.target for wish in service.spec.task.networks] == [blue.id]
    remove_blue = pb.RemoveNetworkRequest(network="blue")
    refused = await refusal(api.control.RemoveNetwork(remove_blue))
    assert "FAILED_PRECONDITION network blue is in use by service web: remove them" in refused
    await api.control.RemoveService(pb.RemoveServiceRequest(service="web"))
    await api.control.RemoveNetwork(remove_blue)
    assert await names() == ["red"]
    assert "spec: must be given" in await refusal(
        api.control.CreateNetwork(pb.CreateNetworkRequest())
    )
