"""The file of a node's WireGuard keys."""

from __future__ import annotations

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import FailedPrecondition
from shoal.security.exchange import new_private_key, public_key
from worker.network.keys import KeyFile, PrivateKeys


def test_the_first_key_is_made_once_and_for_its_owner_alone(tmp_path):
    directory = tmp_path / "worker"
    keys = KeyFile(directory).load()
    assert sorted(keys.by_generation) == [0]
    assert KeyFile(directory).load() == keys
    (file,) = directory.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert keys.public == {0: public_key(keys.by_generation[0])}


def test_no_key_is_in_a_repr(tmp_path):
    keys = KeyFile(tmp_path).load()
    assert repr(keys) == "PrivateKeys([0])"


@given(st.lists(st.integers(0, 40), max_size=12))
def test_there_are_at_most_two_keys_and_one_of_the_generation_asked_for(asked):
    keys = PrivateKeys()
    for generation in asked:
        before, fresh = keys, new_private_key()
        keys = keys.moved_to(generation, fresh)
        assert generation == max(keys.by_generation)
        assert set(keys.by_generation) <= {generation - 1, generation}
        for one, key in keys.by_generation.items():
            assert key == before.by_generation.get(one, fresh)


def test_a_move_is_on_disk_and_keeps_the_key_of_before(tmp_path):
    file = KeyFile(tmp_path)
    first = file.load()
    second = file.move(first, 1)
    assert second.by_generation[0] == first.by_generation[0]
    assert KeyFile(tmp_path).load() == second
    third = file.move(second, 2)
    assert sorted(KeyFile(tmp_path).load().by_generation) == [1, 2]
    assert third.by_generation[1] == second.by_generation[1]


@pytest.mark.parametrize(
    ("content", "mode", "complaint"),
    [
        (b'{"version":1,"keys":{}}', 0o640, "others can read it"),
        (b'{"version":1,"keys":{"0":"', 0o600, "remove it"),
        (b'{"version":2,"keys":{}}', 0o600, "version 2 is not known"),
        (b'{"version":1,"keys":{"0":"AAAA"}}', 0o600, "remove it"),
    ],
)
def test_a_file_that_holds_no_secret_keys_is_refused(tmp_path, content, mode, complaint):
    path = tmp_path / "wireguard.json"
    path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(FailedPrecondition, match=complaint):
        KeyFile(tmp_path).load()
    path.unlink()
    assert KeyFile(tmp_path).load().public


def test_a_full_disk_leaves_the_keys_of_before(tmp_path, monkeypatch):
    file = KeyFile(tmp_path)
    keys = file.load()

    def full(_fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("worker.network.keys.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        file.move(keys, 1)
    assert KeyFile(tmp_path).load() == keys
    assert [path.name for path in tmp_path.iterdir()] == ["wireguard.json"]


def test_a_node_that_leaves_has_no_keys(tmp_path):
    file = KeyFile(tmp_path)
    file.load()
    file.remove()
    file.remove()
    assert not list(tmp_path.iterdir())
