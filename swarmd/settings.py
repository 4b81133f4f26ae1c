"""What the command line of swarmd says, as one value."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import msgspec

from shoal.settings.paths import NodePaths

VERSION = version("shoal")


class DaemonSettings(msgspec.Struct, frozen=True):
    """cgroup_parent: from the root of each hierarchy. metrics_address: HOST:PORT, empty: off.

    docker_address: HOST:PORT of the Docker API over TLS, empty: off; docker_tls: its certificates.
    insecure_registries, registry_mirrors, image_water (high, low): see `swarmd --help`, and
    userns_remap, selinux_enabled, ingress_ipv6, generic_resources and generic_devices as well.
    store: URL of the etcd for a manager's state; empty: as the node was told before, if it was.
    """

    paths: NodePaths
    hostname: str
    cgroup_parent: str = "/shoal"
    metrics_address: str = "127.0.0.1:9323"
    docker_address: str = ""
    docker_tls: Path | None = None
    insecure_registries: tuple[str, ...] = ()
    registry_mirrors: tuple[str, ...] = ()
    image_water: tuple[int, int] = (90, 80)
    userns_remap: str = ""
    selinux_enabled: bool = False
    ingress_ipv6: bool = True
    generic_resources: tuple[str, ...] = ()
    generic_devices: tuple[str, ...] = ()
    log_level: str = "info"
    force_new_cluster: bool = False
    store: str = ""


def make_paths(state: Path, run: Path) -> NodePaths:
    """The node's paths, absolute: the children may run in another directory."""
    return NodePaths(state=state.absolute(), run=run.absolute())
