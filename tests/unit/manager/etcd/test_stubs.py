"""Our messages: etcd's numbers under names that clash with no other etcd client."""

from __future__ import annotations

from google.protobuf import descriptor_pool

from shoal.etcd.v1 import rpc_pb2 as pb


def test_no_name_of_another_client_is_taken():
    pool = descriptor_pool.Default()
    for name in ("etcdserverpb.TxnRequest", "mvccpb.KeyValue", "authpb.User"):
        try:
            found = pool.FindMessageTypeByName(name)
        except KeyError:
            continue
        raise AssertionError(f"{found.full_name} is registered by {found.file.name}")
    assert pb.DESCRIPTOR.name == "shoal/etcd/v1/rpc.proto"
    assert all(one.full_name.startswith("shoal.etcd.v1.") for one in _messages())


def _messages():
    return pb.DESCRIPTOR.message_types_by_name.values()


def test_the_numbers_are_those_of_etcd():
    compare = pb.Compare(key=b"k", target=pb.Compare.MOD, mod_revision=3)
    assert compare.SerializeToString() == b"\x10\x02\x1a\x01k0\x03"
    exists = pb.Compare(key=b"k", target=pb.Compare.CREATE, create_revision=0)
    assert exists.SerializeToString() == b"\x10\x01\x1a\x01k\x28\x00", "zero is sent"
    event = pb.Event.FromString(b"\x08\x01\x12\x05\x0a\x01k\x18\x07\x1a\x05\x0a\x01k\x18\x05")
    assert (event.type, event.kv.mod_revision, event.prev_kv.mod_revision) == (
        pb.Event.DELETE,
        7,
        5,
    )
    assert pb.WatchCreateRequest(fragment=True, prev_kv=True).SerializeToString() == b"0\x01@\x01"
