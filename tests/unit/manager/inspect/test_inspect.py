"""The tool that looks into stopped managers: true, silent about secrets, and read-only."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

from manager.inspect.__main__ import run
from manager.inspect.plain import SECRET_FIELDS, plain
from manager.raft.confchange import ChangeKind, ConfChange, NodeChange, encode_change
from manager.storage.entries import Entry, HardState, SnapshotMark
from manager.storage.keyring import Locked
from manager.storage.member import Opening, open_member
from manager.storage.snapshot_file import SnapshotRecord
from shoal.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from shoal.model import objects, specs, types
from shoal.model.enums import ActionKind
from shoal.model.objects import Cluster, Secret, Service, StoreAction, StoreEntry
from shoal.model.row import Row
from shoal.model.specs import ContainerSpec, GlobalMode, PullOptions, SecretSpec, TaskSpec
from shoal.model.types import Annotations, CaConfig, EncryptionKey, JoinTokens, RootCa, RootRotation
from shoal.security.lock import LockKey, NodeLock
from shoal.security.unlock import make_unlock_key
from shoal.settings.lock import write_lock_file
from shoal.wire.objects import entry_to_bytes, object_to_bytes
from tests.support.planning import a_service, a_task

CLUSTER = "c" * 25
SECRET = b"-----BEGIN PRIVATE thing that opens doors-----"
KEY_TEXT = SECRET.decode()


def a_cluster() -> Cluster:
    ca = CaConfig(signing_ca_key=SECRET)
    return Cluster(
        id="cluster",
        spec=Cluster().spec.replaced(ca=ca),
        root_ca=RootCa(
            certificate=b"-----BEGIN CERTIFICATE-----\n",
            key=SECRET,
            join_tokens=JoinTokens(worker=KEY_TEXT, manager=KEY_TEXT),
            rotation=RootRotation(ca_key=SECRET),
        ),
        network_bootstrap_keys=(EncryptionKey(key=SECRET),),
        unlock_keys=(EncryptionKey(key=SECRET),),
    )


def a_secret() -> Secret:
    return Secret(id="s1", spec=SecretSpec(annotations=Annotations(name="db"), data=SECRET))


def a_private_service() -> Service:
    pull = PullOptions(registry_auth=KEY_TEXT)
    task = TaskSpec(runtime=ContainerSpec(image="nginx", pull_options=pull))
    service = a_service("web")
    return service.replaced(spec=service.spec.replaced(task=task, mode=GlobalMode()))


def stored(index: int, *rows, action: ActionKind = ActionKind.CREATE, term: int = 2) -> Entry:
    actions = tuple(StoreAction(object=row, kind=action) for row in rows)
    return Entry(index, term, 1, entry_to_bytes(StoreEntry(actions=actions, proposed_at_ns=7)))


@pytest.fixture
def state(tmp_path):
    """A stopped node: a snapshot of entry 2, a log that goes on, the last entry uncommitted."""
    member = open_member(tmp_path / "raft", Opening(CLUSTER, segment_bytes=1 << 16))
    change = ConfChange(changes=(NodeChange(ChangeKind.ADD_LEARNER, 9),), context=b"\x81\xa1a\x01")
    member.wal.append(
        [stored(1, a_cluster()), stored(2, a_secret())],
        HardState(2, member.wal.identity.raft_id, 2),
    )
    rows = [a_cluster(), a_secret()]
    member.snapshots.save(
        2, 2, [SnapshotRecord(1, object_to_bytes(row)) for row in rows], metadata=b"\x81\xa1v\x07"
    )
    member.wal.append(mark=SnapshotMark(2, 2))
    member.wal.append(
        [
            Entry(3, 2, 0, b""),
            Entry(4, 2, 255, encode_change(change)),
            stored(5, a_private_service(), a_task("t1")),
            stored(6, a_private_service()),
            stored(7, a_task("t2")),
        ],
        HardState(2, 1, 6),
    )
    member.wal.close()
    return tmp_path


def dump(command: str, state: Path, *options: str) -> list[dict]:
    out = io.StringIO()
    run([command, "--state-dir", str(state), "--format", "json", *options], out)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def text(command: str, state: Path, *options: str) -> str:
    out = io.StringIO()
    run([command, "--state-dir", str(state), *options], out)
    return out.getvalue()


def test_the_log_is_shown_record_by_record(state):
    documents = dump("dump-wal", state)
    assert [document["record"] for document in documents] == [
        "segment", "hard state", "entry", "entry", "hard state", "snapshot mark",
        *["entry"] * 5, "hard state",
    ]  # fmt: skip
    entries = [document for document in documents if document["record"] == "entry"]
    assert [entry["index"] for entry in entries] == list(range(1, 8))
    assert entries[0]["actions"][0]["object"]["id"] == "cluster"
    assert entries[2]["kind"] == "empty"
    assert entries[3]["change"]["changes"] == [{"kind": 2, "node": 9}]
    assert entries[3]["change"]["context"] == {"a": 1}
    assert [action["action"] for action in entries[4]["actions"]] == ["create", "create"]
    assert documents[0]["key"] is not None
    shown = text("dump-wal", state)
    assert f"create service {a_private_service().id}, create task t1" in shown
    assert "membership change" in shown
    assert "hard state: term 2, vote 1, commit 6" in shown


def test_the_snapshot_is_shown(state):
    head, *rows = dump("dump-snapshot", state)
    assert (head["index"], head["term"], head["metadata"]) == (2, 2, {"v": 7})
    assert [(row["kind"], row["object"]["id"]) for row in rows] == [
        ("cluster", "cluster"),
        ("secret", "s1"),
    ]
    assert "snapshot" in text("dump-snapshot", state)


def test_the_objects_are_those_of_the_last_committed_entry(state):
    head, *rows = dump("dump-objects", state)
    assert (head["index"], head["last_index"], head["entries_refused"]) == (6, 7, 1)
    assert head["objects"] == {"cluster": 1, "secret": 1, "service": 1, "task": 1}
    assert [row["kind"] for row in rows] == ["cluster", "secret", "service", "task"]
    service = rows[2]["object"]
    assert service["spec"]["mode"] == {"GlobalMode": {}}
    assert service["spec"]["task"]["runtime"]["ContainerSpec"]["image"] == "nginx"
    assert service["meta"]["version"]["index"] == 5
    head, *rows = dump("dump-objects", state, "--uncommitted")
    assert head["objects"]["task"] == 2
    shown = text("dump-objects", state)
    assert "1 entries after it are not known to be committed" in shown
    assert "version 5" in shown


@pytest.mark.parametrize("command", ["dump-wal", "dump-snapshot", "dump-objects"])
@pytest.mark.parametrize("form", ["text", "json"])
def test_what_opens_doors_is_left_out_unless_asked_for(state, command, form):
    assert KEY_TEXT not in text(command, state, "--format", form)
    if form == "json":
        shown = text(command, state, "--format", form, "--show-secrets")
        assert shown.count(KEY_TEXT) >= 8
        assert "bytes left out" in text(command, state, "--format", form)


def test_every_field_of_the_model_that_looks_secret_is_judged():
    public = {
        ("Cluster", "encryption_key_lamport_clock"),
        ("Cluster", "network_bootstrap_keys"),  # of EncryptionKey, whose key is left out
        ("Cluster", "unlock_keys"),
        ("ConfigSpec", "data"),
        ("ContainerSpec", "secrets"),  # references
        ("Stack", "secrets"),  # references
        ("StackSpec", "secrets"),  # of SecretSpec, whose data is left out
        ("JoinTokens", "extra"),  # rows of their own
        ("NodeCertificate", "issuer_key_id"),
        ("RootCa", "join_tokens"),  # a row of its own
        *((name, field) for name, field, of in fields() if of is bytes and "cert" in field),
        ("NodeDescription", "trust_root"),
        ("NodeDescription", "images"),  # marks of the images that it has
        ("NodeDescription", "network_keys"),  # of NetworkKey, the public half of a node's key
        ("NetworkKey", "public_key"),
        ("Cluster", "network_keys_since_ns"),
        ("NetworkConfig", "key_rotation_ns"),
        ("Privileges", "seccomp_profile"),
        ("GenericRuntimeSpec", "payload"),
    }
    words = ("key", "token", "secret", "password", "auth")
    suspicious = {
        (name, field)
        for name, field, of in fields()
        if of is bytes or any(word in field for word in words) or name == "JoinTokens"
    }
    assert suspicious - public == SECRET_FIELDS


def fields():
    for module in (types, specs, objects):
        for name, row in vars(module).items():
            if isinstance(row, type) and issubclass(row, Row) and row.__module__ == module.__name__:
                for field, of in get_type_hints(row).items():
                    yield name, field, of


def test_bytes_are_text_where_they_are_text():
    assert plain(b"-----BEGIN\n") == "-----BEGIN\n"
    assert plain(b"\x00\xff") == "base64:AP8="
    assert plain(b"") == "base64:"


def test_a_torn_tail_is_reported_and_left(state):
    (path,) = (state / "raft" / "wal").glob("*.wal")
    content = path.read_bytes()
    used = len(content.rstrip(b"\0"))
    torn = content[: used - 20] + bytes(len(content) - used + 20)
    path.write_bytes(torn)
    assert dump("dump-wal", state)[-1]["record"] == "torn"
    assert "the next start cuts it off" in text("dump-wal", state)
    assert path.read_bytes() == torn


def test_nothing_is_changed(state):
    def tree():
        paths = sorted(state.rglob("*"))
        return [(str(path), path.stat().st_mtime_ns, path.stat().st_ino) for path in paths]

    before = tree()
    for command in ("dump-wal", "dump-snapshot", "dump-objects"):
        text(command, state)
    assert tree() == before


def test_a_running_manager_is_left_alone(state):
    member = open_member(state / "raft", Opening(CLUSTER, segment_bytes=1 << 16))
    for command in ("dump-wal", "dump-snapshot", "dump-objects"):
        with pytest.raises(FailedPrecondition, match="stop it first"):
            text(command, state)
    member.wal.close()
    with pytest.raises(NotFound, match="wrong --state-dir"):
        text("dump-wal", state / "none")


def test_a_locked_manager_is_read_with_its_key(tmp_path):
    unlock_key = make_unlock_key()
    opening = Opening(CLUSTER, unlock_key=unlock_key, segment_bytes=1 << 16)
    member = open_member(tmp_path / "raft", opening)
    member.wal.append([stored(1, a_secret(), term=1)])
    member.wal.close()
    with pytest.raises(Locked, match="swarmctl unlock"):
        text("dump-objects", tmp_path)
    key_file = tmp_path / "key"
    with pytest.raises(InvalidArgument, match="--unlock-key-file"):
        text("dump-objects", tmp_path, "--unlock-key-file", str(key_file))
    key_file.write_text(unlock_key.render() + "\n")
    assert "s1" in text("dump-objects", tmp_path, "--unlock-key-file", str(key_file))
    key_file.write_text(make_unlock_key().render())
    with pytest.raises(InvalidArgument, match="not the one"):
        text("dump-objects", tmp_path, "--unlock-key-file", str(key_file))


def test_a_manager_that_swarmd_has_locked_is_read_with_the_unlock_key(tmp_path):
    unlock_key, lock_key = make_unlock_key(), LockKey.make()
    opening = Opening(CLUSTER, unlock_key=lock_key, segment_bytes=1 << 16)
    member = open_member(tmp_path / "raft", opening)
    member.wal.append([stored(1, a_secret())], HardState(2, member.wal.identity.raft_id, 1))
    member.wal.close()
    write_lock_file(tmp_path / "lock.json", NodeLock(3, unlock_key, (LockKey.make(), lock_key)))
    key_file = tmp_path / "key"
    with pytest.raises(Locked, match="swarmctl unlock"):
        text("dump-objects", tmp_path)
    key_file.write_text(make_unlock_key().render())
    with pytest.raises(PermissionDenied, match="invalid key provided"):
        text("dump-objects", tmp_path, "--unlock-key-file", str(key_file))
    key_file.write_text(unlock_key.render() + "\n")
    assert "s1" in text("dump-objects", tmp_path, "--unlock-key-file", str(key_file))


def test_the_command_line(state, tmp_path):
    command = [sys.executable, "-m", "manager.inspect"]

    def call(*arguments):
        return subprocess.run(
            [*command, *arguments], capture_output=True, text=True, timeout=30, check=False
        )

    done = call("dump-objects", "--state-dir", str(state))
    assert done.returncode == 0, done.stderr
    assert "web" in done.stdout
    failed = call("dump-objects", "--state-dir", str(tmp_path / "none"))
    assert failed.returncode == 1
    assert failed.stderr.startswith("shoal-rafttool: ")
    assert "Traceback" not in failed.stderr
    assert call("dump-wal").returncode == 2
