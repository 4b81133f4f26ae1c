"""The node's configuration file, its paths, and processes that end with their parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import FailedPrecondition
from shoal.settings.node import NodeConfig, read_node_config, write_durably, write_node_config
from shoal.settings.paths import NodePaths

CONFIG = NodeConfig(
    advertise_address="192.0.2.1:2377",
    listen_address="0.0.0.0:2377",
    data_path_address="192.0.2.1",
    managers=("192.0.2.1:2377",),
)


def test_without_a_file_the_node_is_in_no_cluster(tmp_path):
    assert read_node_config(tmp_path / "node.json") is None


@given(st.from_type(NodeConfig))
def test_comes_back_as_it_was_written(tmp_path_factory, config):
    config = msgspec.structs.replace(config, version=2 if config.store else 1)
    path = tmp_path_factory.mktemp("node") / "node.json"
    write_node_config(path, config)
    assert read_node_config(path) == config


def test_without_a_store_the_file_is_what_older_versions_read(tmp_path):
    path = tmp_path / "node.json"
    write_node_config(path, CONFIG)
    fields = json.loads(path.read_bytes())
    assert fields["version"] == 1
    assert "store" not in fields
    path.write_bytes(
        b'{"advertise_address":"a:1","listen_address":"b:1","data_path_address":"c",'
        b'"managers":[],"availability":"active","version":1}'
    )
    assert read_node_config(path) == NodeConfig("a:1", "b:1", "c", ())


def test_the_file_is_private_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "deep" / "node.json"
    write_node_config(path, CONFIG)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["node.json"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"version": 1}', b'{"advertise_address": 5}', b'{"version": "x"}'],
)
def test_a_damaged_file_names_itself_and_the_remedy(tmp_path, content):
    path = tmp_path / "node.json"
    path.write_bytes(content)
    with pytest.raises(FailedPrecondition, match=r"node\.json: damaged .*leave and join again"):
        read_node_config(path)


def test_an_unknown_field_is_damage_and_not_ignored(tmp_path):
    path = tmp_path / "node.json"
    path.write_bytes(msgspec.json.encode({**msgspec.to_builtins(CONFIG), "extra": 1}))
    with pytest.raises(FailedPrecondition, match="extra"):
        read_node_config(path)


def test_a_newer_file_says_what_to_run_even_with_new_fields(tmp_path):
    path = tmp_path / "node.json"
    path.write_bytes(json.dumps({"version": 3, "something": "new"}).encode())
    with pytest.raises(FailedPrecondition, match="format version 3 is newer than 2"):
        read_node_config(path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "node.json"
    write_node_config(path, CONFIG)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_durably(path, b"new")
    assert read_node_config(path) == CONFIG
    assert len(list(tmp_path.iterdir())) == 1


def test_every_path_is_below_the_two_directories():
    paths = NodePaths(state=Path("/s"), run=Path("/r"))
    properties = [name for name in vars(NodePaths) if isinstance(vars(NodePaths)[name], property)]
    values = [getattr(paths, name) for name in properties]
    assert len(properties) >= 9
    assert all(str(value).startswith(("/s", "/r")) for value in values)
    assert len(set(values)) == len(values)


CHILD = (
    "import sys, time; from shoal.settings.process import die_with_parent; "
    "die_with_parent(int(sys.argv[1])); print('ready', flush=True); time.sleep(60)"
)
PARENT = (
    "import subprocess, sys, os, time; "
    f"child = subprocess.Popen([sys.executable, '-c', {CHILD!r}, str(os.getpid())],"
    " stdout=subprocess.PIPE); child.stdout.readline(); print(child.pid, flush=True);"
    " time.sleep(60)"
)


def test_a_child_ends_with_its_parent_however_that_ends():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.stdout.close()
    parent.send_signal(signal.SIGKILL)
    parent.wait(10)
    deadline_s = time.monotonic() + 10
    while not has_ended(child):
        assert time.monotonic() < deadline_s, "the child lives on"
        time.sleep(0.005)


def has_ended(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def test_a_child_whose_parent_is_gone_already_exits():
    done = subprocess.run(
        [sys.executable, "-c", CHILD, "1"], capture_output=True, timeout=20, check=False
    )
    assert done.returncode == 1
    assert done.stdout == b""
