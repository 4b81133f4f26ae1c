"""cluster backup, restore, transfer-leadership: files that are whole or not there, and texts."""

from __future__ import annotations

import hashlib
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.api.v1 import control_pb2, node_pb2
from shoal.errors import AlreadyExists, FailedPrecondition, ResourceExhausted
from swarmctl.private_file import private_file
from tests.unit.swarmctl.conftest import run
from tests.unit.swarmctl.rows import NODE_A, NODE_B

CHUNKS = [b"first " * 10_000, b"second " * 30_000, b"end"]
CONTENT = b"".join(CHUNKS)


def a_backup(*, sha256: bytes | None = None) -> list[control_pb2.BackupClusterResponse]:
    answer = control_pb2.BackupClusterResponse
    summary = control_pb2.BackupSummary(cluster_id="cluster0", version={"index": 41}, objects=3)
    return [
        answer(summary=summary),
        *(answer(chunk=chunk, objects=number + 1) for number, chunk in enumerate(CHUNKS)),
        answer(objects=3, sha256=sha256 or hashlib.sha256(CONTENT).digest()),
    ]


@pytest.fixture
def passphrase(tmp_path) -> Path:
    path = tmp_path / "passphrase"
    path.write_text("correct horse battery\nnot this line\n")
    return path


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_a_backup_is_a_file_for_its_owner(daemon, tmp_path):
    daemon.state.backup = a_backup()
    result = run("cluster", "backup", str(tmp_path / "b"), host=daemon.address)
    assert result.exit_code == 0, result.output
    assert "Cluster cluster0 saved at version 41: 3 objects." in result.output
    assert "whoever has it has the cluster" in result.output
    assert (tmp_path / "b").read_bytes() == CONTENT
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o600
    assert names(tmp_path) <= {"b", "config"}


def test_a_backup_goes_to_standard_output(daemon):
    daemon.state.backup = a_backup()
    result = run("cluster", "backup", "-", host=daemon.address)
    assert result.stdout_bytes == CONTENT
    assert "saved at version 41" in result.stderr
    assert run("cluster", "backup", "-q", "-", host=daemon.address).stderr == ""


@pytest.mark.parametrize(
    ("answers", "text"),
    [
        (a_backup()[:-1], "broke off before its end: try again"),
        (a_backup(sha256=b"x" * 32), "does not match its checksum: try again"),
        ([*a_backup()[:3], control_pb2.BackupClusterResponse()], "gone"),
        ([], "broke off before its end"),
    ],
    ids=["cut", "changed", "connection lost", "nothing"],
)
def test_nothing_is_left_of_a_backup_that_is_not_whole(daemon, tmp_path, answers, text):
    daemon.state.backup = answers
    (tmp_path / "old").write_bytes(b"the last one")
    for name in ("new", "old"):
        result = run("cluster", "backup", "--force", str(tmp_path / name), host=daemon.address)
        assert result.exit_code == 5, result.output
        assert text in result.output
    assert names(tmp_path) <= {"old", "config"}
    assert (tmp_path / "old").read_bytes() == b"the last one"


def test_a_file_is_not_overwritten_unless_it_is_said(daemon, tmp_path):
    daemon.state.backup = a_backup()
    path = tmp_path / "b"
    path.write_bytes(b"the last one")
    refused = run("cluster", "backup", str(path), host=daemon.address)
    assert refused.exit_code == 4
    assert "overwrite with --force" in refused.output
    assert daemon.state.requests == []
    assert run("cluster", "backup", "-f", str(path), host=daemon.address).exit_code == 0
    assert path.read_bytes() == CONTENT


def test_what_the_directory_refuses_is_said(daemon, tmp_path):
    refused = run("cluster", "backup", str(tmp_path / "none" / "b"), host=daemon.address)
    assert refused.exit_code == 6
    assert "No such file or directory" in refused.output


def test_an_encrypted_backup_is_restored_with_its_passphrase(daemon, tmp_path, passphrase):
    daemon.state.backup = a_backup()
    path = tmp_path / "b"
    flags = ("--passphrase-file", str(passphrase))
    saved = run("cluster", "backup", *flags, str(path), host=daemon.address)
    assert saved.exit_code == 0, saved.output
    assert "whoever has it" not in saved.output
    assert b"first" not in path.read_bytes()
    restored = run("cluster", "restore", *flags, str(path), host=daemon.address)
    assert restored.exit_code == 0, restored.output
    assert daemon.state.archives == [CONTENT]

    (tmp_path / "wrong").write_text("another passphrase")
    wrong = run(
        "cluster", "restore", "--passphrase-file", str(tmp_path / "wrong"), str(path),
        host=daemon.address,
    )  # fmt: skip
    assert wrong.exit_code == 2
    assert "passphrase: it is not the one" in wrong.output
    path.write_bytes(path.read_bytes()[:-1])
    cut = run("cluster", "restore", *flags, str(path), host=daemon.address)
    assert cut.exit_code == 6
    assert "damaged or cut short" in cut.output
    assert daemon.state.archives == [CONTENT]


