"""The Control service: decode, decide on a view, commit, encode."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

import grpc
from typing_extensions import override

from manager.ca.autolock import LockWish, unlock_key_of
from manager.ca.core import new_join_tokens
from manager.ca.replacing import RootChanges
from manager.ca.signing import STORED_KEYS, Signer
from manager.controlapi import networks, nodes, rebalance, services, tokens, validate
from manager.controlapi.backup import Backups
from manager.controlapi.explain import explain_service
from manager.controlapi.file_calls import FileCalls
from manager.controlapi.filters import filters_of
from manager.controlapi.plans import Plans
from manager.controlapi.requests import require_spec
from manager.controlapi.select import (
    page,
    select_networks,
    select_nodes,
    select_services,
    select_tasks,
)
from manager.orchestrator.revisions import revisions_of
from manager.scheduler.outlook import warnings
from manager.store.store import Commit, Store, commit_with_retry
from manager.store.view import View
from shoal.api.v1 import control_pb2 as pb
from shoal.api.v1 import objects_pb2, types_pb2
from shoal.clock import Clock
from shoal.errors import InvalidArgument, PermissionDenied, Unimplemented
from shoal.ids import new_id
from shoal.model.enums import NodeRole, NodeState
from shoal.model.objects import AnyObject, Network, Node, Service, Task
from shoal.model.plan import Change
from shoal.model.specs import ClusterSpec, NetworkSpec, NodeSpec, ServiceSpec
from shoal.model.types import ExternalCa, JoinTokens
from shoal.security.peer import current_peer
from shoal.security.roles import Role
from shoal.security.tokens import make_join_token
from shoal.security.unlock import make_unlock_key, parse_unlock_key
from shoal.wire.objects import fill_pb, from_pb, to_pb

RowT = TypeVar("RowT", bound=AnyObject)
Context = grpc.aio.ServicerContext[Any, Any]
HandOver = Callable[[str], str]
"""Begins to make a node's manager lead, "" = any other; the id of the one that is to lead."""
ShowEndpoints = Callable[[str], pb.ListServiceEndpointsResponse]
"""The endpoints of a service; raises NotFound."""


