"""Replacing the cluster's root: what each stage writes, decided on the store's rows. Pure.

1. `begin` records the new root beside the old one, and the new root's key certified by the old
   root. From then on both are believed, every node is told so, and the new root signs.
2. `next_batch` asks nodes to renew, 30 at a time; managers come last, so that a worker that has
   not heard of the new root yet still finds managers that the old one vouches for.
3. `finish`, once every node has confirmed a certificate of the new root: the old root is dropped,
   and with it every join token, since tokens carry the root's digest.
A node that is away holds the rotation up until it is back or removed: nobody is locked out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from manager.ca.core import new_join_tokens
from shoal.errors import FailedPrecondition, InvalidArgument, violated
from shoal.model.enums import NodeRole
from shoal.model.objects import Cluster, Node
from shoal.model.types import JoinTokens, NodeCertificate, RootCa, RootRotation
from shoal.security.root import RootCA
from shoal.security.tokens import make_join_token
from shoal.security.trust import key_id, merge_roots, root_digest

BATCH_MAX = 30


def successor_of(certificate_pem: bytes, key_pem: bytes, *, now_ns: int) -> RootCA:
    """The root that the user brings, or a new one for 20 years if both are empty.

    Raises InvalidArgument naming what is missing or does not fit.
    """
    if not certificate_pem and not key_pem:
        return RootCA.create(now_ns=now_ns)
    if not certificate_pem or not key_pem:
        missing = "key" if certificate_pem else "certificate"
        raise InvalidArgument(f"ca {missing}: must be given: certificate and key go together")
    if certificate_pem.count(b"-----BEGIN CERTIFICATE-----") != 1:
        raise InvalidArgument(
            "ca certificate: must be exactly one PEM certificate, the root itself"
        )
    try:
        return RootCA(certificate_pem, key_pem)
    except InvalidArgument as error:
        raise InvalidArgument(f"ca certificate: {error.message}") from error


def begin(cluster: Cluster, successor: RootCA, *, now_ns: int) -> Cluster:
    """Stage 1. Raises InvalidArgument for an unfit root, FailedPrecondition during a rotation."""
    root_ca = cluster.root_ca
    if root_ca.rotation is not None:
        raise FailedPrecondition(
            "a root rotation is under way already: wait for its end (`swarmctl ca` shows it); "
            "nodes that are gone for good hold it up until they are removed"
        )
    present = RootCA(root_ca.certificate, root_ca.key)
    present.check_successor(successor, now_ns=now_ns)
    rotation = RootRotation(
        ca_certificate=successor.certificate_pem,
        ca_key=successor.key_pem,
        cross_signed_certificate=present.cross_sign(successor, now_ns=now_ns),
    )
    return cluster.replaced(root_ca=root_ca.replaced(rotation=rotation))


def pending_nodes(rotation: RootRotation, nodes: Iterable[Node]) -> list[Node]:
    """Those that have not confirmed a certificate of the new root, in a stable order."""
    wanted = key_id(rotation.ca_certificate)
    pending = [
        node
        for node in nodes
        if node.certificate is None or node.certificate.issuer_key_id != wanted
    ]
    return sorted(pending, key=lambda node: node.id)


def next_batch(pending: Sequence[Node]) -> list[Node]:
    """Stage 2: the nodes that are asked next, as they are to be stored."""
    workers = [node for node in pending if node.role is not NodeRole.MANAGER]
    turn = workers or pending
    asked: list[Node] = []
    for node in turn:
        certificate = node.certificate or NodeCertificate()
        if not certificate.renew and len(asked) < BATCH_MAX:
            asked.append(node.replaced(certificate=certificate.replaced(renew=True)))
    return asked


def finish(cluster: Cluster) -> Cluster:
    """Stage 3. New tokens for both roles; those with names keep their limits."""
    root_ca = cluster.root_ca
    rotation = root_ca.rotation
    if rotation is None:
        violated("the end of a rotation that is not under way")
    root = RootCA(rotation.ca_certificate, rotation.ca_key)
    fresh = new_join_tokens(root)
    extra = tuple(
        token.replaced(token=make_join_token(root.certificate_pem).render())
        for token in root_ca.join_tokens.extra
    )
    return cluster.replaced(
        root_ca=RootCa(
            certificate=root.certificate_pem,
            key=root.key_pem,
            certificate_digest=root_digest(root.certificate_pem),
            join_tokens=JoinTokens(worker=fresh.worker, manager=fresh.manager, extra=extra),
            last_forced_rotation=root_ca.last_forced_rotation + 1,
        )
    )


def trust_of(root_ca: RootCa) -> bytes:
    """Every root in force, PEM."""
    rotation = root_ca.rotation
    if rotation is None:
        return root_ca.certificate
    return merge_roots(root_ca.certificate, rotation.ca_certificate)
