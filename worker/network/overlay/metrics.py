"""What a node's metrics say of encrypted networks."""

from __future__ import annotations

from prometheus_client import Gauge

from shoal.telemetry.metrics import REGISTRY
from worker.network.overlay.encryption import Encryption

_GENERATION = Gauge(
    "shoal_network_key_generation",
    "Generation of the node's newest key for encrypted networks that is in force",
    registry=REGISTRY,
)
_PEERS = Gauge(
    "shoal_encrypted_peers", "Nodes that this one reaches on encrypted networks", registry=REGISTRY
)
_BEHIND = Gauge(
    "shoal_encrypted_peers_behind",
    "Those of them that are spoken to by an older key than their newest",
    registry=REGISTRY,
)


def show(encryption: Encryption) -> None:
    """Show what is in force now."""
    _GENERATION.set(encryption.generation)
    _PEERS.set(encryption.peers)
    _BEHIND.set(encryption.behind)
