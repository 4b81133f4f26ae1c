"""Every field of `HostConfig` is honoured or refused by name; none is accepted and ignored."""

from __future__ import annotations

from typing import Any

import pytest

from engine.containers import ground, mounts, networking, restart
from engine.containers.config import container_config, supposed_ground
from engine.containers.records import MountPoint
from engine.containers.requests import (
    DeviceMapping,
    DeviceRequest,
    EndpointConfig,
    HostConfig,
    HostPort,
    LogConfig,
    MountRequest,
    RestartPolicy,
    ThrottleDevice,
    UlimitRequest,
    WeightDevice,
    spelling,
)
from engine.containers.service import Containers
from shoal.errors import InvalidArgument, Unimplemented
from tests.unit.engine.containers.asking import record_of

_THROTTLE = [ThrottleDevice(path="/dev/sda", rate=1000)]
VALUES: dict[str, Any] = {
    "annotations": {"a": "b"},
    "binds": ["/srv:/data:ro"],
    "blkio_device_read_bps": _THROTTLE,
    "blkio_device_read_iops": _THROTTLE,
    "blkio_device_write_bps": _THROTTLE,
    "blkio_device_write_iops": _THROTTLE,
    "blkio_weight": 100,
    "blkio_weight_device": [WeightDevice(path="/dev/sda", weight=100)],
    "cap_add": ["NET_ADMIN"],
    "cap_drop": ["MKNOD"],
    "cgroup": "container:other",
    "cgroup_parent": "/parent",
    "cgroupns_mode": "host",
    "cpu_count": 1,
    "cpu_percent": 10,
    "cpu_period": 50_000,
    "cpu_quota": 50_000,
    "cpu_realtime_period": 1_000_000,
    "cpu_realtime_runtime": 500,
    "cpu_shares": 512,
    "cpuset_cpus": "0-1",
    "cpuset_mems": "0",
    "device_cgroup_rules": ["c 1:3 rwm"],
    "device_requests": [DeviceRequest(count=-1, capabilities=[["gpu"]])],
    "devices": [DeviceMapping(path_on_host="/dev/null", path_in_container="/dev/x")],
    "dns": ["192.0.2.53"],
    "dns_options": ["ndots:1"],
    "dns_search": ["example.com"],
    "extra_hosts": ["friend:192.0.2.1"],
    "group_add": ["5"],
    "init": True,
    "io_maximum_bandwidth": 1,
    "io_maximum_iops": 1,
    "ipc_mode": "host",
    "isolation": "hyperv",
    "kernel_memory": 10 << 20,
    "kernel_memory_tcp": 10 << 20,
    "links": ["other:alias"],
    "log_config": LogConfig(type="json-file", config={"max-size": "1m"}),
    "masked_paths": [],
    "memory": 64 << 20,
    "memory_reservation": 32 << 20,
    "memory_swap": -1,
    "memory_swappiness": 10,
    "mounts": [MountRequest(type="tmpfs", target="/t")],
    "nano_cpus": 500_000_000,
    "network_mode": "none",
    "oom_kill_disable": True,
    "oom_score_adj": 10,
    "pid_mode": "host",
    "pids_limit": 50,
    "port_bindings": {"80/tcp": [HostPort(host_port="8080")]},
    "privileged": True,
    "publish_all_ports": True,
    "readonly_paths": [],
    "readonly_rootfs": True,
    "restart_policy": RestartPolicy(name="always"),
    "runtime": "kata",
    "security_opt": ["no-new-privileges"],
    "shm_size": 1 << 20,
    "storage_opt": {"size": "1G"},
    "sysctls": {"net.core.somaxconn": "100"},
    "tmpfs": {"/t": "size=1m"},
    "ulimits": [UlimitRequest(name="nofile", soft=100, hard=200)],
    "userns_mode": "host",
    "uts_mode": "host",
    "volume_driver": "nfs",
    "volumes_from": ["other"],
}
"""One value of each field that asks for something."""

