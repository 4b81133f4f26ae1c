"""Who gets which certificate: the decisions of the certificate authority, without any I/O.

The join token alone decides the role of a new node, the store that of a known one; a signing
request contributes its public key and nothing else. Time and new node ids are arguments.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from typing_extensions import override

from shoal.errors import FailedPrecondition, PermissionDenied, Unauthenticated
from shoal.ids import ClusterId, NodeId
from shoal.model.enums import NodeRole
from shoal.model.types import ExternalCa, ExtraJoinToken
from shoal.security.recovery import ExpiredProof, FormerIdentity, verify_expired
from shoal.security.roles import PeerIdentity, Role
from shoal.security.root import NODE_VALIDITY_S, RootCA
from shoal.security.tokens import make_join_token, parse_join_token, same_token
from shoal.security.trust import TrustBundle


class JoinTokens(msgspec.Struct, frozen=True):
    """The two invitations that are valid now, as users see them. Not shown by repr."""

    worker: str
    manager: str
    extra: tuple[ExtraJoinToken, ...] = ()

    @override
    def __repr__(self) -> str:
        return "JoinTokens(...)"


class Invitation(msgspec.Struct, frozen=True):
    """What a token lets its bearer be. name: of a token with limits, empty for the two others."""

    role: Role
    name: str = ""
    labels: Mapping[str, str] = {}


class ClusterSecrets(msgspec.Struct, frozen=True):
    """What a new cluster must store: its root certificate and key, and its join tokens."""

    root_certificate_pem: bytes
    root_key_pem: bytes
    tokens: JoinTokens

    @override
    def __repr__(self) -> str:
        return "ClusterSecrets(...)"


class Authority(msgspec.Struct, frozen=True):
    """The cluster's certificate authority as the store has it at the moment of a request.

    root_pem: the one that signs now. root: the same with its key, None when that is not here.
    external: who signs for it outside, and then before its key. cross_signed_pem: its certificate
    by the root that it replaces, sent along with what it signs; empty if it replaces none.
    """

    cluster_id: ClusterId
    root_pem: bytes
    root: RootCA | None
    tokens: JoinTokens
    validity_s: int = NODE_VALIDITY_S
    trust_pem: bytes = b""
    cross_signed_pem: bytes = b""
    external: tuple[ExternalCa, ...] = ()

    @property
    def trust(self) -> TrustBundle:
        """The roots in force: one, or two while one replaces the other."""
        return TrustBundle(self.trust_pem or self.root_pem)


class IssuedCertificate(msgspec.Struct, frozen=True):
    """A certificate and whom it names."""

    identity: PeerIdentity
    certificate_pem: bytes


def new_cluster_secrets(*, now_ns: int) -> ClusterSecrets:
    """A new root, valid for 20 years, and a token for each role."""
    root = RootCA.create(now_ns=now_ns)
    return ClusterSecrets(
        root_certificate_pem=root.certificate_pem,
        root_key_pem=root.key_pem,
        tokens=new_join_tokens(root.certificate_pem),
    )


def new_join_tokens(root_pem: bytes) -> JoinTokens:
    """New tokens for both roles; the old ones stop working once these are stored."""
    return JoinTokens(
        worker=make_join_token(root_pem).render(), manager=make_join_token(root_pem).render()
    )


def invitation_of(token: str, tokens: JoinTokens, *, now_ns: int) -> Invitation:
    """What a token invites to.

    Raises InvalidArgument for text that is no token, PermissionDenied for a token that is not one
    of the cluster's, or has expired. Every comparison is always made, in constant time.
    """
    text = parse_join_token(token).render()
    found = [
        invitation
        for known, invitation in (
            (tokens.manager, Invitation(Role.MANAGER)),
            (tokens.worker, Invitation(Role.WORKER)),
        )
        if same_token(text, known)
    ]
    for extra in tokens.extra:
        if same_token(text, extra.token):
            if extra.expires_at_ns and now_ns >= extra.expires_at_ns:
                raise PermissionDenied(
                    f"the join token {extra.name} has expired: make another one with "
                    "`swarmctl join-token create` on a manager"
                )
            role = Role.MANAGER if extra.role is NodeRole.MANAGER else Role.WORKER
            found.append(Invitation(role, extra.name, extra.labels))
    if not found:
        raise PermissionDenied(
            "the join token is not valid for this cluster, or was used up: get a current one with "
            "`swarmctl join-token worker` on a manager"
        )
    return found[0]


def use_up(extra: tuple[ExtraJoinToken, ...], name: str) -> tuple[ExtraJoinToken, ...] | None:
    """The tokens after one more join with the named one; None if that changes nothing."""
    left: list[ExtraJoinToken] = []
    changed = False
    for token in extra:
        if token.name != name or token.uses_left == 0:
            left.append(token)
            continue
        changed = True
        if token.uses_left > 1:
            left.append(token.replaced(uses_left=token.uses_left - 1))
    return tuple(left) if changed else None


def joining_identity(
    authority: Authority, *, token: str, new_node_id: NodeId, now_ns: int
) -> PeerIdentity:
    """Who a node is that joins with a token. Raises what `invitation_of` raises."""
    return PeerIdentity(
        node_id=new_node_id,
        role=invitation_of(token, authority.tokens, now_ns=now_ns).role,
        cluster_id=authority.cluster_id,
    )


def renewing_identity(authority: Authority, *, peer: PeerIdentity, role: Role) -> PeerIdentity:
    """Who a known node is from now on: renewal, promotion or demotion.

    peer: who asks, proved by its current certificate. role: what the store wants it to be.
    Raises PermissionDenied if the peer is no node of this cluster.
    """
    if not peer.role.certified or peer.cluster_id != authority.cluster_id:
        raise PermissionDenied("only a node with a certificate of this cluster can renew it")
    return PeerIdentity(node_id=peer.node_id, role=role, cluster_id=authority.cluster_id)


def issue_to_node(
    authority: Authority, csr_pem: bytes, *, peer: PeerIdentity, role: Role, now_ns: int
) -> IssuedCertificate:
    """Certify a known node again with the root's key. Raises as its two steps do."""
    identity = renewing_identity(authority, peer=peer, role=role)
    return sign_here(authority, csr_pem, identity, now_ns=now_ns)


