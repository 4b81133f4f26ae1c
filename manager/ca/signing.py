"""Who signs: the root's key in the store, or the authority outside that holds it.

An external authority of the root in force comes first, as in Swarm: the key in the store is used
only where none is named. A root without a key in the store needs one.
"""

from __future__ import annotations

from manager.ca.cfssl import authority_request, node_request
from manager.ca.core import Authority, IssuedCertificate, certified, sign_here
from manager.ca.external import ExternalAuthorities
from shoal.errors import FailedPrecondition
from shoal.security.issued import check_cross_signed, check_issued
from shoal.security.keys import load_csr
from shoal.security.roles import PeerIdentity
from shoal.security.root import RootCA


class Signer:
    """Signs for one manager. external: None where only keys in the store can sign."""

    def __init__(self, external: ExternalAuthorities | None = None) -> None:
        self._external = external

    @property
    def problem(self) -> str:
        """What the external authority failed with last; empty when it did not, or is not used."""
        return "" if self._external is None else self._external.problem

    async def sign(
        self, authority: Authority, csr_pem: bytes, identity: PeerIdentity, *, now_ns: int
    ) -> IssuedCertificate:
        """Certify the key of a request as a node.

        Raises InvalidArgument for a bad request; FailedPrecondition when nobody can sign, with what
        each external authority failed with.
        """
        if not authority.external:
            return sign_here(authority, csr_pem, identity, now_ns=now_ns)
        load_csr(csr_pem)

        def check(certificate_pem: bytes, came_ns: int) -> None:
            check_issued(
                certificate_pem, csr_pem, identity, root_pem=authority.root_pem, now_ns=came_ns
            )

        certificate_pem = await self._needed().sign(
            authority.external, node_request(csr_pem, identity), check
        )
        return certified(authority, identity, certificate_pem)

    async def cross_sign(
        self, authority: Authority, successor_pem: bytes, successor: RootCA | None, *, now_ns: int
    ) -> bytes:
        """The new root's name and key, certified by the present one, PEM.

        successor: with its key, which an external authority wants to see used. Raises
        FailedPrecondition when neither the present root's key nor the new one's is here.
        """
        if authority.root is not None:
            return authority.root.cross_sign(successor_pem, now_ns=now_ns)
        if successor is None:
            raise FailedPrecondition(
                "ca: from one external authority to another is not possible, since neither root's"
                " key is here: rotate to a root of the cluster's own first (`swarmctl ca --rotate`)"
            )

        def check(certificate_pem: bytes, came_ns: int) -> None:
            check_cross_signed(
                certificate_pem,
                root_pem=authority.root_pem,
                successor_pem=successor_pem,
                now_ns=came_ns,
            )

        body = authority_request(successor.request(), successor_pem)
        return await self._needed().sign(authority.external, body, check)

    def _needed(self) -> ExternalAuthorities:
        if self._external is None:
            raise FailedPrecondition("ca: no external authority can be asked here")
        return self._external


STORED_KEYS = Signer()
"""Signs with keys in the store only."""
