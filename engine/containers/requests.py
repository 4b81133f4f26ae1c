"""What clients ask of containers, in Docker's spelling; records and `inspect` use the same kinds.

Frozen and pure. `None` and an empty list differ only in what is shown: both mean "nothing asked".
Unknown keys are passed over, as Docker does; what each known field does is decided in `config`.
"""

from __future__ import annotations

from typing import Any

import msgspec

_SPELLINGS = {
    "container_id_file": "ContainerIDFile",
    "uts_mode": "UTSMode",
    "blkio_device_read_iops": "BlkioDeviceReadIOps",
    "blkio_device_write_iops": "BlkioDeviceWriteIOps",
    "io_maximum_iops": "IOMaximumIOps",
    "io_maximum_bandwidth": "IOMaximumBandwidth",
    "kernel_memory_tcp": "KernelMemoryTCP",
    "ipam_config": "IPAMConfig",
    "ipv4_address": "IPv4Address",
    "ipv6_address": "IPv6Address",
    "link_local_ips": "LinkLocalIPs",
    "device_ids": "DeviceIDs",
}


def spelling(name: str) -> str:
    """Docker's spelling of a field's name."""
    return _SPELLINGS.get(name) or "".join(part[:1].upper() + part[1:] for part in name.split("_"))


class Docker(msgspec.Struct, frozen=True, kw_only=True, rename=spelling):
    """A value in Docker's spelling."""

    def replaced(self, **changes: object) -> Any:
        """A copy with some fields replaced."""
        return msgspec.structs.replace(self, **changes)


class HealthConfig(Docker, frozen=True, kw_only=True, omit_defaults=True):
    """How to ask a container for its health; times in nanoseconds, 0: the image's or default."""

    test: list[str] | None = None
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


class Config(Docker, frozen=True, kw_only=True):
    """What would be the same on any node."""

    hostname: str = ""
    domainname: str = ""
    user: str = ""
    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    exposed_ports: dict[str, dict[str, Any]] | None = None
    tty: bool = False
    open_stdin: bool = False
    stdin_once: bool = False
    env: list[str] | None = None
    cmd: list[str] | str | None = None
    healthcheck: HealthConfig | None = None
    args_escaped: bool = False
    image: str = ""
    volumes: dict[str, dict[str, Any]] | None = None
    working_dir: str = ""
    entrypoint: list[str] | str | None = None
    network_disabled: bool = False
    mac_address: str = ""
    on_build: list[str] | None = None
    labels: dict[str, str] | None = None
    stop_signal: str = ""
    stop_timeout: int | None = None
    shell: list[str] | None = None


class LogConfig(Docker, frozen=True, kw_only=True):
    """Log driver and its options."""

    type: str = ""
    config: dict[str, str] | None = None


class RestartPolicy(Docker, frozen=True, kw_only=True):
    """When a container that has ended is started again."""

    name: str = ""
    maximum_retry_count: int = 0


class HostPort(Docker, frozen=True, kw_only=True):
    """Where a port is published."""

    host_ip: str = ""
    host_port: str = ""


class WeightDevice(Docker, frozen=True, kw_only=True):
    """Block I/O weight of one device."""

    path: str = ""
    weight: int = 0


class ThrottleDevice(Docker, frozen=True, kw_only=True):
    """Block I/O limit of one device."""

    path: str = ""
    rate: int = 0


class DeviceMapping(Docker, frozen=True, kw_only=True):
    """A device of the host to show inside."""

    path_on_host: str = ""
    path_in_container: str = ""
    cgroup_permissions: str = ""


class DeviceRequest(Docker, frozen=True, kw_only=True):
    """A device a driver is to choose: `--gpus`."""

    driver: str = ""
    count: int = 0
    device_ids: list[str] | None = None
    capabilities: list[list[str]] | None = None
    options: dict[str, str] | None = None


class UlimitRequest(Docker, frozen=True, kw_only=True):
    """One resource limit."""

    name: str = ""
    hard: int = 0
    soft: int = 0


class BindOptions(Docker, frozen=True, kw_only=True, omit_defaults=True):
    """Of `--mount type=bind`."""

    propagation: str = ""
    non_recursive: bool = False
    create_mountpoint: bool = False
    read_only_non_recursive: bool = False
    read_only_force_recursive: bool = False


class DriverConfig(Docker, frozen=True, kw_only=True, omit_defaults=True):
    """The volume driver of a `--mount`."""

    name: str = ""
    options: dict[str, str] | None = None


class VolumeOptions(Docker, frozen=True, kw_only=True, omit_defaults=True):
    """Of `--mount type=volume`."""

    no_copy: bool = False
    labels: dict[str, str] | None = None
    subpath: str = ""
    driver_config: DriverConfig | None = None


