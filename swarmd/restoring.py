"""A backup as it arrives, and the first manager of the cluster that is made of it.

The backup is held in memory, never on this node's disk: it holds every key in the clear, and a
crash leaves nothing of it. Invariant: the state directory has nothing of the restored cluster, or
all of it; the node's identity is the commit point, as for init.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import structlog

from manager.ca.autolock import unlock_key_of, wanted_lock
from manager.ca.core import Authority, issue_to_node
from manager.ca.rotation import trust_of
from manager.ca.server import authority_of
from manager.consensus.recovery import Place
from manager.consensus.restoring import (
    backed_up_tables,
    restore_only_member,
    restored_version,
)
from manager.storage.backup import read_backup
from manager.storage.errors import disk_error
from manager.storage.member import Opening
from shoal.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
)
from shoal.ids import ClusterId, NodeId, new_id
from shoal.model.enums import NodeAvailability
from shoal.model.objects import Cluster
from shoal.security.identity import NodeIdentity, make_identity
from shoal.security.keys import make_csr, make_key
from shoal.security.lock import LockKeys
from shoal.security.roles import PeerIdentity, Role
from shoal.security.root import RootCA
from shoal.settings.node import NodeConfig
from swarmd.addresses import NodeAddresses
from swarmd.core import RestorePlan, refuse_newer, restored_state
from swarmd.node import LocalNode
from swarmd.settings import VERSION

BACKUP_BYTES_MAX = 4 << 30
"""A state of that size would not fit into any manager's memory."""
CHUNK_TIMEOUT_S = 60.0
LABEL = Path("backup")

_log = structlog.get_logger()


class Newcomer(msgspec.Struct, frozen=True):
    """The node that becomes the only manager."""

    hostname: str
    addresses: NodeAddresses
    availability: NodeAvailability
    config: NodeConfig


class RestoredCluster(msgspec.Struct, frozen=True):
    """What came of it. known_nodes: of the backup, this one not among them.

    autolock: whether this node is locked from now on, with the unlock key of the backup's time.
    """

    identity: NodeIdentity
    advertise_address: str
    objects: int
    created_at_ns: int
    known_nodes: int
    autolock: bool


class ReceivedBackup:
    """A backup in memory. Close it: it may be large."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("backup", os.MFD_CLOEXEC)
        self._size = 0

    @property
    def path(self) -> Path:
        """Where this process reads it."""
        return Path(f"/proc/self/fd/{self._fd}")

    def add(self, chunk: bytes) -> None:
        """Append. Raises: ResourceExhausted above BACKUP_BYTES_MAX, or without memory."""
        self._size += len(chunk)
        if self._size > BACKUP_BYTES_MAX:
            raise ResourceExhausted(f"backup: larger than {BACKUP_BYTES_MAX} bytes, the most")
        view = memoryview(chunk)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            raise disk_error("receiving", str(LABEL), error) from error

    def close(self) -> None:
        """Give the memory back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


async def receive(chunks: AsyncIterator[bytes]) -> ReceivedBackup:
    """Take in a backup; nothing is left of one that fails.

    Raises: what `chunks` and `ReceivedBackup.add` raise; DeadlineExceeded when nothing comes for
    CHUNK_TIMEOUT_S.
    """
    received = ReceivedBackup()
    try:
        while True:
            async with asyncio.timeout(CHUNK_TIMEOUT_S):
                chunk = await anext(chunks, None)
            if chunk is None:
                return received
            received.add(chunk)
    except TimeoutError:
        received.close()
        raise DeadlineExceeded(
            f"{LABEL}: nothing was received for {CHUNK_TIMEOUT_S:g} s: try again"
        ) from None
    except BaseException:
        received.close()
        raise


def restore_blocking(
    node: LocalNode, received: ReceivedBackup, newcomer: Newcomer, *, ca_key: bytes, now_ns: int
) -> RestoredCluster:
    """Make this node the only manager of the backup's cluster. Its manager must not run.

    ca_key: of the cluster's root, PEM, where the backup does not hold it; else empty. It is used
    here and kept nowhere. Raises: FailedPrecondition for a backup that is damaged, of a newer
    version or without a root key; InvalidArgument for addresses that do not fit the cluster and for
    another key than that of its root; ResourceExhausted, StorageFailed. What is left then
    is removed by `forget_blocking`.
    """
    backup = read_backup(received.path, label=LABEL)
    refuse_newer(backup.manifest.made_by, VERSION)
    tables = backed_up_tables(backup)
    cluster = tables.cluster
    if cluster is None or cluster.id != backup.manifest.cluster_id:
        raise FailedPrecondition(f"{LABEL}: holds no cluster: take another copy of the backup")
    node_id = NodeId(new_id())
    identity = _first_identity(cluster, node_id, ca_key=ca_key, now_ns=now_ns)
    plan = RestorePlan(
        node_id=node_id,
        hostname=newcomer.hostname,
        addresses=newcomer.addresses,
        availability=newcomer.availability,
        version=restored_version(backup),
        now_ns=now_ns,
    )
    state = restored_state(tables, plan)
    advertise = newcomer.addresses.advertise.render()

    def make_log(keys: LockKeys) -> None:
        opening = Opening(cluster.id, unlock_key=keys.current)
        place = Place(node.paths.raft, opening, node_id, advertise)
        restore_only_member(backup, place, state.rows, removed=state.removed)

    node.become_blocking(identity, newcomer.config, lock=wanted_lock(cluster), make_log=make_log)
    _log.info("cluster.restored", cluster_id=cluster.id, version=plan.version)
    return RestoredCluster(
        identity=identity,
        advertise_address=advertise,
        objects=backup.objects,
        created_at_ns=backup.manifest.created_ns,
        known_nodes=len(tables.nodes),
        autolock=unlock_key_of(cluster) is not None,
    )


def _first_identity(
    cluster: Cluster, node_id: NodeId, *, ca_key: bytes, now_ns: int
) -> NodeIdentity:
    """A manager's certificate by the root in force. Raises as `_with_key` does."""
    authority = _with_key(authority_of(cluster), ca_key)
    key_pem = make_key()
    peer = PeerIdentity(node_id, Role.MANAGER, ClusterId(cluster.id))
    issued = issue_to_node(
        authority, make_csr(key_pem), peer=peer, role=Role.MANAGER, now_ns=now_ns
    )
    return make_identity(issued.certificate_pem, key_pem, trust_of(cluster.root_ca))


def _with_key(authority: Authority, ca_key: bytes) -> Authority:
    """The authority with its root's key, from its cluster or from the user.

    An external authority that holds the key cannot be asked: it believes managers' certificates
    alone, and there is none yet. Raises: FailedPrecondition without a key, InvalidArgument for a
    second or a wrong one.
    """
    if authority.root is not None:
        if ca_key:
            raise InvalidArgument(
                f"ca-key: the {LABEL} holds the key of the cluster's root: restore it without"
            )
        return authority
    if not ca_key:
        raise FailedPrecondition(
            f"{LABEL}: the key of the cluster's root is not in it but with an external authority,"
            " so nobody can certify the first manager: give the key's file with `--ca-key`, use a"
            " backup from before `swarmctl ca --rotate --external-ca`, or make a new cluster"
        )
    try:
        root = RootCA(authority.root_pem, ca_key)
    except InvalidArgument as error:
        raise InvalidArgument(
            f"ca-key: {error.message}: it must be the key of the root at the time of the {LABEL}"
        ) from error
    return msgspec.structs.replace(authority, root=root)