SHOWN_ONLY = {
    "container_id_file": "written by the client",
    "console_size": "the size of the client's terminal, which it sets again by `resize`",
    "auto_remove": "acted on at the end of the container; test_containers_life",
    "userns_mode": "`host` is what a node without --userns-remap always does",
}


class Linked:
    """A stand-in for the table of containers: one that runs."""

    def find(self, ref: str) -> Any:
        return type("Other", (), {"running": True, "id": "c" * 64, "name": ref})


def outcome(**fields: Any) -> object:
    """All that follows from a request: what the runtime, networks and mounts are asked for."""
    try:
        record = record_of(HostConfig(**fields), exposed_ports={"81/tcp": {}})
        config = container_config(record, supposed_ground(record, ("/layer",)))
    except (InvalidArgument, Unimplemented) as error:
        return str(error)
    containers: Containers = Linked()  # type: ignore[assignment]  # a Protocol would say one method
    nobody: Any = None
    grounds = ground.Grounds(containers, nobody, None, None, "", container_dir=str)
    again = restart.wanted(
        record.host.restart_policy, exit_code=1, restarts=0, manually_stopped=False
    )
    main = networking.network_of(record.host.network_mode)
    return (
        config,
        record.mounts,
        tuple(record.networks),
        networking.port_bindings(record.config, record.host),
        grounds._links(record, main, record.networks.get(main) or EndpointConfig()),
        again,
    )


def test_the_table_has_every_field():
    assert set(VALUES) | set(SHOWN_ONLY) == set(HostConfig.__struct_fields__)


@pytest.mark.parametrize(
    "field", sorted(set(VALUES) - set(SHOWN_ONLY) - {"volumes_from", "runtime"})
)
def test_a_wish_changes_what_follows_or_is_refused(field: str):
    found = outcome(**{field: VALUES[field]})
    assert found != outcome()
    if isinstance(found, str):  # it says which field
        words = {field, spelling(field), field.replace("_", " "), _WORDS.get(field, field)}
        assert any(word.lower() in found.lower() for word in words), found


_WORDS = {
    "device_requests": "could not select device driver",
    "nano_cpus": "Nano CPUs",
    "runtime": "unknown or invalid runtime name: kata",
    "dns": "dns_servers",
    "ulimits": "ulimit",
    "log_config": "log",
    "memory_swap": "memory_swap_bytes",
    "cpu_period": "cpu_period_us",
    "cpu_realtime_period": "cpu_rt_period_us",
    "cpu_realtime_runtime": "cpu_rt_runtime_us",
    "readonly_paths": "read_only_paths",
    "cgroupns_mode": "cgroup_mode",
    "blkio_weight_device": "throttled_devices",
    "blkio_device_read_bps": "throttled_devices",
    "blkio_device_write_bps": "throttled_devices",
    "blkio_device_read_iops": "throttled_devices",
    "blkio_device_write_iops": "throttled_devices",
    "device_cgroup_rules": "device_rules",
    "tmpfs": "tmpfs_options",
}
"""How the refusal of a field names it, where that is not its own name."""


def test_an_unknown_runtime_is_refused():
    with pytest.raises(InvalidArgument, match="unknown or invalid runtime name: kata"):
        record_of(HostConfig(runtime="kata"))


def test_volumes_of_another_container_are_taken_over():
    theirs = (
        MountPoint("volume", "/data", name="v1", anonymous=True),
        MountPoint("tmpfs", "/t"),
        MountPoint("bind", "/b", source="/srv", read_only=True),
    )
    host = HostConfig(volumes_from=["other:ro"])
    planned = mounts.plan(record_of().config, host, lambda ref: theirs)
    assert [(one.target, one.read_only, one.anonymous) for one in planned] == [
        ("/data", True, False), ("/b", True, False),
    ]  # fmt: skip
