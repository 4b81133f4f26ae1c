"""Documents as lines of text, one each; the details are in JSON. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

Document = dict[str, Any]


def to_json(document: Document) -> str:
    """One line of JSON."""
    return json.dumps(document, ensure_ascii=False)


def to_text(document: Document) -> str:
    """One line for people."""
    return _RENDERERS[document["record"]](document)


def _segment(document: Document) -> str:
    key = document["key"]
    return (
        f"segment {document['file']} from entry {document['index']},"
        f" cluster {document['cluster_id']}, member {document['raft_id']},"
        f" {f'key {key}' if key else 'not encrypted'}"
    )


def _entry(document: Document) -> str:
    head = f"{document['index']:>10} {document['term']:>6} {document['bytes']:>9}  "
    if "actions" in document:
        what = ", ".join(_action(action) for action in document["actions"]) or "no changes"
    elif "change" in document:
        what = f"membership change {to_json(document['change'])}"
    elif "unreadable" in document:
        what = f"unreadable: {document['unreadable']}"
    else:
        what = str(document["kind"])
    return head + what


def _action(action: Document) -> str:
    return f"{action['action']} {action['kind']} {action['object'].get('id', '')}"


def _hard_state(document: Document) -> str:
    return f"hard state: term {document['term']}, vote {document['vote']}, commit " + str(
        document["commit"]
    )


def _mark(document: Document) -> str:
    return f"snapshot mark: index {document['index']}, term {document['term']}"


def _torn(document: Document) -> str:
    return (
        f"torn tail at offset {document['offset']}: {document['reason']};"
        " the next start cuts it off"
    )


def _snapshot(document: Document) -> str:
    key, metadata = document["key"], document["metadata"]
    return (
        f"snapshot {document['file']}: index {document['index']}, term {document['term']},"
        f" {f'key {key}' if key else 'not encrypted'}"
        + (f", membership {to_json(metadata)}" if metadata is not None else "")
    )


def _state(document: Document) -> str:
    counts = ", ".join(f"{count} {kind}" for kind, count in document["objects"].items())
    after = document["last_index"] - document["index"]
    return (
        f"cluster {document['cluster_id']}, member {document['raft_id']}, state after entry"
        f" {document['index']}: {counts or 'no objects'}"
        + (f"; {after} entries after it are not known to be committed" if after > 0 else "")
    )


def _object(document: Document) -> str:
    row = document["object"]
    version = row.get("meta", {}).get("version", {}).get("index", 0)
    name = row.get("spec", {}).get("annotations", {}).get("name", "")
    return f"{document['kind']:<10} {row.get('id', ''):<25} version {version:<10} {name}".rstrip()


def _unknown(document: Document) -> str:
    return f"record of kind {document['kind']}, {document['bytes']} bytes"


_RENDERERS: dict[str, Callable[[Document], str]] = {
    "segment": _segment,
    "entry": _entry,
    "hard state": _hard_state,
    "snapshot mark": _mark,
    "torn": _torn,
    "snapshot": _snapshot,
    "state": _state,
    "object": _object,
    "unknown": _unknown,
}
