"""A daemon for tests: real gRPC on a unix socket, a small cluster in memory behind it.

Tasks of a service appear at once and run after they were listed `looks_to_run` times.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from shoal.api.v1 import (
    control_pb2,
    control_pb2_grpc,
    logs_pb2,
    logs_pb2_grpc,
    node_pb2,
    node_pb2_grpc,
    objects_pb2,
    types_pb2,
    watch_pb2,
    watch_pb2_grpc,
)
from shoal.errors import DeadlineExceeded, NameConflict, NotFound, SequenceConflict
from shoal.model.enums import NodeRole, TaskState, UpdateState
from shoal.model.objects import Cluster, Config, Network, Node, Secret, Service, Task
from shoal.model.specs import ClusterSpec, NetworkSpec, NodeSpec, ReplicatedMode, ServiceSpec
from shoal.model.types import (
    ExtraJoinToken,
    JoinTokens,
    ManagerStatus,
    NodeCertificate,
    RootCa,
    RootRotation,
    UpdateStatus,
    Version,
)
from shoal.security.root import RootCA
from shoal.security.trust import key_id
from shoal.security.unlock import make_unlock_key
from shoal.wire.errors import CODE_KEY
from shoal.wire.objects import from_pb, to_pb
from shoal.wire.uploads import GO_ON
from tests.unit.swarmctl.fake_files import FakeFiles, Servicer, answered
from tests.unit.swarmctl.fake_history import FakeHistory
from tests.unit.swarmctl.rows import NODE_A, a_node, a_task, a_worker, meta

TOKENS = JoinTokens(worker="SWMTKN-1-root-worker", manager="SWMTKN-1-root-manager")


class FakeCluster:
    """What the fake daemon knows, and what it was asked to do."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.version = 100
        self.cluster = Cluster(id="cluster0", meta=meta(1), root_ca=RootCa(join_tokens=TOKENS))
        self.nodes: dict[str, Node] = {node.id: node for node in (a_node(), a_worker())}
        self.services: dict[str, Service] = {}
        self.tasks: dict[str, Task] = {}
        self.networks: dict[str, Network] = {}
        self.files: dict[str, Secret | Config] = {}
        self.looks_to_run = 2
        self.looks = 0
        self.update_state: UpdateState | None = None
        self.requests: list[object] = []
        self.node_state = "active"
        self.unlock_key = ""
        self.lose_updates = False
        self.images: dict[str, node_pb2.Image] = {}
        self.archives: list[bytes] = []
        self.log_messages: list[logs_pb2.SubscribeLogsMessage] = []
        self.backup: list[control_pb2.BackupClusterResponse] = []
        self.plan = control_pb2.PlanChangesResponse()

    def next_version(self) -> int:
        self.version += 1
        return self.version

    def find(self, table, reference, name_of, kind):
        if reference in table:
            return table[reference]
        named = [item for item in table.values() if name_of(item) == reference]
        prefixed = [item for key, item in table.items() if reference and key.startswith(reference)]
        for found in (named, prefixed):
            if len(found) == 1:
                return found[0]
        raise NotFound(f"{kind} {reference} not found")

    def service(self, reference: str) -> Service:
        return self.find(
            self.services, reference, lambda item: item.spec.annotations.name, "service"
        )

    def put_service(self, service: Service) -> Service:
        self.services[service.id] = service
        mode = service.spec.mode
        count = mode.replicas if isinstance(mode, ReplicatedMode) else 0
        for task_id in [key for key, task in self.tasks.items() if task.service_id == service.id]:
            del self.tasks[task_id]
        for slot in range(1, count + 1):
            task_id = f"t{service.meta.version.index:04d}x{slot:019d}"
            self.tasks[task_id] = a_task(
                slot, TaskState.PENDING, task_id=task_id, node_id="", service=service
            )
        self.looks = 0
        return service

    def look(self) -> None:
        self.looks += 1
        if self.looks < self.looks_to_run:
            return
        for task_id, task in list(self.tasks.items()):
            if task.status.state < TaskState.RUNNING and not task.status.error:
                status = task.status.replaced(state=TaskState.RUNNING)
                self.tasks[task_id] = task.replaced(status=status, node_id=NODE_A)


