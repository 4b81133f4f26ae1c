"""The node's devices: the list of them, and those behind generic resources."""

from __future__ import annotations

import os
import stat

import pytest

from shoal.errors import InvalidArgument
from shoal.model.devices import LISTED_MAX
from shoal.model.types import DeviceMapping, GenericResource
from worker.agent.devices import DeviceList, list_devices, ordered, read_pool

UUID1 = GenericResource(kind="gpu", named_value="UUID1")


def test_devices_come_with_the_piece_and_with_every_piece_of_the_kind():
    pool = read_pool(
        ["gpu=UUID1,gpu=UUID2", "apple=5"],
        ["gpu=UUID1,/dev/nvidia0", "gpu=UUID2,/dev/nvidia1:/dev/n:r", "gpu,/dev/nvidiactl"],
    )
    assert pool.devices_of([UUID1]) == (
        DeviceMapping("/dev/nvidiactl"),
        DeviceMapping("/dev/nvidia0"),
    )
    assert len(pool.devices_of(pool.resources)) == 3
    assert pool.devices_of([GenericResource(kind="apple", count=1)]) == ()


def test_a_count_has_devices_for_whoever_gets_of_it():
    pool = read_pool(["kvm=2"], ["kvm,/dev/kvm"])
    given = GenericResource(kind="kvm", count=1)
    assert pool.devices_of([given]) == (DeviceMapping("/dev/kvm"),)


@pytest.mark.parametrize(
    ("devices", "reason"),
    [
        (["gpu"], "write KIND"),
        (["gpu,kvm"], "must be an absolute path"),
        (["gpu=UUID3,/dev/a"], "the node has no generic resource 'gpu=UUID3'"),
        (["kvm,/dev/kvm"], "the node has no generic resource 'kvm'"),
        (["gpu,/dev/a", "gpu,/dev/b"], "once for each"),
        (["gpu,/dev/a", "gpu=UUID1,/dev/b:/dev/a"], "two devices have the same path"),
    ],
)
def test_what_is_refused(devices, reason):
    with pytest.raises(InvalidArgument, match="device") as refused:
        read_pool(["gpu=UUID1"], devices)
    assert reason in refused.value.message


def test_the_service_s_own_device_is_there_where_two_want_the_same_place():
    own = DeviceMapping("/dev/b", "/dev/a")
    assert ordered([DeviceMapping("/dev/a")], [own]) == (own,)


def test_this_machine_s_devices():
    found = list_devices()
    assert found.complete
    assert {"/dev/null", "/dev/zero"} <= set(found.paths)
    assert list(found.paths) == sorted(found.paths)
    modes = [os.stat(path).st_mode for path in found.paths]
    assert all(stat.S_ISCHR(mode) or stat.S_ISBLK(mode) for mode in modes)


def test_links_to_devices_are_told_and_files_are_not(tmp_path):
    (tmp_path / "dri").mkdir()
    (tmp_path / "dri" / "card0").symlink_to("/dev/null")
    (tmp_path / "loop0").symlink_to("/dev/null")
    (tmp_path / "gone").symlink_to("/dev/nothing-of-that-name")
    (tmp_path / "file").touch()
    assert list_devices(str(tmp_path)) == DeviceList(("/dev/dri/card0",), complete=True)


def test_a_node_with_too_many_tells_of_none(tmp_path):
    for number in range(LISTED_MAX + 1):
        (tmp_path / f"x{number}").symlink_to("/dev/null")
    assert list_devices(str(tmp_path)) == DeviceList()
    (tmp_path / "x0").unlink()
    assert len(list_devices(str(tmp_path)).paths) == LISTED_MAX
