"""The Ca service: the root for whoever asks, certificates for those that the cluster let in.

A token lets a new node in; a node of the cluster renews with its certificate, and for a while
also with one that has expired. A removed node gets nothing, whatever it shows.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import msgspec
import structlog
from typing_extensions import override

from manager.ca.core import (
    Authority,
    Invitation,
    IssuedCertificate,
    JoinTokens,
    former_node,
    invitation_of,
    joining_identity,
    renewing_identity,
    use_up,
)
from manager.ca.rotation import external_for, trust_of
from manager.ca.signing import STORED_KEYS, Signer
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
    Unavailable,
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
from shoal.security.trust import key_id, load_certificate

HOSTNAME_LENGTH_MAX = 255
_REMOVED = (
    "this node was removed from the cluster: let it leave (`swarmctl leave --force`) and join again"
)

Context = grpc.aio.ServicerContext[Any, Any]

_log = structlog.get_logger()


class CaServer(CaServicer):
    """Serves `shoal.api.v1.Ca`."""

    def __init__(self, store: Store, clock: Clock, signer: Signer = STORED_KEYS) -> None:
        self._store = store
        self._clock = clock
        self._signer = signer
        self._joining = asyncio.Lock()

    @override
    async def GetRootCaCertificate(
        self, request: pb.GetRootCaCertificateRequest, context: Context
    ) -> pb.GetRootCaCertificateResponse:
        return pb.GetRootCaCertificateResponse(
            certificate=self._cluster().root_ca.certificate, now_ns=self._clock.now_ns()
        )

    @override
    async def IssueNodeCertificate(
        self, request: pb.IssueNodeCertificateRequest, context: Context
    ) -> pb.IssueNodeCertificateResponse:
        if request.token and request.HasField("expired"):
            raise InvalidArgument("token: must be empty when an expired certificate is renewed")
        if not request.token:
            return await renewed(
                self._store, request, current_peer(), self._signer, self._clock.now_ns()
            )
        return await self._join(request)

    @override
    async def ConfirmNodeCertificate(
        self, request: pb.ConfirmNodeCertificateRequest, context: Context
    ) -> pb.ConfirmNodeCertificateResponse:
        peer = current_peer()
        authority = authority_of(self._cluster())
        trust = authority.trust
        shown = load_certificate(request.certificate)
        if trust.identify(shown).node_id != peer.node_id:
            raise PermissionDenied("certificate: must be the caller's own")
        signing_id = key_id(authority.root_pem)
        seen = NodeCertificate(
            issuer_key_id=trust.issuer_key_id(shown),
            not_before_ns=int(shown.not_valid_before_utc.timestamp()) * NS_PER_S,
            not_after_ns=int(shown.not_valid_after_utc.timestamp()) * NS_PER_S,
        )

        def build(view: View) -> list[Change]:
            node = _require_node(view, peer.node_id)
            if node.certificate is not None and not _is_newer(seen, node.certificate, signing_id):
                return []  # the same, or an older one that is still valid
            return [update(node.replaced(certificate=seen))]

        await commit_with_retry(self._store, build)
        return pb.ConfirmNodeCertificateResponse()

    async def _join(
        self, request: pb.IssueNodeCertificateRequest
    ) -> pb.IssueNodeCertificateResponse:
        _check_request(request)
        node_id, now_ns = NodeId(new_id()), self._clock.now_ns()
        authority = authority_of(self._cluster())
        identity = joining_identity(
            authority, token=request.token, new_node_id=node_id, now_ns=now_ns
        )
        issued = await self._signer.sign(authority, request.csr, identity, now_ns=now_ns)

        def build(view: View) -> list[Change]:
            cluster = _require_cluster(view)
            now = authority_of(cluster)
            invitation = invitation_of(request.token, now.tokens, now_ns=self._clock.now_ns())
            if (now.root_pem, invitation.role) != (authority.root_pem, identity.role):
                raise Unavailable("the root of the cluster has just been replaced: try again")
            return [
                create(_new_node(issued, request, invitation)),
                *_count_use(cluster, invitation),
            ]

        # One after the other: those with the same counted token would conflict over and over.
        async with self._joining:
            await commit_with_retry(self._store, build)
        _log.info("node.joined", node_id=node_id, hostname=request.hostname)
        return _answer(self._cluster(), issued)

    def _cluster(self) -> Cluster:
        return _require_cluster(self._store.view)


async def renewed(
    store: Store,
    request: pb.IssueNodeCertificateRequest,
    caller: PeerIdentity,
    signer: Signer,
    now_ns: int,
) -> pb.IssueNodeCertificateResponse:
    """Another certificate for a node of the cluster, by its proof if it sends one.

    caller: who the connection shows it to be. Raises PermissionDenied for a removed node, for
    nobody's node and for a certificate that is too old; what the proof is refused with, and what
    the signer fails with.
    """
    cluster = _require_cluster(store.view)
    identity = _renewing(store.view, request, caller, now_ns)
    issued = await signer.sign(authority_of(cluster), request.csr, identity, now_ns=now_ns)
    # An external authority takes its time: the node may have been removed, or have another role.
    if _renewing(store.view, request, caller, now_ns) != identity:
        raise Unavailable("the node has got another role meanwhile: try again")
    by_proof = request.HasField("expired")
    _log.info(
        "certificate.renewed", node_id=identity.node_id, role=identity.role, by_proof=by_proof
    )
    return _answer(cluster, issued)


def _renewing(
    view: View, request: pb.IssueNodeCertificateRequest, caller: PeerIdentity, now_ns: int
) -> PeerIdentity:
    cluster = _require_cluster(view)
    authority = authority_of(cluster)
    if request.HasField("expired"):
        proof = ExpiredProof(request.expired.certificate, request.expired.signature)
        former = former_node(authority, request.csr, proof, now_ns=now_ns)
        peer, node = former.peer, _require_node(view, former.peer.node_id)
        shown = NodeCertificate(former.issuer_key_id, former.not_before_ns)
        signing_id = key_id(authority.root_pem)
        if node.certificate and _is_newer(node.certificate, shown, signing_id):
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
    return renewing_identity(authority, peer=peer, role=role)


def _is_newer(one: NodeCertificate, other: NodeCertificate, signing_id: str) -> bool:
    """Whether a certificate of a node was issued after another one of it.

    Roots date their certificates back by more or less: dates are compared under one root only.
    Before them counts that a certificate is of the root that signs now (signing_id).
    """
    current = tuple(each.issuer_key_id == signing_id for each in (one, other))
    if current[0] != current[1]:
        return current[0]
    return one.not_before_ns > other.not_before_ns


def authority_of(cluster: Cluster) -> Authority:
    """The certificate authority as the cluster's row holds it."""
    rotation = cluster.root_ca.rotation
    if rotation is None:
        return authority_for(cluster, cluster.root_ca.certificate, cluster.root_ca.key)
    return msgspec.structs.replace(
        authority_for(cluster, rotation.ca_certificate, rotation.ca_key),
        cross_signed_pem=rotation.cross_signed_certificate,
    )


def authority_for(cluster: Cluster, root_pem: bytes, key_pem: bytes) -> Authority:
    """The authority if that root signed. key_pem: empty when it is not here."""
    validity_ns = cluster.spec.ca.node_certificate_validity_ns or NODE_CERTIFICATE_VALIDITY_NS
    tokens = cluster.root_ca.join_tokens
    return Authority(
        cluster_id=ClusterId(cluster.id),
        root_pem=root_pem,
        root=RootCA(root_pem, key_pem) if key_pem else None,
        tokens=JoinTokens(worker=tokens.worker, manager=tokens.manager, extra=tokens.extra),
        validity_s=validity_ns // NS_PER_S,
        trust_pem=trust_of(cluster.root_ca),
        external=external_for(cluster, root_pem),
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
