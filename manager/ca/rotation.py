"""Replacing the cluster's root: what each stage writes, decided on the store's rows. Pure.

1. `begin` records the new root beside the old one, and the new root's key certified by the old
   root. From then on both are believed, every node is told so, and the new root signs: by its key,
   or by the external authority that holds it.
2. `next_batch` asks nodes to renew, 30 at a time; managers come last, so that a worker that has
   not heard of the new root yet still finds managers that the old one vouches for.
3. `finish`, once every node has confirmed a certificate of the new root: the old root is dropped,
   and with it every join token, since tokens carry the root's digest.
A node that is away holds the rotation up until it is back or removed: nobody is locked out. One
that said that it leaves the cluster does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
from typing_extensions import override

from manager.ca.core import new_join_tokens
from shoal.errors import FailedPrecondition, InvalidArgument, violated
from shoal.model.enums import NodeRole
from shoal.model.objects import Cluster, Node
from shoal.model.types import (
    ExternalCa,
    JoinTokens,
    NodeCertificate,
    RootCa,
    RootRotation,
)
from shoal.security.root import RootCA
from shoal.security.succession import check_root, check_successor, same_root
from shoal.security.tokens import make_join_token
from shoal.security.trust import key_id, merge_roots, root_digest

BATCH_MAX = 30


class Successor(msgspec.Struct, frozen=True):
    """The root that is to be next; `root` is None when its key is with an external authority."""

    certificate_pem: bytes
    root: RootCA | None

    @override
    def __repr__(self) -> str:
        return "Successor(...)"


def new_successor(root: RootCA) -> Successor:
    """A root whose key is here."""
    return Successor(root.certificate_pem, root)


def successor_of(certificate_pem: bytes, key_pem: bytes, *, now_ns: int) -> Successor:
    """The root that the user brings, or a new one for 20 years if both are empty.

    Raises InvalidArgument naming what is missing or does not fit.
    """
    if not certificate_pem and not key_pem:
        return new_successor(RootCA.create(now_ns=now_ns))
    if not certificate_pem:
        raise InvalidArgument("ca certificate: must be given: certificate and key go together")
    check_root(certificate_pem)
    if not key_pem:
        return Successor(merge_roots(certificate_pem), None)
    try:
        return new_successor(RootCA(certificate_pem, key_pem))
    except InvalidArgument as error:
        raise InvalidArgument(f"ca certificate: {error.message}") from error


def external_for(cluster: Cluster, root_pem: bytes) -> tuple[ExternalCa, ...]:
    """The external authorities that sign for a root; those that name none do for the present."""
    present = cluster.root_ca.certificate
    return tuple(
        one
        for one in cluster.spec.ca.external_cas
        if same_root(one.ca_certificate or present, root_pem)
    )


def with_external(cluster: Cluster, external: Iterable[ExternalCa], root_pem: bytes) -> Cluster:
    """The cluster with these external authorities; those that name no root are for `root_pem`."""
    named = tuple(one.replaced(ca_certificate=one.ca_certificate or root_pem) for one in external)
    ca = cluster.spec.ca.replaced(external_cas=named)
    return cluster.replaced(spec=cluster.spec.replaced(ca=ca))


def check_begin(cluster: Cluster, successor: Successor, *, now_ns: int) -> None:
    """Refuse a root that cannot take over now.

    Raises InvalidArgument for an unfit root, FailedPrecondition during a rotation.
    """
    root_ca = cluster.root_ca
    if root_ca.rotation is not None:
        raise FailedPrecondition(
            "a root rotation is under way already: wait for its end (`swarmctl ca` shows it); "
            "nodes that are gone for good hold it up until they are removed"
        )
    check_successor(root_ca.certificate, successor.certificate_pem, now_ns=now_ns)
    if successor.root is None and not external_for(cluster, successor.certificate_pem):
        raise InvalidArgument(
            "ca key: must be given, or an external authority that holds it (--external-ca)"
        )


def begin(cluster: Cluster, successor: Successor, cross_signed_pem: bytes) -> Cluster:
    """Stage 1, after `check_begin`. cross_signed_pem: the new root certified by the present one."""
    root_ca = cluster.root_ca
    rotation = RootRotation(
        ca_certificate=successor.certificate_pem,
        ca_key=b"" if successor.root is None else successor.root.key_pem,
        cross_signed_certificate=cross_signed_pem,
    )
    begun = cluster.replaced(root_ca=root_ca.replaced(rotation=rotation))
    return with_external(begun, cluster.spec.ca.external_cas, root_ca.certificate)


def begin_here(cluster: Cluster, successor: Successor, *, now_ns: int) -> Cluster:
    """Stage 1 with the present root's key, which must be in the store. Raises as `check_begin`."""
    check_begin(cluster, successor, now_ns=now_ns)
    present = RootCA(cluster.root_ca.certificate, cluster.root_ca.key)
    cross_signed_pem = present.cross_sign(successor.certificate_pem, now_ns=now_ns)
    return begin(cluster, successor, cross_signed_pem)


def pending_nodes(rotation: RootRotation, nodes: Iterable[Node]) -> list[Node]:
    """Those that have not confirmed a certificate of the new root, in a stable order."""
    wanted = key_id(rotation.ca_certificate)
    pending = [
        node
        for node in nodes
        if not node.status.left
        and (node.certificate is None or node.certificate.issuer_key_id != wanted)
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
    """Stage 3. New tokens for both roles; those with names keep their limits.

    External authorities of the old root are forgotten.
    """
    root_ca = cluster.root_ca
    rotation = root_ca.rotation
    if rotation is None:
        violated("the end of a rotation that is not under way")
    root_pem = rotation.ca_certificate
    fresh = new_join_tokens(root_pem)
    extra = tuple(
        token.replaced(token=make_join_token(root_pem).render())
        for token in root_ca.join_tokens.extra
    )
    kept = with_external(cluster, external_for(cluster, root_pem), root_pem)
    return kept.replaced(
        root_ca=RootCa(
            certificate=root_pem,
            key=rotation.ca_key,
            certificate_digest=root_digest(root_pem),
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