class TmpfsOptions(Docker, frozen=True, kw_only=True, omit_defaults=True):
    """Of `--mount type=tmpfs`."""

    size_bytes: int = 0
    mode: int = 0
    options: list[list[str]] | None = None


class MountRequest(Docker, frozen=True, kw_only=True, omit_defaults=True):
    """One `--mount`."""

    type: str = ""
    source: str = ""
    target: str = ""
    read_only: bool = False
    consistency: str = ""
    bind_options: BindOptions | None = None
    volume_options: VolumeOptions | None = None
    tmpfs_options: TmpfsOptions | None = None


class Resources(Docker, frozen=True, kw_only=True):
    """Limits; 0, empty and null: none. `update` sends the same fields."""

    cpu_shares: int = 0
    memory: int = 0
    nano_cpus: int = 0
    cgroup_parent: str = ""
    blkio_weight: int = 0
    blkio_weight_device: list[WeightDevice] | None = None
    blkio_device_read_bps: list[ThrottleDevice] | None = None
    blkio_device_write_bps: list[ThrottleDevice] | None = None
    blkio_device_read_iops: list[ThrottleDevice] | None = None
    blkio_device_write_iops: list[ThrottleDevice] | None = None
    cpu_period: int = 0
    cpu_quota: int = 0
    cpu_realtime_period: int = 0
    cpu_realtime_runtime: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    devices: list[DeviceMapping] | None = None
    device_cgroup_rules: list[str] | None = None
    device_requests: list[DeviceRequest] | None = None
    kernel_memory: int = 0
    kernel_memory_tcp: int = 0
    memory_reservation: int = 0
    memory_swap: int = 0
    memory_swappiness: int | None = None
    oom_kill_disable: bool | None = None
    pids_limit: int | None = None
    ulimits: list[UlimitRequest] | None = None
    cpu_count: int = 0
    cpu_percent: int = 0
    io_maximum_iops: int = 0
    io_maximum_bandwidth: int = 0


class HostConfig(Resources, frozen=True, kw_only=True):
    """What belongs to this node."""

    binds: list[str] | None = None
    container_id_file: str = ""
    log_config: LogConfig = LogConfig()
    network_mode: str = ""
    port_bindings: dict[str, list[HostPort] | None] | None = None
    restart_policy: RestartPolicy = RestartPolicy()
    auto_remove: bool = False
    volume_driver: str = ""
    volumes_from: list[str] | None = None
    console_size: list[int] | None = None
    annotations: dict[str, str] | None = None
    cap_add: list[str] | None = None
    cap_drop: list[str] | None = None
    cgroupns_mode: str = ""
    dns: list[str] | None = None
    dns_options: list[str] | None = None
    dns_search: list[str] | None = None
    extra_hosts: list[str] | None = None
    group_add: list[str] | None = None
    ipc_mode: str = ""
    cgroup: str = ""
    links: list[str] | None = None
    oom_score_adj: int = 0
    pid_mode: str = ""
    privileged: bool = False
    publish_all_ports: bool = False
    readonly_rootfs: bool = False
    security_opt: list[str] | None = None
    storage_opt: dict[str, str] | None = None
    tmpfs: dict[str, str] | None = None
    uts_mode: str = ""
    userns_mode: str = ""
    shm_size: int = 0
    sysctls: dict[str, str] | None = None
    runtime: str = ""
    isolation: str = ""
    mounts: list[MountRequest] | None = None
    masked_paths: list[str] | None = None
    readonly_paths: list[str] | None = None
    init: bool | None = None


class IpamConfig(Docker, frozen=True, kw_only=True, omit_defaults=True):
    """Addresses a container wishes in a network."""

    ipv4_address: str = ""
    ipv6_address: str = ""
    link_local_ips: list[str] | None = None


class EndpointConfig(Docker, frozen=True, kw_only=True):
    """How a container is to be part of one network."""

    ipam_config: IpamConfig | None = None
    links: list[str] | None = None
    aliases: list[str] | None = None
    mac_address: str = ""
    driver_opts: dict[str, str] | None = None
    gw_priority: int = 0


class NetworkingConfig(Docker, frozen=True, kw_only=True):
    """Networks by name or id."""

    endpoints_config: dict[str, EndpointConfig | None] | None = None


class CreateRequest(Config, frozen=True, kw_only=True):
    """`POST /containers/create`: a `Config` with two more keys."""

    host_config: HostConfig = HostConfig()
    networking_config: NetworkingConfig = NetworkingConfig()

    def config(self) -> Config:
        """The part that would be the same on any node."""
        return Config(**{name: getattr(self, name) for name in Config.__struct_fields__})


class UpdateRequest(Resources, frozen=True, kw_only=True):
    """`POST /containers/{id}/update`."""

    restart_policy: RestartPolicy = RestartPolicy()
