"""What a node's metrics say of overlay networks, and of encrypted ones."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import Counter, Gauge

from shoal.telemetry.metrics import REGISTRY
from worker.network.overlay.encryption import Encryption
from worker.network.overlay.plan import NetworkPlan

_NETWORKS = Gauge(
    "shoal_overlay_networks", "Overlay networks that are in force on this node", registry=REGISTRY
)
_REFUSED = Gauge(
    "shoal_overlay_networks_refused",
    "Overlay networks with tasks on this node that it cannot build; its log says why",
    registry=REGISTRY,
)
_PLACES = Gauge(
    "shoal_overlay_places",
    "Tasks and containers of this node on overlay networks",
    registry=REGISTRY,
)
_NEIGHBOURS = Gauge(
    "shoal_overlay_neighbours",
    "Addresses of other nodes' tasks that are in the kernel as neighbours",
    registry=REGISTRY,
)
_VIRTUAL = Gauge(
    "shoal_overlay_virtual_addresses",
    "Virtual addresses of services on the networks in force",
    registry=REGISTRY,
)
_FAILED = Counter(
    "shoal_overlay_updates_failed",
    "Changes to overlay networks that the kernel refused; they are tried again",
    registry=REGISTRY,
)
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


def show_networks(plans: Iterable[NetworkPlan], *, refused: int, places: int) -> None:
    """Show what is in force now. Cost: O(networks)."""
    plans = list(plans)
    _NETWORKS.set(len(plans))
    _REFUSED.set(refused)
    _PLACES.set(places)
    _NEIGHBOURS.set(sum(len(one.remotes.neighbours) for one in plans))
    _VIRTUAL.set(sum(len(one.tables) for one in plans))


def note_failure() -> None:
    """A change was not, or not wholly, carried out."""
    _FAILED.inc()
