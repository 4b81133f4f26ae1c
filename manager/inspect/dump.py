"""What the log, the newest snapshot and the tables hold, as a stream of documents.

A document is a dict with a `record` that names what it is; the same documents become text or JSON
lines. Entries and metadata that are not the store's are shown decoded where they can be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from manager.inspect.plain import plain
from manager.raft.entries import KIND_CONF_CHANGE, KIND_EMPTY
from manager.storage.entries import Entry, HardState, Record, Recovered, SnapshotMark
from manager.storage.errors import CorruptSnapshot
from manager.storage.reading import SegmentView, StoppedMember
from manager.storage.sealing import NO_KEY
from manager.storage.snapshot_file import read_header
from manager.store.apply import apply_entry
from manager.store.tables import Tables
from shoal.errors import SwarmError
from shoal.model.objects import AnyObject
from shoal.wire.objects import entry_from_bytes, object_from_bytes

KIND_STORE = 1
Document = dict[str, Any]
Dump = Callable[[StoppedMember, "Options"], Iterator[Document]]


class Options(msgspec.Struct, frozen=True):
    """show_secrets: keys, tokens and secrets too. uncommitted: objects after the last entry."""

    show_secrets: bool = False
    uncommitted: bool = False


def dump_wal(member: StoppedMember, options: Options) -> Iterator[Document]:
    """Every record of every segment, oldest first, also entries that were overwritten later."""
    for view in member.segments():
        yield _segment(member, view)
        for batch in view.scan.batches:
            for record in batch:
                yield _record(record, options)
        if view.is_torn:
            yield {"record": "torn", "offset": view.scan.bad_offset, "reason": view.scan.reason}


def dump_snapshot(member: StoppedMember, options: Options) -> Iterator[Document]:
    """The snapshot a manager would load, and every object in it."""
    snapshot = member.snapshot(member.recovered())
    if snapshot is None:
        return
    with snapshot.path.open("rb") as file:
        header, _ = read_header(file, snapshot.path)
    yield {
        "record": "snapshot",
        "file": str(snapshot.path),
        "index": snapshot.index,
        "term": snapshot.term,
        "key": _key(header.key_id),
        "metadata": _packed(snapshot.metadata),
    }
    for record in snapshot.records():
        if record.kind != KIND_STORE:
            yield {"record": "unknown", "kind": record.kind, "bytes": len(record.data)}
            continue
        try:
            row = object_from_bytes(record.data)
        except SwarmError as error:
            raise CorruptSnapshot(f"{snapshot.path}: a record is no object: {error}") from error
        yield _object(row, options)


def dump_objects(member: StoppedMember, options: Options) -> Iterator[Document]:
    """The objects after the last committed entry; first what that entry is."""
    recovered = member.recovered()
    snapshot = member.snapshot(recovered)
    rows = () if snapshot is None else (object_from_bytes(r.data) for r in snapshot.records())
    tables = Tables(rows, version=0 if snapshot is None else snapshot.index)
    last = recovered.last_index if options.uncommitted else committed(recovered)
    refused = 0
    for entry in recovered.entries_after(tables.version):
        if entry.index > last:
            break
        if entry.kind != KIND_STORE:
            continue
        try:
            apply_entry(tables, entry_from_bytes(entry.data), entry.index)
        except SwarmError:
            refused += 1  # as on every manager: a conflict is decided when it is applied
    found = tuple(tables.all_rows())
    counts = Counter(type(row).__name__.lower() for row in found)
    yield {
        "record": "state",
        "cluster_id": member.identity.cluster_id,
        "raft_id": f"{member.identity.raft_id:x}",
        "index": last,
        "last_index": recovered.last_index,
        "entries_refused": refused,
        "objects": dict(sorted(counts.items())),
    }
    for row in sorted(found, key=lambda row: (type(row).__name__, row.id)):
        yield _object(row, options)


def committed(recovered: Recovered) -> int:
    """The last entry that is committed for sure."""
    if recovered.hard_state.term == 0:  # written by a manager alone: durable is committed
        return recovered.last_index
    return max(recovered.hard_state.commit, recovered.mark.index if recovered.mark else 0)


def _segment(member: StoppedMember, view: SegmentView) -> Document:
    identity = member.identity
    return {
        "record": "segment",
        "file": view.file.path.name,
        "index": view.file.index,
        "cluster_id": identity.cluster_id,
        "raft_id": f"{identity.raft_id:x}",
        "key": _key(view.key_id),
    }


def _record(record: Record, options: Options) -> Document:
    match record:
        case HardState(term, vote, commit):
            return {"record": "hard state", "term": term, "vote": f"{vote:x}", "commit": commit}
        case SnapshotMark(index, term):
            return {"record": "snapshot mark", "index": index, "term": term}
        case Entry(index, term, kind, data):
            head = {"record": "entry", "index": index, "term": term, "bytes": len(data)}
            return head | _entry(kind, data, options)


def _entry(kind: int, data: bytes, options: Options) -> Document:
    if kind == KIND_EMPTY:
        return {"kind": "empty"}
    if kind == KIND_CONF_CHANGE:
        return {"kind": "membership change", "change": _packed(data)}
    if kind != KIND_STORE:
        return {"kind": kind}
    try:
        entry = entry_from_bytes(data)
    except SwarmError as error:
        return {"kind": "store", "unreadable": str(error)}
    actions = [
        {
            "action": action.kind.name.lower(),
            "kind": type(action.object).__name__.lower(),
            "expected_version": action.expected_version,
            "object": plain(action.object, show_secrets=options.show_secrets),
        }
        for action in entry.actions
    ]
    return {"kind": "store", "proposed_at_ns": entry.proposed_at_ns, "actions": actions}


def _object(row: AnyObject, options: Options) -> Document:
    shown = plain(row, show_secrets=options.show_secrets)
    return {"record": "object", "kind": type(row).__name__.lower(), "object": shown}


def _packed(data: bytes) -> Any:
    """The Raft driver's own bytes, decoded without knowing what they mean."""
    if not data:
        return None
    try:
        return _unpacked(msgspec.msgpack.decode(data))
    except msgspec.MsgspecError:
        return plain(data)


def _unpacked(value: object) -> Any:
    if isinstance(value, bytes):
        return _packed(value)
    if isinstance(value, dict):
        return {str(key): _unpacked(each) for key, each in value.items()}
    return [_unpacked(each) for each in value] if isinstance(value, list) else value


def _key(key_id: bytes) -> str | None:
    return None if key_id == NO_KEY else key_id.hex()
