"""The Ca service: the root for whoever asks, certificates for those that the cluster let in.

A token lets a new node in; a node of the cluster renews with its certificate, and for a while
also with one that has expired. A removed node gets nothing, whatever it shows.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import structlog
from typing_extensions import override

from manager.ca.core import (
    Authority,
    Invitation,
    IssuedCertificate,
    JoinTokens,
    former_node,
    invitation_of,
    issue_to_joiner,
    issue_to_node,
    use_up,
)
from manager.ca.rotation import trust_of
from manager.store.store import Store, commit_with_retry
from manager.store.view import View
from shoal.api.v1 import ca_pb2 as pb
from shoal.api.v1 import types_pb2
from shoal.api.v1.ca_pb2_grpc import CaServicer
from shoal.clock import NS_PER_S, Clock
from shoal.errors import (
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    violated,
)
from shoal.ids import ClusterId, NodeId, new_id
from shoal.model.defaults import NODE_CERTIFICATE_VALIDITY_NS
from shoal.model.enums import NodeAvailability, NodeMembership, NodeRole
from shoal.model.objects import Cluster, Node
from shoal.model.plan import Change, create, update
from shoal.model.specs import NodeSpec
from shoal.model.types import Annotations, NodeCertificate, NodeDescription
from shoal.security.peer import current_peer
from shoal.security.recovery import ExpiredProof
from shoal.security.roles import PeerIdentity, Role
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
        self._joining = asyncio.Lock()

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
            return renewed(self._store.view, request, current_peer(), self._clock.now_ns())
        return await self._join(request)

    @override
    async def ConfirmNodeCertificate(
        self, request: pb.ConfirmNodeCertificateRequest, context: Context
    ) -> pb.ConfirmNodeCertificateResponse:
        peer = current_peer()
        trust = authority_of(self._cluster()).trust
        shown = load_certificate(request.certificate)
        if trust.identify(shown).node_id != peer.node_id:
            raise PermissionDenied("certificate: must be the caller's own")
        seen = NodeCertificate(
            issuer_key_id=issuer_key_id(shown),
            not_before_ns=int(shown.not_valid_before_utc.timestamp()) * NS_PER_S,
            not_after_ns=int(shown.not_valid_after_utc.timestamp()) * NS_PER_S,
        )

        def build(view: View) -> list[Change]:
            node = _require_node(view, peer.node_id)
            known = node.certificate
            if known is not None and known.not_before_ns >= seen.not_before_ns:
                return []  # the same, or an older one that is still valid
            return [update(node.replaced(certificate=seen))]

        await commit_with_retry(self._store, build)
        return pb.ConfirmNodeCertificateResponse()

    async def _join(
        self, request: pb.IssueNodeCertificateRequest
    ) -> pb.IssueNodeCertificateResponse:
        _check_request(request)
        node_id = NodeId(new_id())
        # One after the other: those with the same counted token would conflict over and over.
        async with self._joining:
            issued: IssuedCertificate | None = None

            def build(view: View) -> list[Change]:
                nonlocal issued
                now_ns = self._clock.now_ns()
                authority = authority_of(_require_cluster(view))
                invitation = invitation_of(request.token, authority.tokens, now_ns=now_ns)
                issued = issue_to_joiner(
                    authority,
                    request.csr,
                    token=request.token,
                    new_node_id=node_id,
                    now_ns=now_ns,
                )
                return [
                    create(_new_node(issued, request, invitation)),
                    *_count_use(_require_cluster(view), invitation),
                ]

            await commit_with_retry(self._store, build)
        if issued is None:
            violated("a join committed without a certificate")
        _log.info("node.joined", node_id=node_id, hostname=request.hostname)
        return _answer(self._cluster(), issued)

    def _cluster(self) -> Cluster:
        return _require_cluster(self._store.view)


def renewed(
    view: View, request: pb.IssueNodeCertificateRequest, caller: PeerIdentity, now_ns: int
) -> pb.IssueNodeCertificateResponse:
    """Another certificate for a node of the cluster, by its proof if it sends one.

    caller: who the connection shows it to be. Raises PermissionDenied for a removed node, for
    nobody's node and for a certificate that is too old; what the proof is refused with.
    """
    cluster = _require_cluster(view)
    authority = authority_of(cluster)
    expired = request.HasField("expired")
    if expired:
        proof = ExpiredProof(request.expired.certificate, request.expired.signature)
        former = former_node(authority, request.csr, proof, now_ns=now_ns)
        peer, node = former.peer, _require_node(view, former.peer.node_id)
        if node.certificate and former.not_before_ns < node.certificate.not_before_ns:
            raise PermissionDenied(
                "the node has had a newer certificate than this one: restore the newer identity, "
                "or let the node leave and join again"
            )
    elif caller.role.certified:
        peer, node = caller, _require_node(view, caller.node_id)
    else:
        raise PermissionDenied("a join token is needed: get one with `swarmctl join-token worker`")
    refused = cluster.blacklisted_certificates.get(peer.node_id)
    if refused is not None and now_ns < refused.expires_at_ns:
        raise PermissionDenied(_REMOVED)
    role = Role.MANAGER if node.certified_role is NodeRole.MANAGER else Role.WORKER
    issued = issue_to_node(authority, request.csr, peer=peer, role=role, now_ns=now_ns)
    _log.info("certificate.renewed", node_id=peer.node_id, role=role, by_proof=expired)
    return _answer(cluster, issued)


def authority_of(cluster: Cluster) -> Authority:
    """The certificate authority as the cluster's row holds it."""
    validity_ns = cluster.spec.ca.node_certificate_validity_ns or NODE_CERTIFICATE_VALIDITY_NS
    root_ca = cluster.root_ca
    tokens, rotation = root_ca.join_tokens, root_ca.rotation
    if rotation is None:
        root, cross_signed = RootCA(root_ca.certificate, root_ca.key), b""
    else:
        root = RootCA(rotation.ca_certificate, rotation.ca_key)
        cross_signed = rotation.cross_signed_certificate
    return Authority(
        cluster_id=ClusterId(cluster.id),
        root=root,
        tokens=JoinTokens(worker=tokens.worker, manager=tokens.manager, extra=tokens.extra),
        validity_s=validity_ns // NS_PER_S,
        trust_pem=trust_of(root_ca),
        cross_signed_pem=cross_signed,
    )


