"""Keys and values in etcd, and the transactions made of them.

    /<prefix>/store/<kind>/<id>    the object: `shoal.wire.objects.object_to_bytes`
    /<prefix>/store/barrier        written to learn where the watch stands; no object
    /<prefix>/names/<kind>/<name>  id of the object that has this unique name (lower case)
    /<prefix>/leader               address of the leading manager, bound to its lease
    /<prefix>/managers/<node id>   address of a manager that runs, bound to its lease

A stored object has version 0 (its version is the key's mod_revision), and spec_version 0 when it
was written together with a new task template. Whatever else lies below `store/` is refused loudly.
"""

from __future__ import annotations

from manager.etcd.core import KIND_OF, KINDS, Decision, NameWrite, Write, settled
from shoal.errors import FailedPrecondition, InvalidArgument
from shoal.etcd.v1 import rpc_pb2 as pb
from shoal.model.objects import AnyObject, Cluster
from shoal.wire.objects import object_from_bytes, object_to_bytes


class Keys:
    """The keys below one prefix."""

    def __init__(self, prefix: str) -> None:
        root = f"/{prefix}/".encode()
        self.store = root + b"store/"
        self.store_end = root + b"store0"
        self.barrier = self.store + b"barrier"
        self.leader = root + b"leader"
        self.managers = root + b"managers/"
        self.managers_end = root + b"managers0"
        self._names = root + b"names/"

    def object(self, kind: str, object_id: str) -> bytes:
        """Where an object is."""
        return self.store + f"{kind}/{object_id}".encode()

    def name(self, kind: str, name: str) -> bytes:
        """Where the owner of a name is."""
        return self._names + f"{kind}/{name}".encode()

    def manager(self, node_id: str) -> bytes:
        """Where a manager says that it runs."""
        return self.managers + node_id.encode()

    def clusters(self) -> tuple[bytes, bytes]:
        """The range of the one object of class Cluster."""
        key = self.object(KIND_OF[Cluster], "")
        return key, key[:-1] + b"0"

    def parse(self, key: bytes) -> tuple[type[AnyObject], str]:
        """Class and id of the object at a key. Raises FailedPrecondition for a foreign one."""
        kind, _, object_id = key.removeprefix(self.store).decode(errors="replace").partition("/")
        if kind not in KINDS or not object_id:
            raise FailedPrecondition(
                f"etcd: key {key.decode(errors='replace')} is not ours: remove it, or upgrade this "
                "manager if a newer one wrote it"
            )
        return KINDS[kind], object_id

    def decode(self, kv: pb.KeyValue) -> AnyObject:
        """The object in a key's value. Raises FailedPrecondition when it is none, or another."""
        kind, object_id = self.parse(kv.key)
        try:
            row = object_from_bytes(kv.value)
        except InvalidArgument as error:
            raise FailedPrecondition(
                f"etcd: value of {kv.key.decode(errors='replace')}: {error.message}: restore it, "
                "or upgrade this manager if a newer one wrote it"
            ) from error
        if not isinstance(row, kind) or row.id != object_id:
            raise FailedPrecondition(
                f"etcd: {kv.key.decode(errors='replace')} holds {KIND_OF[type(row)]} {row.id}: "
                "somebody copied it: restore it"
            )
        return settled(row, kv.mod_revision)


def transaction(keys: Keys, decision: Decision, fence: int) -> pb.TxnRequest:
    """Carry a decision out if it still holds; else write the barrier, so that we can catch up.

    fence: create_revision of the leader's key; 0: without a leader.
    """
    request = _fenced(keys, fence)
    for write in decision.writes:
        _add_write(keys, request, write)
    for name in decision.names:
        _add_name(keys, request, name)
    request.failure.append(_put(keys.barrier, b""))
    return request


def barrier(keys: Keys, fence: int) -> pb.TxnRequest:
    """Write the barrier: what the watch has shown when it shows this, is all there was."""
    request = _fenced(keys, fence)
    request.success.append(_put(keys.barrier, b""))
    return request


def operations(request: pb.TxnRequest) -> int:
    """How many etcd counts against its --max-txn-ops."""
    return max(len(request.compare), len(request.success), len(request.failure))


def campaign(keys: Keys, address: str, lease: int) -> pb.TxnRequest:
    """Become the leader if there is none; else say who is."""
    request = pb.TxnRequest()
    request.compare.append(_created(keys.leader, 0))
    put = pb.PutRequest(key=keys.leader, value=address.encode(), lease=lease)
    request.success.append(pb.RequestOp(request_put=put))
    request.failure.append(_get(keys.leader))
    return request


def announcement(keys: Keys, node_id: str, address: str, lease: int) -> pb.TxnRequest:
    """Say that a manager runs, for as long as its lease."""
    put = pb.PutRequest(key=keys.manager(node_id), value=address.encode(), lease=lease)
    return pb.TxnRequest(success=[pb.RequestOp(request_put=put)])


def leader_of(answer: pb.TxnResponse) -> pb.KeyValue | None:
    """The leader's key in the answer to a refused transaction; None: there is no leader."""
    for one in answer.responses:
        if one.HasField("response_range"):
            kvs = one.response_range.kvs
            return kvs[0] if kvs else None
    return None


def _fenced(keys: Keys, fence: int) -> pb.TxnRequest:
    request = pb.TxnRequest()
    if fence:
        request.compare.append(_created(keys.leader, fence))
        request.failure.append(_get(keys.leader))
    return request


def _add_write(keys: Keys, request: pb.TxnRequest, write: Write) -> None:
    key = keys.object(KIND_OF[type(write.row)], write.row.id)
    if write.old is None:
        request.compare.append(_created(key, 0))
    else:
        compare = request.compare.add(key=key, target=pb.Compare.MOD)
        compare.mod_revision = write.expected
    if write.new is None:
        request.success.append(_delete(key))
    else:
        request.success.append(_put(key, object_to_bytes(write.new)))


def _add_name(keys: Keys, request: pb.TxnRequest, write: NameWrite) -> None:
    key = keys.name(write.kind, write.name)
    if write.must_be_free:
        request.compare.append(_created(key, 0))
    request.success.append(_put(key, write.owner.encode()) if write.owner else _delete(key))


def _created(key: bytes, revision: int) -> pb.Compare:
    return pb.Compare(key=key, target=pb.Compare.CREATE, create_revision=revision)


def _put(key: bytes, value: bytes) -> pb.RequestOp:
    return pb.RequestOp(request_put=pb.PutRequest(key=key, value=value))


def _delete(key: bytes) -> pb.RequestOp:
    return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key))


def _get(key: bytes) -> pb.RequestOp:
    return pb.RequestOp(request_range=pb.RangeRequest(key=key))
