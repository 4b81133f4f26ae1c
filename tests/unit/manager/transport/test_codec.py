"""Frames and snapshot chunks: bounded, in order, whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.consensus.roster import Member, Roster
from manager.raft.entries import Entry, Snapshot
from manager.raft.messages import Message, MessageKind
from manager.storage.snapshot_dir import SnapshotDir
from manager.storage.snapshot_file import SnapshotRecord
from manager.transport import codec, snapshots
from manager.transport.metadata import Opening, Removed, check, metadata, opening_of
from shoal.errors import FailedPrecondition, InvalidArgument, PermissionDenied
from shoal.ids import ClusterId, NodeId
from shoal.security.roles import PeerIdentity, Role

CLUSTER = "c" * 25


def an_append(sizes, first=1):
    entries = tuple(Entry(first + n, 1, 1, bytes(size)) for n, size in enumerate(sizes))
    return Message(kind=MessageKind.APPEND, to=2, sender=1, term=1, entries=entries)


@given(st.lists(st.lists(st.integers(0, 300_000), max_size=4), max_size=30))
def test_frames_hold_every_message_in_order_within_the_limits(sizes):
    messages = [an_append(one) for one in sizes]
    frames = list(codec.frames(messages))
    decoded = [codec.messages_of(frame) for frame in frames]
    assert [message for group in decoded for message in group] == messages
    for group in decoded:
        total = sum(codec.message_bytes(message) for message in group)
        assert len(group) == 1 or total <= codec.FRAME_BYTES_MAX


def test_many_small_messages_share_frames():
    messages = [an_append([]) for _ in range(codec.FRAME_MESSAGES_MAX + 1)]
    assert len(list(codec.frames(messages))) == 2


@pytest.mark.parametrize("raw", [b"", b"\xc1", b"\x01", b"\x91\x80"])
def test_what_is_no_list_of_messages_is_refused(raw):
    with pytest.raises(InvalidArgument, match="raft frame"):
        codec.messages_of(raw)


def test_unknown_fields_of_a_newer_version_are_skipped():
    message = an_append([3])
    raw = codec.encode_message(message)
    assert raw[0] & 0xF0 == 0x80, "a small map"
    newer = bytes([raw[0] + 1]) + raw[1:] + b"\xa3new\x01"
    assert codec.decode_message(newer) == message


@pytest.mark.parametrize("offset", [0, 1, 99, 100, 101, 250, 399])
def test_chunks_from_any_offset_continue_the_same_bytes(tmp_path: Path, monkeypatch, offset):
    monkeypatch.setattr(snapshots, "CHUNK_BYTES", 100)
    records = [SnapshotRecord(1, bytes([n]) * (n * 7)) for n in range(10)]
    directory = SnapshotDir(tmp_path, cluster_id=CLUSTER)
    file = directory.save(7, 3, records, metadata=b"members")
    message = Message(
        kind=MessageKind.SNAPSHOT, to=2, sender=1, term=3, snapshot=Snapshot(index=7, term=3)
    )
    whole = b"".join(chunk.data for chunk in snapshots.chunks(file, message, 0))
    chunks = list(snapshots.chunks(file, message, offset))
    assert codec.decode_message(chunks[0].message) == message
    assert chunks[0].membership == b"members"
    assert [chunk.last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    at = offset
    for chunk in chunks:
        assert chunk.offset == at
        assert len(chunk.data) <= 100
        at += len(chunk.data)
    assert b"".join(chunk.data for chunk in chunks) == whole[offset:]


def a_peer(node_id="n1", role=Role.MANAGER):
    return PeerIdentity(NodeId(node_id), role, ClusterId(CLUSTER))


ROSTER = Roster({1: Member(1, "n1", "a:1"), 2: Member(2, "n2", "b:1")}, frozenset({9}))


def test_metadata_says_who_opens_a_stream():
    assert opening_of(metadata(0x1F, 2, address="a:1", snapshot="3-7")) == Opening(
        0x1F, 2, "a:1", "3-7"
    )
    with pytest.raises(InvalidArgument, match="must name raft ids"):
        opening_of((("shoal-raft-from", "x"),))


@pytest.mark.parametrize(
    ("sender", "to", "peer", "error"),
    [
        (1, 2, a_peer(role=Role.WORKER), PermissionDenied),
        (9, 2, a_peer("n9"), Removed),
        (1, 3, a_peer(), FailedPrecondition),
        (1, 2, a_peer("n2"), PermissionDenied),
    ],
)
def test_only_a_member_speaks_in_its_name(sender, to, peer, error):
    with pytest.raises(error):
        check(Opening(sender, to, "", ""), peer, ROSTER, 2)


def test_members_and_managers_that_are_not_known_yet_may_speak():
    check(Opening(1, 2, "", ""), a_peer(), ROSTER, 2)
    check(Opening(5, 2, "", ""), a_peer("n5"), ROSTER, 2)
    check(Opening(5, 2, "", ""), a_peer("n1"), ROSTER, 2)  # came back, as the newest log may know
    check(Opening(1, 2, "", ""), a_peer(), Roster(), 2)
