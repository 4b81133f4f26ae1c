"""Begins to replace the root, and tries external authorities before the cluster depends on them.

What is tried is real: a certificate for a node that does not exist, made and thrown away. An
authority that cannot be reached, does not believe the managers or signs something else is found out
while nothing has changed.
"""

from __future__ import annotations

from collections.abc import Sequence

from manager.ca.rotation import (
    begin,
    check_begin,
    external_for,
    successor_of,
    with_external,
)
from manager.ca.server import authority_for, authority_of
from manager.ca.signing import Signer
from manager.store.store import Store, commit_with_retry
from manager.store.view import View
from shoal.clock import Clock
from shoal.errors import FailedPrecondition, InvalidArgument
from shoal.ids import ClusterId, NodeId, new_id
from shoal.model.objects import Cluster
from shoal.model.plan import Change, update
from shoal.model.types import ExternalCa
from shoal.security.keys import make_csr, make_key
from shoal.security.roles import PeerIdentity, Role
from shoal.security.root import RootCA
from shoal.security.succession import same_root


class RootChanges:
    """What users may do to the root."""

    def __init__(self, store: Store, clock: Clock, signer: Signer) -> None:
        self._store = store
        self._clock = clock
        self._signer = signer

    async def rotate(
        self, certificate_pem: bytes, key_pem: bytes, external: Sequence[ExternalCa]
    ) -> None:
        """Begin to replace the root; all empty: by a new one.

        external: authorities that take the place of those named before; for the new root unless
        they say otherwise. The present root again: only whether its key is kept here changes.
        Raises InvalidArgument for an unfit root, FailedPrecondition during a rotation, or with what
        the external authority failed with.
        """
        cluster = _require(self._store.view)
        present = cluster.root_ca.certificate
        if certificate_pem and same_root(certificate_pem, present):
            await self._keep_root(cluster, key_pem, external)
            return
        now_ns = self._clock.now_ns()
        successor = successor_of(certificate_pem, key_pem, now_ns=now_ns)
        wished = self._with(cluster, external, successor.certificate_pem)
        check_begin(wished, successor, now_ns=now_ns)
        cross_signed_pem = await self._signer.cross_sign(
            authority_of(cluster), successor.certificate_pem, successor.root, now_ns=now_ns
        )
        await self.try_external(wished, successor.certificate_pem)

        def build(view: View) -> list[Change]:
            now = _require(view)
            if now.root_ca.certificate != present:
                raise FailedPrecondition("ca: the root was replaced meanwhile: try again")
            now = self._with(now, external, successor.certificate_pem)
            check_begin(now, successor, now_ns=now_ns)
            return [update(begin(now, successor, cross_signed_pem))]

        await commit_with_retry(self._store, build)

    async def try_external(self, cluster: Cluster, root_pem: bytes) -> None:
        """Let the external authorities of a root sign something, if it has any.

        Raises FailedPrecondition with what each of them failed with.
        """
        if not external_for(cluster, root_pem):
            return
        identity = PeerIdentity(NodeId(new_id()), Role.WORKER, ClusterId(cluster.id))
        await self._signer.sign(
            authority_for(cluster, root_pem, b""),
            make_csr(make_key()),
            identity,
            now_ns=self._clock.now_ns(),
        )

    async def _keep_root(
        self, cluster: Cluster, key_pem: bytes, external: Sequence[ExternalCa]
    ) -> None:
        """Take the present root's key out of the store, or put it back."""
        present = cluster.root_ca.certificate
        if key_pem:
            _check_key(present, key_pem)
        elif not external_for(self._with(cluster, external, present), present):
            raise InvalidArgument(
                "ca certificate: it is the present root: give another, or an external authority"
                " that holds its key (--external-ca)"
            )
        await self.try_external(self._with(cluster, external, present), present)

        def build(view: View) -> list[Change]:
            now = _require(view)
            if now.root_ca.certificate != present or now.root_ca.rotation is not None:
                raise FailedPrecondition("ca: the root is being replaced: wait for its end")
            kept = self._with(now, external, present)
            return [update(kept.replaced(root_ca=kept.root_ca.replaced(key=key_pem)))]

        await commit_with_retry(self._store, build)

    @staticmethod
    def _with(cluster: Cluster, external: Sequence[ExternalCa], root_pem: bytes) -> Cluster:
        return with_external(cluster, external, root_pem) if external else cluster


def _require(view: View) -> Cluster:
    if view.cluster is None:
        raise FailedPrecondition("the cluster is not initialised yet: try again in a moment")
    return view.cluster


def _check_key(root_pem: bytes, key_pem: bytes) -> None:
    try:
        RootCA(root_pem, key_pem)
    except InvalidArgument as error:
        raise InvalidArgument(f"ca key: {error.message}") from error