class FakeControl(FakeFiles, FakeHistory, control_pb2_grpc.ControlServicer):
    @answered
    def GetCluster(self, request, context):
        cluster = to_pb(self.state.cluster, objects_pb2.Cluster)
        return control_pb2.GetClusterResponse(cluster=cluster)

    @answered
    def UpdateCluster(self, request, context):
        tokens = self.state.cluster.root_ca.join_tokens
        if request.rotate_worker_token:
            tokens = tokens.replaced(worker=f"{tokens.worker}-new")
        if request.rotate_manager_token:
            tokens = tokens.replaced(manager=f"{tokens.manager}-new")
        spec = from_pb(request.spec, ClusterSpec)
        self.state.unlock_key = request.unlock_key or self.state.unlock_key
        if self.state.lose_updates:
            raise DeadlineExceeded("no answer")
        root_ca = RootCa(join_tokens=tokens)
        self.state.cluster = self.state.cluster.replaced(spec=spec, root_ca=root_ca)
        cluster = to_pb(self.state.cluster, objects_pb2.Cluster)
        return control_pb2.UpdateClusterResponse(cluster=cluster)

    @answered
    def GetUnlockKey(self, request, context):
        return control_pb2.GetUnlockKeyResponse(unlock_key=self.state.unlock_key)

    @answered
    def CreateJoinToken(self, request, context):
        token = ExtraJoinToken(
            name=request.name or "random",
            token=f"SWMTKN-1-root-{request.name}",
            role=NodeRole(request.role),
            expires_at_ns=time.time_ns() + request.ttl_ns if request.ttl_ns else 0,
            uses_left=request.uses,
            labels=dict(request.labels),
        )
        self._set_extra((*self._extra(), token))
        return control_pb2.CreateJoinTokenResponse(token=to_pb(token, types_pb2.ExtraJoinToken))

    @answered
    def RemoveJoinToken(self, request, context):
        left = tuple(token for token in self._extra() if token.name != request.name)
        if left == self._extra():
            raise NotFound(f"join token {request.name} not found")
        self._set_extra(left)
        return control_pb2.RemoveJoinTokenResponse()

    def _extra(self):
        return self.state.cluster.root_ca.join_tokens.extra

    def _set_extra(self, extra):
        root_ca = self.state.cluster.root_ca
        tokens = root_ca.join_tokens.replaced(extra=extra)
        self.state.cluster = self.state.cluster.replaced(
            root_ca=root_ca.replaced(join_tokens=tokens)
        )

    @answered
    def RotateRootCa(self, request, context):
        """The first look shows it half done, the second its end."""
        new = request.ca_certificate or RootCA.create(now_ns=time.time_ns()).certificate_pem
        old = self.state.cluster.root_ca
        rotating = self.state.cluster.replaced(
            root_ca=old.replaced(rotation=RootRotation(ca_certificate=new))
        )
        first, *_ = self.state.nodes.values()
        renewed = NodeCertificate(issuer_key_id=key_id(new))
        self.state.nodes[first.id] = first.replaced(certificate=renewed)
        self.state.cluster = self.state.cluster.replaced(root_ca=old.replaced(certificate=new))
        return control_pb2.RotateRootCaResponse(cluster=to_pb(rotating, objects_pb2.Cluster))

    def BackupCluster(self, request, context):
        """What was put into `backup`; an answer without anything breaks the connection off."""
        self.state.requests.append(request)
        for answer in self.state.backup:
            if not answer.ByteSize():
                context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
            yield answer

    @answered
    def TransferLeadership(self, request, context):
        """The nodes' rows say so at once."""
        chosen = self._node(request.node or list(self.state.nodes)[-1])
        for node in self.state.nodes.values():
            status = ManagerStatus(leader=node.id == chosen.id, reachable=True)
            self.state.nodes[node.id] = node.replaced(manager_status=status)
        return control_pb2.TransferLeadershipResponse(node_id=chosen.id)

    @answered
    def GetNode(self, request, context):
        node = self._node(request.node)
        return control_pb2.GetNodeResponse(node=to_pb(node, objects_pb2.Node))

    @answered
    def ListNodes(self, request, context):
        nodes = list(self.state.nodes.values())
        first = int(request.page_token or 0)
        page = nodes[first : first + 1]  # one node a page: the client must ask on
        token = str(first + 1) if first + 1 < len(nodes) else ""
        return control_pb2.ListNodesResponse(
            nodes=[to_pb(node, objects_pb2.Node) for node in page], next_page_token=token
        )

    @answered
    def UpdateNode(self, request, context):
        node = self._node(request.node)
        if request.version.index != node.meta.version.index:
            raise SequenceConflict("update out of sequence")
        node = node.replaced(
            spec=from_pb(request.spec, NodeSpec), meta=meta(self.state.next_version())
        )
        self.state.nodes[node.id] = node
        return control_pb2.UpdateNodeResponse(node=to_pb(node, objects_pb2.Node))

    @answered
    def RemoveNode(self, request, context):
        del self.state.nodes[self._node(request.node).id]
        return control_pb2.RemoveNodeResponse()

    @answered
    def CreateService(self, request, context):
        spec = from_pb(request.spec, ServiceSpec)
        names = [item.spec.annotations.name for item in self.state.services.values()]
        if spec.annotations.name in names:
            raise NameConflict(f"service {spec.annotations.name} already exists")
        index = self.state.next_version()
        service = Service(
            id=f"svc{index:022d}", meta=meta(index), spec=spec, spec_version=Version(index=index)
        )
        self.state.put_service(service)
        return control_pb2.CreateServiceResponse(service=to_pb(service, objects_pb2.Service))

    @answered
    def GetService(self, request, context):
        service = self.state.service(request.service)
        return control_pb2.GetServiceResponse(
            service=to_pb(service, objects_pb2.Service), status=self._status(service)
        )

    @answered
    def ListServices(self, request, context):
        names = set(request.filters.names)
        services = [
            item
            for item in self.state.services.values()
            if not names or item.spec.annotations.name in names
        ]
        return control_pb2.ListServicesResponse(
            services=[to_pb(item, objects_pb2.Service) for item in services],
            statuses=[self._status(item) for item in services],
        )

    @answered
    def UpdateService(self, request, context):
        service = self._at_version(request)
        spec = service.previous_spec if request.rollback else from_pb(request.spec, ServiceSpec)
        index = self.state.next_version()
        state = self.state.update_state
        status = None if state is None else UpdateStatus(state=state, message="task failed")
        updated = service.replaced(
            spec=spec,
            previous_spec=service.spec,
            meta=meta(index),
            spec_version=Version(index=index),
            update_status=status,
        )
        self.state.put_service(updated)
        return control_pb2.UpdateServiceResponse(
            service=to_pb(updated, objects_pb2.Service), warnings=["a warning"]
        )

    @answered
    def RemoveService(self, request, context):
        del self.state.services[self._at_version(request).id]
        return control_pb2.RemoveServiceResponse()

    def _at_version(self, request):
        service = self.state.service(request.service)
        read, now = request.version.index, service.meta.version.index
        removes = isinstance(request, control_pb2.RemoveServiceRequest)
        if read != now and (read or not removes):
            raise SequenceConflict(f"update out of sequence (read at version {read}, now at {now})")
        return service

    @answered
    def CreateNetwork(self, request, context):
        index = self.state.next_version()
        spec = from_pb(request.spec, NetworkSpec)
        network = Network(id=f"net{index:022d}", meta=meta(index), spec=spec)
        self.state.networks[network.id] = network
        return control_pb2.CreateNetworkResponse(network=to_pb(network, objects_pb2.Network))

    @answered
    def GetNetwork(self, request, context):
        network = self._network(request.network)
        return control_pb2.GetNetworkResponse(network=to_pb(network, objects_pb2.Network))

    @answered
    def ExplainService(self, request, context):
        service = self.state.service(request.service)
        at_ns = time.time_ns() - 65 * 10**9
        reasons = [
            control_pb2.FilterReason(filter="host_port", text="port 80/tcp\nis in use"),
            control_pb2.FilterReason(filter="constraint", text="node.role==x: the node has none"),
        ]
        waiting = control_pb2.WaitingTasks(
            count=3, task_ids=["t1", "t2"], state=types_pb2.TASK_STATE_PENDING,
            since_ns=at_ns, reason="no suitable node",
            nodes=[control_pb2.NodeReasons(node_id=NODE_A, hostname="alpha", reasons=reasons),
                   control_pb2.NodeReasons(node_id="beta")],
        )  # fmt: skip
        failure = control_pb2.TaskFailure(
            error="exit 7", count=2, last_at_ns=at_ns, node_ids=[NODE_A]
        )
        return control_pb2.ExplainServiceResponse(
            service_id=service.id, name=service.spec.annotations.name, running_tasks=1,
            desired_tasks=4, waiting=[waiting], update=["slot 1: waits"], failures=[failure],
            nodes_without=[control_pb2.NodeReasons(node_id="gamma", reasons=reasons[1:])],
            nodes_left_out=5,
        )  # fmt: skip

    @answered
    def PlanChanges(self, request, context):
        return self.state.plan

    @answered
    def RebalanceServices(self, request, context):
        services = [self.state.service(name) for name in request.services]
        moves = [
            control_pb2.ServiceMove(
                service_id=service.id, service_name=service.spec.annotations.name,
                task_id="t1", slot=1, from_node_id=NODE_A, to_node_id="beta",
            )
            for service in services
        ]  # fmt: skip
        unmovable = [
            control_pb2.UnmovableService(service_id="s", service_name="db", reason="it is packed")
        ]
        return control_pb2.RebalanceServicesResponse(
            moves=moves, unmovable=unmovable if request.all else []
        )

    @answered
    def ListServiceEndpoints(self, request, context):
        service = self.state.service(request.service) if request.service else Service()
        ready, draining = (
            control_pb2.ServiceEndpoint(
                published_port=8080, target_port=80, task_id=task_id, node_id=NODE_A,
                address="10.240.4.2", state=state, waits_for=waits_for,
            )
            for task_id, state, waits_for in (
                (f"{service.id[:8]}task1", control_pb2.SERVICE_ENDPOINT_STATE_READY, []),
                (f"{service.id[:8]}task2", control_pb2.SERVICE_ENDPOINT_STATE_DRAINING, [NODE_A]),
            )
        )  # fmt: skip
        behind = control_pb2.EndpointNode(
            node_id=NODE_A, version=7, connected=True, problem="port 8080/tcp is in use"
        )
        never = control_pb2.EndpointNode(node_id="gone")
        beside = control_pb2.NetworkEndpoint(
            network_id="n1", network="back", task_id=ready.task_id, node_id=NODE_A,
            addresses=["10.0.1.2", "fd00::2"], state=control_pb2.SERVICE_ENDPOINT_STATE_READY,
        )  # fmt: skip
        return control_pb2.ListServiceEndpointsResponse(
            version=9,
            endpoints=[ready, draining],
            nodes=[behind, never],
            network_endpoints=[beside],
        )

    @answered
    def ListNetworks(self, request, context):
        return control_pb2.ListNetworksResponse(
            networks=[to_pb(item, objects_pb2.Network) for item in self.state.networks.values()]
        )

    @answered
    def RemoveNetwork(self, request, context):
        del self.state.networks[self._network(request.network).id]
        return control_pb2.RemoveNetworkResponse()

    @answered
    def GetTask(self, request, context):
        task = self.state.find(self.state.tasks, request.task, lambda _: "", "task")
        return control_pb2.GetTaskResponse(task=to_pb(task, objects_pb2.Task))

    @answered
    def ListTasks(self, request, context):
        self.state.look()
        services, nodes = set(request.filters.services), set(request.filters.nodes)
        tasks = [
            task
            for task in self.state.tasks.values()
            if (not services or task.service_id in services)
            and (not nodes or task.node_id in nodes)
        ]
        return control_pb2.ListTasksResponse(
            tasks=[to_pb(task, objects_pb2.Task) for task in tasks]
        )

    def _network(self, reference: str) -> Network:
        return self.state.find(
            self.state.networks, reference, lambda item: item.spec.annotations.name, "network"
        )

    def _node(self, reference: str) -> Node:
        return self.state.find(
            self.state.nodes, reference, lambda item: item.description.hostname, "node"
        )

    def _status(self, service: Service) -> control_pb2.ServiceStatus:
        tasks = [task for task in self.state.tasks.values() if task.service_id == service.id]
        running = sum(task.status.state is TaskState.RUNNING for task in tasks)
        return control_pb2.ServiceStatus(running_tasks=running, desired_tasks=len(tasks))