def former_node(
    authority: Authority, csr_pem: bytes, proof: ExpiredProof, *, now_ns: int
) -> FormerIdentity:
    """Which node of this cluster the proof of an expired certificate speaks for.

    Raises Unauthenticated for a proof that does not hold or of another cluster, PermissionDenied
    for a certificate that ended too long ago, InvalidArgument for an unreadable one.
    """
    former = verify_expired(proof, csr_pem, authority.trust, now_ns=now_ns)
    if former.peer.cluster_id != authority.cluster_id:
        raise Unauthenticated("the expired certificate is for another cluster")
    return former


def sign_here(
    authority: Authority, csr_pem: bytes, identity: PeerIdentity, *, now_ns: int
) -> IssuedCertificate:
    """Certify the key of a request with the root's key.

    Raises InvalidArgument for a bad signing request or a role that is not certified,
    FailedPrecondition if the key is not here.
    """
    if authority.root is None:
        raise FailedPrecondition(
            "the key of the cluster's root is with an external authority, and none is named for it:"
            " name it with `swarmctl cluster update --external-ca`"
        )
    certificate_pem = authority.root.sign(
        csr_pem, identity, now_ns=now_ns, validity_s=authority.validity_s
    )
    return certified(authority, identity, certificate_pem)


def certified(
    authority: Authority, identity: PeerIdentity, certificate_pem: bytes
) -> IssuedCertificate:
    """A certificate with what has to be sent along with it."""
    return IssuedCertificate(
        identity=identity, certificate_pem=certificate_pem + authority.cross_signed_pem
    )
