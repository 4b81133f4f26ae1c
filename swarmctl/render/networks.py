"""Overlay networks as rows of `network ls`."""

from __future__ import annotations

from shoal.docker.networks import DRIVER, SCOPE
from shoal.docker.values import Record
from shoal.docker.words import timestamp
from shoal.model.objects import Network
from swarmctl.render.rows import ID_WIDTH, Columns

NETWORK_COLUMNS: Columns = {
    "ID": "NETWORK ID",
    "Name": "NAME",
    "Driver": "DRIVER",
    "Scope": "SCOPE",
}


def network_row(network: Network, *, trunc: bool = True) -> Record:
    """A network in a list."""
    spec = network.spec
    labels = ",".join(f"{key}={value}" for key, value in sorted(spec.annotations.labels.items()))
    return Record(
        {
            "ID": network.id[:ID_WIDTH] if trunc else network.id,
            "Name": spec.annotations.name,
            "Driver": DRIVER,
            "Scope": SCOPE,
            "IPv6": str(spec.ipv6_enabled).lower(),
            "Internal": str(spec.internal).lower(),
            "Labels": labels,
            "CreatedAt": timestamp(network.meta.created_at_ns),
        }
    )
