"""`docker inspect` of a container, in Docker's words. Pure.

Shapes follow what clients have seen for years: which list is null and which is empty, which key is
left out. `conformance` compares them with recordings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from engine.containers.container import Container
from engine.containers.defaults import LOG_DRIVER
from engine.containers.networking import parse_port
from engine.containers.records import MountPoint, Record
from engine.containers.requests import EndpointConfig, Resources, spelling
from engine.http.versions import ApiVersion
from shoal.clock import NS_PER_S
from worker.network.local.api import BRIDGE, HOST, NONE, Endpoint, PortBinding
from worker.runtime.bundle import MASKED_PATHS, READONLY_PATHS
from worker.runtime.interactive import Confinement

NO_TIME = "0001-01-01T00:00:00Z"
_DNS_NAMES_SINCE = ApiVersion(1, 44)
_NO_SHORT_ID_SINCE = ApiVersion(1, 45)
_CONFIG_LEFT_OUT = (
    "ExposedPorts", "Healthcheck", "ArgsEscaped", "NetworkDisabled", "MacAddress", "StopSignal",
    "StopTimeout", "Shell",
)  # fmt: skip
_HOST_LEFT_OUT = ("Annotations", "Tmpfs", "Sysctls", "StorageOpt", "Mounts", "Init")
_LIMITS = tuple(spelling(name) for name in Resources.__struct_fields__)
_LAST_KEYS = dict.fromkeys(("Mounts", "MaskedPaths", "ReadonlyPaths", "Init"))
_EMPTY_LISTS = (
    "BlkioWeightDevice", "BlkioDeviceReadBps", "BlkioDeviceWriteBps", "BlkioDeviceReadIOps",
    "BlkioDeviceWriteIOps", "Devices", "Dns", "DnsOptions", "DnsSearch", "Ulimits",
)  # fmt: skip


def time_text(moment_ns: int) -> str:
    """RFC 3339 with nanoseconds, as Go prints it; 0: the year 1."""
    if not moment_ns:
        return NO_TIME
    seconds, rest_ns = divmod(moment_ns, NS_PER_S)
    fraction = f".{rest_ns:09d}".rstrip("0").rstrip(".")
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}{fraction}Z"


def worded(
    container: Container,
    directory: str,
    network_ids: Mapping[str, str],
    version: ApiVersion,
    confinement: Confinement,
) -> dict[str, Any]:
    """Everything. directory: where the runtime keeps it. network_ids: by name."""
    record = container.record
    return {
        "Id": record.id,
        "Created": time_text(record.created_at_ns),
        "Path": record.path,
        "Args": record.args,
        "State": state(container),
        "Image": record.image_id,
        "ResolvConfPath": f"{directory}/resolv.conf",
        "HostnamePath": f"{directory}/hostname",
        "HostsPath": f"{directory}/hosts",
        "LogPath": _log_path(record, directory),
        "Name": f"/{record.name}",
        "RestartCount": record.restart_count,
        "Driver": "overlay2",
        "Platform": "linux",
        "MountLabel": confinement.mount_label,
        "ProcessLabel": confinement.process_label,
        "AppArmorProfile": confinement.apparmor_profile,
        "ExecIDs": container.exec_ids or None,
        "HostConfig": host_config(record),
        "GraphDriver": {"Data": _graph(directory), "Name": "overlay2"},
        "Mounts": [mount(point) for point in record.mounts],
        "Config": config(record),
        "NetworkSettings": network_settings(record, network_ids, version),
    }


def state(container: Container) -> dict[str, Any]:
    """What it is doing."""
    status, word = container.status, container.state
    started_ns = status.started_at_ns if status and container.has_run else 0
    words: dict[str, Any] = {
        "Status": word,
        "Running": word in {"running", "paused", "restarting"},
        "Paused": word == "paused",
        "Restarting": word == "restarting",
        "OOMKilled": bool(status and status.oom_killed),
        "Dead": word == "dead",
        "Pid": status.pid if status and container.has_process else 0,
        "ExitCode": 0 if container.has_process else container.exit_code,
        "Error": container.record.failure or _end_reason(container),
        "StartedAt": time_text(started_ns),
        "FinishedAt": time_text(status.finished_at_ns if status and started_ns else 0),
    }
    health = container.health
    if health is not None:
        words["Health"] = {
            "Status": health.status,
            "FailingStreak": health.failing_streak,
            "Log": [
                {
                    "Start": time_text(probe.started_at_ns),
                    "End": time_text(probe.ended_at_ns),
                    "ExitCode": probe.exit_code,
                    "Output": probe.output,
                }
                for probe in health.log
            ],
        }
    return words


def config(record: Record) -> dict[str, Any]:
    """`Config`, without the keys Docker leaves out when they say nothing."""
    words: dict[str, Any] = msgspec.to_builtins(record.config)
    words["Labels"] = words["Labels"] or {}
    words["Env"] = words["Env"] or []
    return _without_empty(words, _CONFIG_LEFT_OUT)


def host_config(record: Record) -> dict[str, Any]:
    """`HostConfig`, with what Docker shows for what nobody asked for."""
    words: dict[str, Any] = msgspec.to_builtins(record.host)
    for key in _EMPTY_LISTS:
        words[key] = words[key] or []
    words["PortBindings"] = words["PortBindings"] or {}
    unmasked = record.host.privileged
    if words["MaskedPaths"] is None and not unmasked:
        words["MaskedPaths"] = MASKED_PATHS
    if words["ReadonlyPaths"] is None and not unmasked:
        words["ReadonlyPaths"] = READONLY_PATHS
    limits = {key: words[key] for key in _LIMITS}
    first = {
        key: value for key, value in words.items() if key not in limits and key not in _LAST_KEYS
    }
    ordered = {**first, **limits, **{key: words[key] for key in _LAST_KEYS}}
    return _without_empty(ordered, _HOST_LEFT_OUT)


def mount(point: MountPoint) -> dict[str, Any]:
    """One entry of `Mounts`."""
    words: dict[str, Any] = {"Type": point.kind}
    if point.kind == "volume":
        words["Name"] = point.name
    words |= {"Source": point.source, "Destination": point.target}
    if point.kind == "volume":
        words["Driver"] = point.driver or "local"
    return words | {
        "Mode": "" if point.kind == "tmpfs" else point.mode or ("z" * (point.kind == "volume")),
        "RW": not point.read_only,
        "Propagation": (point.propagation or "rprivate") if point.kind == "bind" else "",
    }


def network_settings(
    record: Record, network_ids: Mapping[str, str], version: ApiVersion
) -> dict[str, Any]:
    """Addresses and ports; those of the default bridge stand on top, too."""
    sandbox = record.sandbox
    top = _find_endpoint(record, BRIDGE)
    key = sandbox.netns_path if sandbox else ""
    return {
        "Bridge": "",
        "SandboxID": record.id if sandbox else "",
        "HairpinMode": False,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "Ports": ports(record),
        "SandboxKey": key,
        "SecondaryIPAddresses": None,
        "SecondaryIPv6Addresses": None,
        **{name: value for name, value in _addresses(top).items() if name != "NetworkID"},
        "Networks": networks(record, network_ids, version),
    }


def networks(record: Record, network_ids: Mapping[str, str], version: ApiVersion) -> dict[str, Any]:
    """Each network the container is in, by name."""
    found = {}
    for name, wish in record.networks.items():
        endpoint = _find_endpoint(record, name)
        addresses = _addresses(endpoint)
        addresses["NetworkID"] = addresses["NetworkID"] or network_ids.get(name, "")
        found[name] = _endpoint_words(record, name, wish, version) | addresses
        found[name]["DriverOpts"] = wish.driver_opts
        if version >= _DNS_NAMES_SINCE:
            found[name]["DNSNames"] = _dns_names(record, name, wish)
    return found


def ports(record: Record) -> dict[str, Any]:
    """Where each port is reached; null for one that is only exposed."""
    if record.sandbox is None:
        return {}
    found: dict[str, Any] = dict.fromkeys(record.config.exposed_ports or (), None)
    for binding in record.sandbox.ports:
        key = f"{binding.container_port}/{binding.protocol}"
        places = found.get(key) or []
        places += [
            {"HostIp": address, "HostPort": str(binding.host_port)}
            for address in host_addresses(binding)
        ]
        found[key] = places
    return found


def host_addresses(binding: PortBinding) -> list[str]:
    """An address for every family a port is published on."""
    return [binding.host_address or "0.0.0.0"]  # noqa: S104 - shown, not bound


def port_list(record: Record) -> list[dict[str, Any]]:
    """`Ports` of `docker ps`."""
    if record.sandbox is None:
        return []
    found: list[dict[str, Any]] = []
    for key, places in ports(record).items():
        port, protocol = parse_port(key)
        bare = {"PrivatePort": port, "Type": protocol}
        found += [
            {"IP": place["HostIp"], **bare, "PublicPort": int(place["HostPort"])}
            for place in places or ()
        ] or [bare]
    return found


def _endpoint_words(
    record: Record, name: str, wish: EndpointConfig, version: ApiVersion
) -> dict[str, Any]:
    aliases = [*(wish.aliases or ())]
    if name not in {BRIDGE, HOST, NONE} and version < _NO_SHORT_ID_SINCE:
        aliases.append(record.id[:12])
    return {
        "IPAMConfig": None if wish.ipam_config is None else msgspec.to_builtins(wish.ipam_config),
        "Links": wish.links or None,
        "Aliases": aliases or None,
    }


def _dns_names(record: Record, name: str, wish: EndpointConfig) -> list[str] | None:
    if name in {BRIDGE, HOST, NONE}:
        return None
    names = (record.name, *(wish.aliases or ()), record.id[:12], record.config.hostname)
    return list(dict.fromkeys(filter(None, names)))


def _find_endpoint(record: Record, network: str) -> Endpoint | None:
    endpoints: Iterable[Endpoint] = record.sandbox.endpoints if record.sandbox else ()
    return next((one for one in endpoints if network in {one.network_name, one.network_id}), None)


def _addresses(endpoint: Endpoint | None) -> dict[str, Any]:
    if endpoint is None:
        return {
            "NetworkID": "", "EndpointID": "", "Gateway": "", "IPAddress": "", "IPPrefixLen": 0,
            "IPv6Gateway": "", "GlobalIPv6Address": "", "GlobalIPv6PrefixLen": 0, "MacAddress": "",
        }  # fmt: skip
    return {
        "NetworkID": endpoint.network_id,
        "EndpointID": endpoint.id,
        "Gateway": endpoint.gateway,
        "IPAddress": endpoint.ipv4_address,
        "IPPrefixLen": endpoint.ipv4_prefix,
        "IPv6Gateway": endpoint.ipv6_gateway,
        "GlobalIPv6Address": endpoint.ipv6_address,
        "GlobalIPv6PrefixLen": endpoint.ipv6_prefix,
        "MacAddress": endpoint.mac_address,
    }


def _graph(directory: str) -> dict[str, str]:
    return {
        "MergedDir": f"{directory}/rootfs",
        "UpperDir": f"{directory}/upper",
        "WorkDir": f"{directory}/work",
    }


def _log_path(record: Record, directory: str) -> str:
    return f"{directory}/logs" if record.host.log_config.type == LOG_DRIVER else ""


def _end_reason(container: Container) -> str:
    status = container.status
    return "" if status is None or container.has_process else status.error


def _without_empty(words: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    for name in names:
        value = words[name]
        if value in (None, "", {}, []) or (value is False and name != "Init"):
            del words[name]
    return words
