"""Whether managers are locked, and with which unlock key: what the cluster's row says. Pure.

Invariant: there is an unlock key if and only if autolock is on.
"""

from __future__ import annotations

import msgspec

from shoal.errors import FailedPrecondition, InvalidArgument
from shoal.model.objects import Cluster
from shoal.model.types import EncryptionKey
from shoal.security.unlock import UnlockKey

SUBSYSTEM = "swarm-manager"
"""Whose key it is; other subsystems may have theirs beside it."""


class LockWish(msgspec.Struct, frozen=True):
    """What a request asks of the unlock key.

    fresh: the key to use where one is to be made. given: whether the caller chose it, who must
    then not be left to believe that it is in use when it is not.
    """

    fresh: UnlockKey
    given: bool = False
    rotate: bool = False


class WantedLock(msgspec.Struct, frozen=True):
    """What the cluster asks of its managers. since: version of the row that first said so."""

    unlock_key: UnlockKey | None
    since: int


def wanted_lock(cluster: Cluster, known: WantedLock | None = None) -> WantedLock:
    """What the row asks for; `known` if it asks for the same."""
    key = unlock_key_of(cluster)
    if known is not None and known.unlock_key == key:
        return known
    return WantedLock(key, cluster.meta.version.index)


def unlock_key_of(cluster: Cluster) -> UnlockKey | None:
    """The key that managers are locked with, None when they are not."""
    for key in cluster.unlock_keys:
        if key.subsystem == SUBSYSTEM:
            return UnlockKey(key.key)
    return None


def with_unlock_key(cluster: Cluster, unlock_key: UnlockKey | None) -> Cluster:
    """The row with that key, or none."""
    kept = tuple(key for key in cluster.unlock_keys if key.subsystem != SUBSYSTEM)
    if unlock_key is not None:
        kept = (*kept, EncryptionKey(subsystem=SUBSYSTEM, key=unlock_key.secret))
    return cluster.replaced(unlock_keys=kept)


def relocked(cluster: Cluster, wish: LockWish) -> Cluster:
    """The row with the unlock key that its settings and the wish ask for.

    Raises: FailedPrecondition when a key that there is not is to be rotated; InvalidArgument when
    no key is to be made and the caller chose one.
    """
    present = unlock_key_of(cluster)
    if not cluster.spec.autolock_managers:
        if wish.rotate:
            raise FailedPrecondition(
                "cannot rotate because autolock is not turned on: turn it on with "
                "`swarmctl cluster update --autolock`, which makes a key"
            )
        needed = None
    else:
        needed = wish.fresh if wish.rotate or present is None else present
    if wish.given and needed is not wish.fresh:
        raise InvalidArgument(
            "unlock key: is chosen only where autolock is turned on or the key is rotated"
        )
    return cluster if needed is present else with_unlock_key(cluster, needed)