def _answer(cluster: Cluster, issued: IssuedCertificate) -> pb.IssueNodeCertificateResponse:
    manager = issued.identity.role is Role.MANAGER
    return pb.IssueNodeCertificateResponse(
        node_id=issued.identity.node_id,
        certificate=issued.certificate_pem,
        root_certificate=trust_of(cluster.root_ca),
        role=types_pb2.NODE_ROLE_MANAGER if manager else types_pb2.NODE_ROLE_WORKER,
        cluster_id=cluster.id,
    )


def _count_use(cluster: Cluster, invitation: Invitation) -> list[Change]:
    """The change that makes the token one use poorer, decided by the commit of the join itself."""
    tokens = cluster.root_ca.join_tokens
    left = use_up(tokens.extra, invitation.name)
    if left is None:
        return []
    root_ca = cluster.root_ca.replaced(join_tokens=tokens.replaced(extra=left))
    return [update(cluster.replaced(root_ca=root_ca))]


def _require_cluster(view: View) -> Cluster:
    if view.cluster is None:
        raise FailedPrecondition("the cluster is not initialised yet: try again in a moment")
    return view.cluster


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


def _new_node(
    issued: IssuedCertificate, request: pb.IssueNodeCertificateRequest, invitation: Invitation
) -> Node:
    try:
        availability = NodeAvailability(request.availability)
    except ValueError as error:
        raise InvalidArgument(f"availability: {error}") from error
    is_manager = invitation.role is Role.MANAGER
    return Node(
        id=issued.identity.node_id,
        role=NodeRole.WORKER,  # until it is a member of the consensus group
        spec=NodeSpec(
            annotations=Annotations(labels=dict(invitation.labels)),
            desired_role=NodeRole.MANAGER if is_manager else NodeRole.WORKER,
            membership=NodeMembership.ACCEPTED,
            availability=availability,
        ),
        description=NodeDescription(hostname=request.hostname),
    )
