"""Who is calling: from gRPC's authentication context to a `PeerIdentity`.

The handshake has already verified the chain. Here the certificate's issuer is checked once more
and directly, because which chains a TLS library accepts is its business, and who is a manager is
ours. The result is cached by certificate (bounded), so a call costs one dictionary look-up.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextvars import ContextVar

import msgspec

from shoal.clock import NS_PER_S, Clock
from shoal.errors import InvariantViolation, PermissionDenied, Unauthenticated
from shoal.ids import ClusterId, NodeId
from shoal.security.joiner import joiner_identity
from shoal.security.roles import JOINER, LOCAL, PeerIdentity
from shoal.security.trust import TrustBundle, load_certificate

CACHED_PEERS_MAX = 4096


class Caller(msgspec.Struct, frozen=True):
    """Who called. address: its IP address, "" when it came over a socket of this machine.

    forwarded: another manager passed the call on, and vouches for the identity.
    """

    identity: PeerIdentity
    address: str = ""
    forwarded: bool = False


_current_caller: ContextVar[Caller] = ContextVar("shoal_current_caller")


class _Verified(msgspec.Struct, frozen=True):
    identity: PeerIdentity
    not_after_ns: int


class PeerVerifier:
    """Decides who the peer of a call is. Owned by one server; used on its event loop only."""

    def __init__(self, root_pem: bytes, *, cluster_id: ClusterId, clock: Clock) -> None:
        """Believe certificates issued by `root_pem` for `cluster_id`."""
        self._trust = TrustBundle(root_pem)
        self._cluster_id = cluster_id
        self._clock = clock
        self._verified: OrderedDict[bytes, _Verified] = OrderedDict()
        self._removed: dict[NodeId, int] = {}

    def replace_roots(self, root_pem: bytes) -> None:
        """Believe other roots from now on (root rotation)."""
        self._trust = TrustBundle(root_pem)
        self._verified.clear()

    def replace_removed(self, until_ns: Mapping[NodeId, int]) -> None:
        """Refuse these nodes although their certificates are still valid.

        until_ns: end of the refusal by node id, wall time; by then no certificate is valid.
        """
        self._removed = dict(until_ns)

    def identify(self, peer: str, auth_context: Mapping[str, Iterable[bytes]]) -> PeerIdentity:
        """The identity behind a call.

        peer, auth_context: what gRPC's servicer context returns from the methods of that name.
        Raises Unauthenticated without a certificate of this cluster that is valid now,
        PermissionDenied for a node that was removed from the cluster.
        """
        if peer.startswith("unix:"):
            return LOCAL
        certificate_pem = next(iter(auth_context.get("x509_pem_cert", ())), b"")
        if not certificate_pem:
            raise Unauthenticated("a client certificate is needed on this port")
        if certificate_pem == joiner_identity().certificate_pem:
            return JOINER
        verified = self._verify(certificate_pem)
        if self._clock.now_ns() > verified.not_after_ns:
            raise Unauthenticated(
                "the client certificate has expired: swarmd on that node renews it by itself"
            )
        self.refuse_removed(verified.identity)
        return verified.identity

    def refuse_removed(self, identity: PeerIdentity) -> None:
        """Raises: PermissionDenied for a node that was removed from the cluster."""
        if self._clock.now_ns() < self._removed.get(identity.node_id, 0):
            raise PermissionDenied("this node was removed from the cluster: let it join again")

    @property
    def cached_peers(self) -> int:
        """Certificates whose verification is remembered; never above CACHED_PEERS_MAX."""
        return len(self._verified)

    def _verify(self, certificate_pem: bytes) -> _Verified:
        verified = self._verified.get(certificate_pem)
        if verified is not None:
            self._verified.move_to_end(certificate_pem)
            return verified
        certificate = load_certificate(certificate_pem)
        identity = self._trust.identify(certificate)
        if identity.cluster_id != self._cluster_id:
            raise Unauthenticated("the client certificate is for another cluster")
        not_after_ns = int(certificate.not_valid_after_utc.timestamp()) * NS_PER_S
        verified = _Verified(identity=identity, not_after_ns=not_after_ns)
        self._verified[certificate_pem] = verified
        if len(self._verified) > CACHED_PEERS_MAX:
            self._verified.popitem(last=False)
        return verified


def current_peer() -> PeerIdentity:
    """Who called the RPC that is running now; set by AuthorizationInterceptor."""
    return current_caller().identity


def current_caller() -> Caller:
    """The same, with the address and whether another manager passed the call on."""
    try:
        return _current_caller.get()
    except LookupError:
        raise InvariantViolation("current_peer() outside an authorised RPC") from None


def enter_caller(caller: Caller) -> None:
    """Set the caller of the current task. gRPC runs each call in a task of its own."""
    _current_caller.set(caller)


def peer_address(peer: str) -> str:
    """The IP address in gRPC's peer text `ipv4:1.2.3.4:5` or `ipv6:[::1]:5`; "" for others."""
    kind, _, rest = peer.partition(":")
    if kind not in {"ipv4", "ipv6"}:
        return ""
    return rest.rpartition(":")[0].strip("[]").replace("%5B", "").replace("%5D", "")
