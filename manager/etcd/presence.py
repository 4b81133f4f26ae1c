"""Which cluster's state an etcd holds below a prefix. Reads only, and needs no store."""

from __future__ import annotations

from manager.etcd.client import EtcdClient
from manager.etcd.keys import Keys
from manager.etcd.settings import EtcdSettings
from shoal.errors import FailedPrecondition
from shoal.etcd.v1 import rpc_pb2 as pb


async def find_cluster(settings: EtcdSettings) -> str:
    """Id of the cluster below the prefix, "" when there is none.

    Raises: Unavailable, DeadlineExceeded when etcd does not answer, and what it refuses with.
    """
    key, end = Keys(settings.prefix).clusters()
    async with EtcdClient(settings) as client:
        request = pb.RangeRequest(key=key, range_end=end, limit=1, keys_only=True)
        answer = await client.range(request)
    return answer.kvs[0].key.removeprefix(key).decode(errors="replace") if answer.kvs else ""


async def require_cluster(settings: EtcdSettings, cluster_id: str) -> None:
    """Refuse a prefix that does not hold this cluster. Raises FailedPrecondition, and as above."""
    found = await find_cluster(settings)
    if not found:
        raise FailedPrecondition(
            f"store: etcd holds no cluster below /{settings.prefix}/: give the --store that the"
            " cluster's other managers were given, or leave it out if they keep a log of their own"
        )
    if found != cluster_id:
        raise FailedPrecondition(
            f"store: /{settings.prefix}/ in etcd holds cluster {found}, and this node is in"
            f" cluster {cluster_id}: give the --store of that one"
        )


async def require_room(settings: EtcdSettings) -> None:
    """Refuse a prefix that holds a cluster already. Raises FailedPrecondition, and as above."""
    found = await find_cluster(settings)
    if found:
        raise taken(settings, found)


def taken(settings: EtcdSettings, cluster_id: str) -> FailedPrecondition:
    """Why no new cluster can begin where that one is."""
    return FailedPrecondition(
        f"store: /{settings.prefix}/ in etcd holds cluster {cluster_id} already: choose another"
        " prefix, or, if that cluster is gone for good,"
        f" `etcdctl del --prefix /{settings.prefix}/`"
    )
