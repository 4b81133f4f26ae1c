"""The Ca service: the root for whoever asks, certificates for those that the cluster let in.

A token lets a new node in; a node of the cluster renews with its certificate, and for a while
also with one that has expired. A removed node gets nothing, whatever it shows.
"""

from __future__ import annotations

from typing import Any

import grpc
import structlog
from typing_extensions import override

from manager.ca.core import (
    Authority,
    IssuedCertificate,
    JoinTokens,
    former_node,
    issue_to_joiner,
    issue_to_node,
    role_of_token,
)
from manager.store.store import Store, commit_with_retry
from manager.store.view import View
from shoal.api.v1 import ca_pb2 as pb
from shoal.api.v1 import types_pb2
from shoal.api.v1.ca_pb2_grpc import CaServicer
from shoal.clock import NS_PER_S, Clock
from shoal.errors import FailedPrecondition, InvalidArgument, PermissionDenied, Unimplemented
from shoal.ids import ClusterId, NodeId, new_id
from shoal.model.defaults import NODE_CERTIFICATE_VALIDITY_NS
from shoal.model.enums import NodeAvailability, NodeMembership, NodeRole
from shoal.model.objects import Cluster, Node
from shoal.model.plan import Change, create, update
from shoal.model.specs import NodeSpec
from shoal.model.types import NodeCertificate, NodeDescription
from shoal.security.peer import current_peer
from shoal.security.recovery import ExpiredProof
from shoal.security.roles import Role
from shoal.security.root import RootCA
from shoal.security.trust import issuer_key_id, load_certificate

HOSTNAME_LENGTH_MAX = 255
_REMOVED = (
    "this node was removed from the cluster: let it leave (`swarmctl leave --force`) and join again"
)

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
        if request.token and request.HasField("expired"):
            raise InvalidArgument("token: must be empty when an expired certificate is renewed")
        if not request.token:
            return self._renew(request)
        return await self._join(request)

    @override
    async def ConfirmNodeCertificate(
        self, request: pb.ConfirmNodeCertificateRequest, context: Context
    ) -> pb.ConfirmNodeCertificateResponse:
        node_id = current_peer().node_id
        shown = load_certificate(next(iter(context.auth_context()["x509_pem_cert"])))
        seen = NodeCertificate(
            issuer_key_id=issuer_key_id(shown),
            not_before_ns=int(shown.not_valid_before_utc.timestamp()) * NS_PER_S,
            not_after_ns=int(shown.not_valid_after_utc.timestamp()) * NS_PER_S,
        )

        def build(view: View) -> list[Change]:
            node = _require_node(view, node_id)
            known = node.certificate
            if known is not None and known.not_before_ns >= seen.not_before_ns:
                return []  # the same, or an older one that is still valid
            return [update(node.replaced(certificate=seen))]

        await commit_with_retry(self._store, build)
        return pb.ConfirmNodeCertificateResponse()

    def _renew(self, request: pb.IssueNodeCertificateRequest) -> pb.IssueNodeCertificateResponse:
        cluster = self._cluster()
        authority, now_ns = authority_of(cluster), self._clock.now_ns()
        if request.HasField("expired"):
            proof = ExpiredProof(request.expired.certificate, request.expired.signature)
            former = former_node(authority, request.csr, proof, now_ns=now_ns)
            peer = former.peer
            node = _require_node(self._store.view, peer.node_id)
            if node.certificate and former.not_before_ns < node.certificate.not_before_ns:
                raise PermissionDenied(
                    "the node has had a newer certificate than this one: restore the newer "
                    "identity, or let the node leave and join again"
                )
        else:
            peer = current_peer()
            if not peer.role.certified:
                raise PermissionDenied(
                    "a join token is needed: get one with `swarmctl join-token worker`"
                )
            node = _require_node(self._store.view, peer.node_id)
        if peer.node_id in cluster.blacklisted_certificates:
            raise PermissionDenied(_REMOVED)
        role = Role.MANAGER if node.spec.desired_role is NodeRole.MANAGER else Role.WORKER
        issued = issue_to_node(authority, request.csr, peer=peer, role=role, now_ns=now_ns)
        expired = request.HasField("expired")
        _log.info("certificate.renewed", node_id=peer.node_id, role=role, expired=expired)
        return _answer(cluster, issued)

    async def _join(
        self, request: pb.IssueNodeCertificateRequest
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
        return _answer(cluster, issued)

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


def _answer(cluster: Cluster, issued: IssuedCertificate) -> pb.IssueNodeCertificateResponse:
    manager = issued.identity.role is Role.MANAGER
    return pb.IssueNodeCertificateResponse(
        node_id=issued.identity.node_id,
        certificate=issued.certificate_pem,
        root_certificate=cluster.root_ca.certificate,
        role=types_pb2.NODE_ROLE_MANAGER if manager else types_pb2.NODE_ROLE_WORKER,
        cluster_id=cluster.id,
    )


def _require_node(view: View, node_id: str) -> Node:
    node = view.nodes.get(node_id)
    if node is None:
        raise PermissionDenied(_REMOVED)
    return node


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
