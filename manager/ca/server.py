"""The Ca service: the root certificate for whoever asks, a node certificate for a valid token."""

from __future__ import annotations

from typing import Any

import grpc
import structlog
from typing_extensions import override

from manager.ca.core import Authority, IssuedCertificate, JoinTokens, issue_to_joiner, role_of_token
from manager.store.store import Store
from shoal.api.v1 import ca_pb2 as pb
from shoal.api.v1 import types_pb2
from shoal.api.v1.ca_pb2_grpc import CaServicer
from shoal.clock import NS_PER_S, Clock
from shoal.errors import FailedPrecondition, InvalidArgument, Unimplemented
from shoal.ids import ClusterId, NodeId, new_id
from shoal.model.defaults import NODE_CERTIFICATE_VALIDITY_NS
from shoal.model.enums import NodeAvailability, NodeMembership, NodeRole
from shoal.model.objects import Cluster, Node
from shoal.model.plan import create
from shoal.model.specs import NodeSpec
from shoal.model.types import NodeDescription
from shoal.security.roles import Role
from shoal.security.root import RootCA

HOSTNAME_LENGTH_MAX = 255

Context = grpc.aio.ServicerContext[Any, Any]

_log = structlog.get_logger()


class CaServer(CaServicer):
    """Serves `shoal.api.v1.Ca`."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    @override
    async def GetRootCaCertificate(
        self, request: pb.GetRootCaCertificateRequest, context: Context
    ) -> pb.GetRootCaCertificateResponse:
        return pb.GetRootCaCertificateResponse(certificate=self._cluster().root_ca.certificate)

    @override
    async def IssueNodeCertificate(
        self, request: pb.IssueNodeCertificateRequest, context: Context
    ) -> pb.IssueNodeCertificateResponse:
        cluster = self._cluster()
        authority = authority_of(cluster)
        if role_of_token(request.token, authority.tokens) is Role.MANAGER:
            raise Unimplemented(
                "this version runs one manager: join with the worker token instead "
                "(`swarmctl join-token worker`)"
            )
        _check_request(request)
        issued = issue_to_joiner(
            authority,
            request.csr,
            token=request.token,
            new_node_id=NodeId(new_id()),
            now_ns=self._clock.now_ns(),
        )
        await self._store.commit([create(_new_node(issued, request))])
        _log.info("node.joined", node_id=issued.identity.node_id, hostname=request.hostname)
        return pb.IssueNodeCertificateResponse(
            node_id=issued.identity.node_id,
            certificate=issued.certificate_pem,
            root_certificate=cluster.root_ca.certificate,
            role=types_pb2.NODE_ROLE_WORKER,
            cluster_id=cluster.id,
        )

    def _cluster(self) -> Cluster:
        cluster = self._store.view.cluster
        if cluster is None:
            raise FailedPrecondition("the cluster is not initialised yet: try again in a moment")
        return cluster


def authority_of(cluster: Cluster) -> Authority:
    """The certificate authority as the cluster's row holds it."""
    validity_ns = cluster.spec.ca.node_certificate_validity_ns or NODE_CERTIFICATE_VALIDITY_NS
    tokens = cluster.root_ca.join_tokens
    return Authority(
        cluster_id=ClusterId(cluster.id),
        root=RootCA(cluster.root_ca.certificate, cluster.root_ca.key),
        tokens=JoinTokens(worker=tokens.worker, manager=tokens.manager),
        validity_s=validity_ns // NS_PER_S,
    )


def _check_request(request: pb.IssueNodeCertificateRequest) -> None:
    if len(request.hostname) > HOSTNAME_LENGTH_MAX:
        raise InvalidArgument(f"hostname: at most {HOSTNAME_LENGTH_MAX} characters")
    if not request.hostname.isprintable():
        raise InvalidArgument("hostname: must not hold control characters")


def _new_node(issued: IssuedCertificate, request: pb.IssueNodeCertificateRequest) -> Node:
    try:
        availability = NodeAvailability(request.availability)
    except ValueError as error:
        raise InvalidArgument(f"availability: {error}") from error
    return Node(
        id=issued.identity.node_id,
        role=NodeRole.WORKER,
        spec=NodeSpec(
            desired_role=NodeRole.WORKER,
            membership=NodeMembership.ACCEPTED,
            availability=availability,
        ),
        description=NodeDescription(hostname=request.hostname),
    )
