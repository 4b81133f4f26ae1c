"""When nodes need new keys for encrypted networks, and what they may report. Pure.

The cluster counts generations; every node makes its key of each by itself and has two at most.
Invariant: no new generation begins while a node that is there has not reported its key of the
present one, so that two nodes always share one; for a node that never does, nobody waits longer
than for another period.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from manager.store.view import View
from shoal.errors import InvalidArgument
from shoal.model.defaults import is_encrypted, network_key_rotation_ns
from shoal.model.enums import NodeState
from shoal.model.objects import Cluster
from shoal.model.types import NetworkKey
from shoal.security.exchange import KEY_BYTES

KEYS_MAX: Final = 2


def check_keys(keys: Sequence[NetworkKey]) -> None:
    """Refuse what no node reports. Raises: InvalidArgument."""
    if len(keys) > KEYS_MAX:
        raise InvalidArgument(f"network keys: {len(keys)}, at most {KEYS_MAX}")
    if any(len(key.public_key) != KEY_BYTES for key in keys):
        raise InvalidArgument(f"network keys: a public key has {KEY_BYTES} bytes")
    if len({key.generation for key in keys}) != len(keys):
        raise InvalidArgument("network keys: two of one generation")


def generation_of(cluster: Cluster | None) -> int:
    """The generation of which every node is to have a key."""
    return 0 if cluster is None else cluster.encryption_key_lamport_clock


def with_next_generation(view: View, now_ns: int) -> Cluster | None:
    """The cluster's row with a new generation; None while none is due."""
    cluster = view.cluster
    if cluster is None or not any(map(is_encrypted, view.networks)):
        return None
    period_ns = network_key_rotation_ns(cluster)
    since_ns = cluster.network_keys_since_ns or cluster.meta.created_at_ns
    due_ns = since_ns + period_ns
    if now_ns < due_ns or (now_ns < due_ns + period_ns and _is_anybody_behind(view)):
        return None
    return cluster.replaced(
        encryption_key_lamport_clock=generation_of(cluster) + 1, network_keys_since_ns=now_ns
    )


def _is_anybody_behind(view: View) -> bool:
    """Whether a node that is there has keys, and none of the present generation."""
    generation = generation_of(view.cluster)
    return any(
        node.status.state is NodeState.READY
        and node.description.network_keys
        and all(key.generation != generation for key in node.description.network_keys)
        for node in view.nodes
    )