def test_passphrases_that_are_missing_or_too_much(daemon, tmp_path, passphrase):
    plain = tmp_path / "plain"
    plain.write_bytes(CONTENT)
    flags = ("--passphrase-file", str(passphrase))
    needless = run("cluster", "restore", *flags, str(plain), host=daemon.address)
    assert f"{plain} is not encrypted" in needless.output
    unasked = run("cluster", "backup", "--encrypt", str(tmp_path / "b"), host=daemon.address)
    assert unasked.exit_code == 2
    assert "give --passphrase-file, or run it on a terminal" in unasked.output
    passphrase.write_text("short")
    short = run("cluster", "backup", *flags, str(tmp_path / "b"), host=daemon.address)
    assert "must have 8 to 1024 characters" in short.output
    assert daemon.state.requests == []
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("file", ["b", "-"])
def test_restore_carries_every_flag_and_says_what_to_do_next(daemon, tmp_path, file):
    path, key = tmp_path / "b", tmp_path / "key.pem"
    path.write_bytes(CONTENT)
    key.write_text("the key")
    result = run(
        "cluster", "restore", "--ca-key", str(key), "--advertise-addr", "192.0.2.1",
        "--listen-addr", "0.0.0.0:2377",
        "--availability", "drain", "--data-path-addr", "eth1",
        "-" if file == "-" else str(path), host=daemon.address, stdin=CONTENT,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "Cluster cluster0 restored as of 2023-11-14 22:13:20 UTC (12 objects)" in result.output
    assert "that know a manager at 192.0.2.1:2377 come back by themselves" in result.output
    assert "swarmctl unlock-key" in result.output
    assert daemon.state.archives == [CONTENT]
    sent = [one for one in daemon.state.requests if isinstance(one, node_pb2.RestoreRequest)]
    assert sent[0].options == node_pb2.RestoreOptions(
        advertise_address="192.0.2.1",
        listen_address="0.0.0.0:2377",
        availability=2,
        data_path_address="eth1",
        ca_key=b"the key",
    )


def test_what_the_daemon_refuses_is_said_before_and_after_it_received(daemon, tmp_path):
    path = tmp_path / "b"
    path.write_bytes(b"no backup" * 1_000_000)
    daemon.state.nodes["busy"] = daemon.state.nodes[NODE_A]
    for text in ("already part of a cluster", "not a backup of Shoal"):
        result = run("cluster", "restore", str(path), host=daemon.address)
        assert (result.exit_code, text in result.output) == (6, True), result.output
        daemon.state.nodes.pop("busy", None)
    missing = run("cluster", "restore", str(tmp_path / "none"), host=daemon.address)
    assert missing.exit_code == 2


def test_leadership_is_handed_over_and_waited_for(daemon):
    named = run("cluster", "transfer-leadership", NODE_B, host=daemon.address)
    assert named.output == f"Node {NODE_B} leads the cluster.\n"
    assert daemon.state.nodes[NODE_B].manager_status.leader
    other = run("cluster", "transfer-leadership", host=daemon.address)
    assert other.output == f"Node {NODE_B} leads the cluster.\n"
    back = run("cluster", "transfer-leadership", NODE_A, host=daemon.address)
    assert back.output == f"Node {NODE_A} leads the cluster.\n"
    assert run("cluster", "transfer-leadership", "nobody", host=daemon.address).exit_code == 3


def test_a_private_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "f"

    def interrupted() -> None:
        with private_file(path, replace=False) as file:
            file.write(b"half")
            assert not path.exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    with private_file(path, replace=False) as file:
        file.write(b"whole")
    assert path.read_bytes() == b"whole"
    with pytest.raises(AlreadyExists), private_file(path, replace=False):
        pass
    with pytest.raises(FailedPrecondition), private_file(tmp_path / "f" / "g", replace=True):
        pass


def test_a_full_disk_is_named_and_nothing_is_left(tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def write() -> None:
        with private_file(tmp_path / "f", replace=False) as file:
            file.write(b"x" * 100_000)
            file.flush()

    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        with pytest.raises(ResourceExhausted, match="free space and try again"):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


def test_a_terminated_command_leaves_no_partial_file(tmp_path):
    program = (
        "import sys, time, pathlib; from swarmctl.private_file import private_file\n"
        "with private_file(pathlib.Path(sys.argv[1]), replace=False) as file:\n"
        "    file.write(b'half'); print('begun', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-P", "-c", program, str(tmp_path / "f")], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        assert len(list(tmp_path.iterdir())) == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=40) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
