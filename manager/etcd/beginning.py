"""How a new cluster's state begins in etcd.

Invariant: below one prefix there is at most one cluster: the first entry is one transaction, on the
condition that there is none.
"""

from __future__ import annotations

from manager.etcd.backend import EtcdConsensus
from manager.etcd.presence import taken
from manager.etcd.settings import EtcdSettings
from manager.store.store import Store
from manager.store.tables import Tables
from shoal.clock import Clock
from shoal.model.objects import StoreEntry


async def begin_cluster(settings: EtcdSettings, entry: StoreEntry, clock: Clock) -> None:
    """Write a new cluster's first entry; nothing when it is there already.

    Raises: FailedPrecondition when another cluster is there; as above.
    """
    store = Store(Tables(), clock)
    consensus = EtcdConsensus(settings, store, address=None)
    wanted = {action.object.id for action in entry.actions}
    async with consensus:
        if store.view.cluster is None:
            await consensus.propose(entry)
        elif store.view.cluster.id not in wanted:
            raise taken(settings, store.view.cluster.id)