class ControlServer(FileCalls):
    """Serves `shoal.api.v1.Control` from the store of this manager."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        term: int = 1,
        hand_over: HandOver | None = None,
        show_endpoints: ShowEndpoints | None = None,
        signer: Signer = STORED_KEYS,
    ) -> None:
        """term: in which this manager leads. hand_over: None where others choose the leader.

        show_endpoints: None where nobody dispatches.
        """
        self._roots = RootChanges(store, clock, signer)
        self._store = store
        self._clock = clock
        self._backups = Backups(store, clock, term=term)
        self._plans = Plans(store, clock)
        self._hand_over = hand_over
        self._show_endpoints = show_endpoints

    @override
    async def GetCluster(
        self, request: pb.GetClusterRequest, context: Context
    ) -> pb.GetClusterResponse:
        cluster = nodes.without_keys(nodes.require_cluster(self._store.view))
        return pb.GetClusterResponse(cluster=to_pb(cluster, objects_pb2.Cluster))

    @override
    async def UpdateCluster(
        self, request: pb.UpdateClusterRequest, context: Context
    ) -> pb.UpdateClusterResponse:
        spec = from_pb(request.spec, ClusterSpec) if request.HasField("spec") else None
        rotate = (request.rotate_worker_token, request.rotate_manager_token)
        lock = _lock_wish(request)
        if spec is None and not any(rotate) and not lock.rotate:
            raise InvalidArgument("spec: must be given, unless a token or a key is to be rotated")

        if spec is not None:
            await self._try_external(spec)

        def build(view: View) -> Sequence[Change]:
            fresh = _rotated(view, worker=rotate[0], manager=rotate[1]) if any(rotate) else None
            version = request.version.index
            if spec is not None and self._hand_over is None:
                nodes.check_without_log(view, spec)
            return nodes.update_cluster(view, spec, version=version, tokens=fresh, lock=lock)

        await self._commit(build, version=request.version.index)
        cluster = nodes.without_keys(nodes.require_cluster(self._store.view))
        return pb.UpdateClusterResponse(cluster=to_pb(cluster, objects_pb2.Cluster))

    @override
    async def GetUnlockKey(
        self, request: pb.GetUnlockKeyRequest, context: Context
    ) -> pb.GetUnlockKeyResponse:
        cluster = nodes.require_cluster(self._store.view)
        key = unlock_key_of(cluster)
        return pb.GetUnlockKeyResponse(
            unlock_key="" if key is None else key.render(),
            version=types_pb2.Version(index=cluster.meta.version.index),
        )

    @override
    async def CreateJoinToken(
        self, request: pb.CreateJoinTokenRequest, context: Context
    ) -> pb.CreateJoinTokenResponse:
        wish = _token_wish(request)

        def build(view: View) -> Sequence[Change]:
            root_pem = nodes.require_cluster(view).root_ca.certificate
            text = make_join_token(root_pem).render()
            return tokens.create_token(view, wish, text, now_ns=self._clock.now_ns())

        await self._commit(build)
        made = tokens.find_token(self._store.view, wish.name)
        return pb.CreateJoinTokenResponse(token=to_pb(made, types_pb2.ExtraJoinToken))

    @override
    async def RemoveJoinToken(
        self, request: pb.RemoveJoinTokenRequest, context: Context
    ) -> pb.RemoveJoinTokenResponse:
        await self._commit(lambda view: tokens.remove_token(view, request.name))
        return pb.RemoveJoinTokenResponse()

    @override
    async def RotateRootCa(
        self, request: pb.RotateRootCaRequest, context: Context
    ) -> pb.RotateRootCaResponse:
        external = tuple(from_pb(one, ExternalCa) for one in request.external_cas)
        validate.external_authorities(external)
        await self._roots.rotate(request.ca_certificate, request.ca_key, external)
        cluster = nodes.without_keys(nodes.require_cluster(self._store.view))
        return pb.RotateRootCaResponse(cluster=to_pb(cluster, objects_pb2.Cluster))

    @override
    async def BackupCluster(
        self, request: pb.BackupClusterRequest, context: Context
    ) -> AsyncIterator[pb.BackupClusterResponse]:
        async for answer in self._backups.stream(context):
            yield answer

    @override
    async def TransferLeadership(
        self, request: pb.TransferLeadershipRequest, context: Context
    ) -> pb.TransferLeadershipResponse:
        if self._hand_over is None:
            raise Unimplemented("the managers of this cluster do not choose who leads: etcd does")
        chosen = self._store.view.nodes.resolve(request.node).id if request.node else ""
        return pb.TransferLeadershipResponse(node_id=self._hand_over(chosen))

    @override
    async def GetNode(self, request: pb.GetNodeRequest, context: Context) -> pb.GetNodeResponse:
        node = self._store.view.nodes.resolve(request.node)
        return pb.GetNodeResponse(node=to_pb(node, objects_pb2.Node))

    @override
    async def ListNodes(
        self, request: pb.ListNodesRequest, context: Context
    ) -> pb.ListNodesResponse:
        response = pb.ListNodesResponse()

        def attach(node: Node) -> int:
            message = response.nodes.add()
            fill_pb(node, message)
            return message.ByteSize()

        response.next_page_token = page(
            select_nodes(self._store.view, filters_of(request.filters)),
            size=request.page_size,
            token=request.page_token,
            attach=attach,
        )
        return response

    @override
    async def UpdateNode(
        self, request: pb.UpdateNodeRequest, context: Context
    ) -> pb.UpdateNodeResponse:
        require_spec(request)
        spec = from_pb(request.spec, NodeSpec)
        version = request.version.index
        commit = await self._commit(
            lambda view: nodes.update_node(
                view, request.node, spec, version=version, now_ns=self._clock.now_ns()
            ),
            version=version,
        )
        return pb.UpdateNodeResponse(node=to_pb(_written(commit, Node), objects_pb2.Node))

    @override
    async def RemoveNode(
        self, request: pb.RemoveNodeRequest, context: Context
    ) -> pb.RemoveNodeResponse:
        peer = current_peer()
        if peer.role is Role.WORKER and request.node != peer.node_id:
            raise PermissionDenied("node: a worker can remove nobody but itself")
        await self._commit(
            lambda view: nodes.remove_node(
                view, request.node, force=request.force, now_ns=self._clock.now_ns()
            )
        )
        return pb.RemoveNodeResponse()

    @override
    async def CreateService(
        self, request: pb.CreateServiceRequest, context: Context
    ) -> pb.CreateServiceResponse:
        require_spec(request)
        spec = from_pb(request.spec, ServiceSpec)
        service_id = new_id()
        commit = await self._commit(
            lambda view: services.create_service(
                view, spec, service_id=service_id, now_ns=self._clock.now_ns()
            )
        )
        service = _written(commit, Service)
        return pb.CreateServiceResponse(
            service=to_pb(service, objects_pb2.Service),
            warnings=warnings(self._store.view, service.spec),
        )

    @override
    async def GetService(
        self, request: pb.GetServiceRequest, context: Context
    ) -> pb.GetServiceResponse:
        service = self._store.view.services.resolve(request.service)
        shown = services.with_defaults(service) if request.insert_defaults else service
        return pb.GetServiceResponse(
            service=to_pb(shown, objects_pb2.Service),
            status=self._status(service, self._down_nodes()),
        )

    @override
    async def ListServices(
        self, request: pb.ListServicesRequest, context: Context
    ) -> pb.ListServicesResponse:
        response = pb.ListServicesResponse()
        down = self._down_nodes()

        def attach(service: Service) -> int:
            message = response.services.add()
            fill_pb(service, message)
            response.statuses.append(self._status(service, down))
            return message.ByteSize()

        response.next_page_token = page(
            select_services(self._store.view, filters_of(request.filters)),
            size=request.page_size,
            token=request.page_token,
            attach=attach,
        )
        return response

    @override
    async def UpdateService(
        self, request: pb.UpdateServiceRequest, context: Context
    ) -> pb.UpdateServiceResponse:
        version = request.version.index
        if not request.rollback:
            require_spec(request)
        elif request.HasField("spec"):
            raise InvalidArgument("spec: must be unset when a rollback is asked for")
        if request.rollback_to and not request.rollback:
            raise InvalidArgument("rollback to: give it together with rollback")
        spec = from_pb(request.spec, ServiceSpec)

        def build(view: View) -> Sequence[Change]:
            now_ns = self._clock.now_ns()
            if request.rollback:
                return services.roll_back_service(
                    view,
                    request.service,
                    version=version,
                    now_ns=now_ns,
                    to=request.rollback_to,
                )
            return services.update_service(
                view, request.service, spec, version=version, now_ns=now_ns
            )

        service = _written(await self._commit(build, version=version), Service)
        return pb.UpdateServiceResponse(
            service=to_pb(service, objects_pb2.Service),
            warnings=warnings(self._store.view, service.spec),
        )

    @override
    async def PauseServiceUpdate(
        self, request: pb.PauseServiceUpdateRequest, context: Context
    ) -> pb.PauseServiceUpdateResponse:
        version, resume = request.version.index, request.resume

        def build(view: View) -> Sequence[Change]:
            now_ns = self._clock.now_ns()
            return services.pause_update(
                view, request.service, version=version, now_ns=now_ns, resume=resume
            )

        service = _written(await self._commit(build, version=version), Service)
        return pb.PauseServiceUpdateResponse(service=to_pb(service, objects_pb2.Service))

    @override
    async def RemoveService(
        self, request: pb.RemoveServiceRequest, context: Context
    ) -> pb.RemoveServiceResponse:
        version = request.version.index
        await self._commit(
            lambda view: services.remove_service(view, request.service, version=version),
            version=version,
        )
        return pb.RemoveServiceResponse()

    @override
    async def ListServiceRevisions(
        self, request: pb.ListServiceRevisionsRequest, context: Context
    ) -> pb.ListServiceRevisionsResponse:
        view = self._store.view
        service = view.services.resolve(request.service)
        return pb.ListServiceRevisionsResponse(
            service_id=service.id,
            current=service.revision,
            revisions=[to_pb(one, objects_pb2.Revision) for one in revisions_of(view, service)],
        )

    @override
    async def ListServiceEndpoints(
        self, request: pb.ListServiceEndpointsRequest, context: Context
    ) -> pb.ListServiceEndpointsResponse:
        if self._show_endpoints is None:
            raise Unimplemented("this manager has no endpoints to show: it tells them to no node")
        return self._show_endpoints(request.service)

    @override
    async def ExplainService(
        self, request: pb.ExplainServiceRequest, context: Context
    ) -> pb.ExplainServiceResponse:
        view = self._store.view
        service = view.services.resolve(request.service)
        return explain_service(view, service, now_ns=self._clock.now_ns())

    @override
    async def RebalanceServices(
        self, request: pb.RebalanceServicesRequest, context: Context
    ) -> pb.RebalanceServicesResponse:
        wish = rebalance.wish_of(request)
        proposal = rebalance.propose(self._store.view, wish, now_ns=self._clock.now_ns())
        if proposal.service_ids and not request.plan_only:
            await self._commit(lambda view: rebalance.ask_for(view, proposal))
        return rebalance.to_answer(proposal)

    @override
    async def PlanChanges(
        self, request: pb.PlanChangesRequest, context: Context
    ) -> pb.PlanChangesResponse:
        return await self._plans.plan(request, context)

    @override
    async def GetTask(self, request: pb.GetTaskRequest, context: Context) -> pb.GetTaskResponse:
        task = self._store.view.tasks.resolve(request.task)
        return pb.GetTaskResponse(task=to_pb(task, objects_pb2.Task))

    @override
    async def ListTasks(
        self, request: pb.ListTasksRequest, context: Context
    ) -> pb.ListTasksResponse:
        response = pb.ListTasksResponse()

        def attach(task: Task) -> int:
            message = response.tasks.add()
            fill_pb(task, message)
            return message.ByteSize()

        response.next_page_token = page(
            select_tasks(self._store.view, filters_of(request.filters)),
            size=request.page_size,
            token=request.page_token,
            attach=attach,
        )
        return response

    @override
    async def CreateNetwork(
        self, request: pb.CreateNetworkRequest, context: Context
    ) -> pb.CreateNetworkResponse:
        require_spec(request)
        spec = from_pb(request.spec, NetworkSpec)
        network_id = new_id()
        commit = await self._commit(
            lambda view: networks.create_network(view, spec, network_id=network_id)
        )
        network = _written(commit, Network)
        return pb.CreateNetworkResponse(network=to_pb(network, objects_pb2.Network))

    @override
    async def GetNetwork(
        self, request: pb.GetNetworkRequest, context: Context
    ) -> pb.GetNetworkResponse:
        network = self._store.view.networks.resolve(request.network)
        return pb.GetNetworkResponse(network=to_pb(network, objects_pb2.Network))

    @override
    async def ListNetworks(
        self, request: pb.ListNetworksRequest, context: Context
    ) -> pb.ListNetworksResponse:
        response = pb.ListNetworksResponse()

        def attach(network: Network) -> int:
            message = response.networks.add()
            fill_pb(network, message)
            return message.ByteSize()

        response.next_page_token = page(
            select_networks(self._store.view, filters_of(request.filters)),
            size=request.page_size,
            token=request.page_token,
            attach=attach,
        )
        return response

    @override
    async def RemoveNetwork(
        self, request: pb.RemoveNetworkRequest, context: Context
    ) -> pb.RemoveNetworkResponse:
        await self._commit(lambda view: networks.remove_network(view, request.network))
        return pb.RemoveNetworkResponse()

    async def _commit(
        self, build: Callable[[View], Sequence[Change]], *, version: int = 0
    ) -> Commit:
        """Commit; tried again when another change came first, unless the caller named a version."""
        if version:
            return await self._store.commit(build(self._store.view))
        return await commit_with_retry(self._store, build)

    async def _try_external(self, spec: ClusterSpec) -> None:
        """Refuse other external authorities that do not sign what they are to sign."""
        cluster = nodes.require_cluster(self._store.view)
        if spec.ca.external_cas != cluster.spec.ca.external_cas:
            validate.cluster_spec(spec)
            await self._roots.try_external(cluster.replaced(spec=spec), cluster.root_ca.certificate)

    def _down_nodes(self) -> set[str]:
        return {node.id for node in self._store.view.nodes if node.status.state is NodeState.DOWN}

    def _status(self, service: Service, down: set[str]) -> pb.ServiceStatus:
        tasks = self._store.view.tasks_of_service(service.id)
        status = services.status_of(service, tasks, down)
        return pb.ServiceStatus(
            running_tasks=status.running_tasks,
            desired_tasks=status.desired_tasks,
            completed_tasks=status.completed_tasks,
        )


def _written(commit: Commit, kind: type[RowT]) -> RowT:
    return next(event.subject for event in commit.events if isinstance(event.subject, kind))


def _rotated(view: View, *, worker: bool, manager: bool) -> JoinTokens:
    root_ca = nodes.require_cluster(view).root_ca
    fresh = new_join_tokens(root_ca.certificate)
    old = root_ca.join_tokens
    return JoinTokens(
        worker=fresh.worker if worker else old.worker,
        manager=fresh.manager if manager else old.manager,
        extra=old.extra,
    )


def _lock_wish(request: pb.UpdateClusterRequest) -> LockWish:
    given = bool(request.unlock_key)
    fresh = parse_unlock_key(request.unlock_key) if given else make_unlock_key()
    return LockWish(fresh=fresh, given=given, rotate=request.rotate_unlock_key)


def _token_wish(request: pb.CreateJoinTokenRequest) -> tokens.TokenWish:
    try:
        role = NodeRole(request.role)
    except ValueError as error:
        raise InvalidArgument("role: must be worker or manager") from error
    return tokens.TokenWish(
        name=request.name or new_id()[:12],
        role=role,
        ttl_ns=request.ttl_ns,
        uses=request.uses,
        labels=dict(request.labels),
    )