class FakeNode(Servicer, node_pb2_grpc.NodeControlServicer):
    @answered
    def Info(self, request, context):
        return node_pb2.InfoResponse(
            version="9.9.9",
            hostname="alpha",
            state=self.state.node_state,
            node_id=NODE_A,
            cluster_id="cluster0",
            role=1,
            advertise_address="192.0.2.1:2377",
            managers=["192.0.2.1:2377"],
            nano_cpus=2_000_000_000,
            memory_bytes=1 << 30,
            processes={"worker": 12, "manager": 11},
        )

    @answered
    def Init(self, request, context):
        self.state.unlock_key = make_unlock_key().render() if request.autolock else ""
        return node_pb2.InitResponse(
            node_id=NODE_A,
            cluster_id="cluster0",
            join_tokens={"worker": TOKENS.worker, "manager": TOKENS.manager},
            advertise_address="192.0.2.1:2377",
            unlock_key=self.state.unlock_key,
        )

    @answered
    def Unlock(self, request, context):
        return node_pb2.UnlockResponse()

    @answered
    def Join(self, request, context):
        return node_pb2.JoinResponse(node_id=NODE_A, role=0)

    @answered
    def Leave(self, request, context):
        return node_pb2.LeaveResponse()

    def Restore(self, requests, context):
        """Takes in what comes, unless a node of the cluster is called "busy"."""
        first = next(requests)
        self.state.requests.append(first)
        if "busy" in self.state.nodes:
            self._refuse(context, "This node is already part of a cluster.")
        context.send_initial_metadata(GO_ON)
        received, is_whole = b"", False
        for request in requests:
            received, is_whole = received + request.chunk, request.last
        if received.startswith(b"no backup"):
            self._refuse(context, "backup: not a backup of Shoal")
        if is_whole:
            self.state.archives.append(received)
        return node_pb2.RestoreResponse(
            node_id=NODE_A,
            cluster_id="cluster0",
            advertise_address="192.0.2.1:2377",
            objects=12,
            created_at_ns=1_700_000_000 * 10**9,
            known_nodes=len(self.state.nodes),
            autolock=True,
        )

    def _refuse(self, context, text: str) -> None:
        context.set_trailing_metadata(((CODE_KEY, "failed_precondition"),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, text)


class FakeImages(Servicer, node_pb2_grpc.ImagesServicer):
    def ImportImage(self, requests, context):
        first = next(requests)
        self.state.requests.append(first)
        self.state.archives.append(b"".join(request.chunk for request in requests))
        image = node_pb2.Image(
            id="sha256:" + "ab" * 32,
            names=[first.reference],
            size_bytes=1_990_000,
            created_at_ns=1,
            config={"command": ["sh"], "labels": {"a": "b"}},
        )
        self.state.images[first.reference] = image
        return node_pb2.ImportImageResponse(image=image)

    def LoadImages(self, requests, context):
        self.state.archives.append(b"".join(request.chunk for request in requests))
        return node_pb2.LoadImagesResponse(names=["web:1"])

    @answered
    def ListImages(self, request, context):
        return node_pb2.ListImagesResponse(images=self.state.images.values())

    @answered
    def InspectImage(self, request, context):
        return node_pb2.InspectImageResponse(image=self._image(request.image))

    @answered
    def RemoveImage(self, request, context):
        self._image(request.image)
        image = self.state.images.pop(request.image)
        return node_pb2.RemoveImageResponse(untagged=[request.image], deleted=[image.id])

    def _image(self, name: str) -> node_pb2.Image:
        if name not in self.state.images:
            raise NotFound(f"image {name} not found")
        return self.state.images[name]


class FakeLogs(Servicer, logs_pb2_grpc.LogsServicer):
    def SubscribeLogs(self, request, context):
        self.state.requests.append(request)
        yield from self.state.log_messages


class FakeWatch(Servicer, watch_pb2_grpc.WatchServicer):
    def Watch(self, request, context):
        yield watch_pb2.WatchMessage()
        ended = threading.Event()
        context.add_callback(ended.set)
        ended.wait(timeout=30)


class FakeDaemon:
    """The server; `address` is what --host takes."""

    def __init__(self, directory: Path, *, watch: bool = False) -> None:
        self.state = FakeCluster()
        socket = directory / "d.sock"
        self.address = f"unix://{socket}"
        self._pool = ThreadPoolExecutor(max_workers=4)
        self._server = grpc.server(self._pool)
        control_pb2_grpc.add_ControlServicer_to_server(FakeControl(self.state), self._server)
        node_pb2_grpc.add_NodeControlServicer_to_server(FakeNode(self.state), self._server)
        node_pb2_grpc.add_ImagesServicer_to_server(FakeImages(self.state), self._server)
        logs_pb2_grpc.add_LogsServicer_to_server(FakeLogs(self.state), self._server)
        if watch:
            watch_pb2_grpc.add_WatchServicer_to_server(FakeWatch(self.state), self._server)
        self._server.add_insecure_port(f"unix:{socket}")
        self._server.start()

    def stop(self) -> None:
        self._server.stop(grace=None).wait(timeout=10)
        self._pool.shutdown(wait=True)
