"""Devices: how they are written, and what is known of the nodes that have them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import InvalidArgument
from shoal.model.devices import check_devices, is_listed, missing, parse_device, spelled
from shoal.model.types import DeviceMapping, NodeDescription

NODE = NodeDescription(devices=("/dev/kvm", "/dev/snd/timer"), devices_known=True)


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("/dev/kvm", DeviceMapping("/dev/kvm")),
        ("/dev/kvm:r", DeviceMapping("/dev/kvm", "", "r")),
        ("/dev/kvm:/dev/v", DeviceMapping("/dev/kvm", "/dev/v")),
        ("/dev/kvm:/dev/v:rw", DeviceMapping("/dev/kvm", "/dev/v", "rw")),
    ],
)
def test_a_device_is_written_as_for_a_container(text, device):
    assert parse_device(text) == device
    assert parse_device(spelled(device)) in (device, device.replaced(container_path="/dev/kvm"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "must be an absolute path"),
        ("kvm", "must be an absolute path"),
        ("/dev/kvm:rx", "permissions 'rx' must be letters of rwm"),
        ("/dev/kvm:/dev/v:rr", "permissions 'rr'"),
        ("/dev/kvm:v:r", "device 'v': must be an absolute path"),
        ("/a:/b:r:w", "must be PATH"),
        ("/" + "a" * 255, "at most 255"),
        ("/dev/a\0", "must be an absolute path"),
    ],
)
def test_what_is_refused(text, reason):
    with pytest.raises(InvalidArgument, match="device") as refused:
        parse_device(text)
    assert reason in refused.value.message


def test_containers_get_a_bounded_number_each_at_a_place_of_its_own():
    with pytest.raises(InvalidArgument, match="two devices have the same path"):
        check_devices([DeviceMapping("/dev/a"), DeviceMapping("/dev/b", "/dev/a")])
    with pytest.raises(InvalidArgument, match="65 devices, at most 64"):
        check_devices([DeviceMapping(f"/dev/a{n}") for n in range(65)])


@pytest.mark.parametrize("name", ["kvm", "dri/card0", "nvidia0", "ttyS0", "ttyUSB0", "net/tun"])
def test_devices_worth_telling(name):
    assert is_listed(f"/dev/{name}")


@pytest.mark.parametrize(
    "name",
    ["", "loop0", "loop1p2", "tty", "tty12", "pts/3", "vcsa1", "disk/by-id/x", "dm-0", "fd", "core",
     "a/b/c/d/e"],
)  # fmt: skip
def test_families_that_come_and_go_are_left_out(name):
    assert not is_listed(f"/dev/{name}")


def test_paths_outside_of_dev_are_not_told():
    assert not is_listed("/srv/fifo")
    assert not is_listed("/dev")


def test_only_what_is_known_not_to_be_there_is_missing():
    def lacks(*paths, node=NODE):
        return missing(node, [DeviceMapping(path) for path in paths])

    assert lacks("/dev/kvm", "/dev/snd", "/dev//kvm", "/dev/snd/../kvm") == []
    assert lacks("/dev/loop7", "/srv/disk") == []  # nobody knows
    assert lacks("/dev/sn", "/dev/kvm0", "/dev/kvm/x") == ["/dev/sn", "/dev/kvm0", "/dev/kvm/x"]
    assert lacks("/dev/sn", node=NodeDescription()) == []


paths = st.lists(
    st.from_regex(r"/dev/[a-z]{1,4}(/[a-z]{1,4})?", fullmatch=True), max_size=8, unique=True
)


@given(paths, paths)
def test_a_node_that_has_a_device_never_lacks_it(have, more):
    node = NodeDescription(devices=tuple(sorted(have)), devices_known=True)
    assert missing(node, map(DeviceMapping, have)) == []
    lacking = missing(node, map(DeviceMapping, more))
    assert all(is_listed(path) and path not in have for path in lacking)
    grown = NodeDescription(devices=tuple(sorted({*have, *more})), devices_known=True)
    assert missing(grown, map(DeviceMapping, more)) == []
