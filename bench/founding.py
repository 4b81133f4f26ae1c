"""A manager's directories as `swarmctl init` leaves them, without a daemon around."""

from __future__ import annotations

import ipaddress
import time

import msgspec

from manager.ca.core import ClusterSecrets, new_cluster_secrets
from shoal.ids import ClusterId, NodeId, new_id
from shoal.security.identity import make_identity, write_identity
from shoal.security.keys import make_csr, make_key
from shoal.security.roles import PeerIdentity, Role
from shoal.security.root import RootCA
from shoal.settings.node import NodeConfig, write_durably, write_node_config
from shoal.settings.paths import NodePaths
from shoal.wire.objects import entry_to_bytes
from swarmd.addresses import HostPort, NodeAddresses
from swarmd.core import InitWish, NewNode, first_entry, plan_init


class Founded(msgspec.Struct, frozen=True):
    """A cluster of one manager that has not started yet."""

    secrets: ClusterSecrets
    cluster_id: ClusterId
    node_id: NodeId


def found(paths: NodePaths, address: str, wish: InitWish | None = None) -> Founded:
    """Write identity, settings and first entry of a new cluster whose manager is at `address`.

    address: `ADDRESS:PORT`, where the manager listens and is reached.
    """
    now_ns = time.time_ns()
    founded = Founded(new_cluster_secrets(now_ns=now_ns), ClusterId(new_id()), NodeId(new_id()))
    root = RootCA(founded.secrets.root_certificate_pem, founded.secrets.root_key_pem)
    key = make_key()
    peer = PeerIdentity(founded.node_id, Role.MANAGER, founded.cluster_id)
    certificate = root.sign(make_csr(key), peer, now_ns=now_ns)
    host, _, port = address.rpartition(":")
    endpoint = HostPort(ipaddress.ip_address(host), int(port))
    addresses = NodeAddresses(listen=endpoint, advertise=endpoint, data_path=endpoint.host)
    entry = first_entry(
        plan_init(wish or InitWish(), addresses),
        NewNode(founded.node_id, founded.cluster_id, "host-m1"),
        founded.secrets,
        now_ns=now_ns,
    )
    paths.run.mkdir(parents=True, exist_ok=True)
    write_durably(paths.bootstrap, entry_to_bytes(entry))
    config = NodeConfig(
        advertise_address=address,
        listen_address=address,
        data_path_address=host,
        managers=(address,),
    )
    write_node_config(paths.node_config, config)
    write_identity(paths.identity, make_identity(certificate, key, root.certificate_pem))
    return founded
