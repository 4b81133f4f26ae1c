"""`/version` and `/info` in Docker's words, from what the node is. Pure.

A field about something this node does not have says so (false, 0, empty); none repeats what dockerd
would say of itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.facts.machine import Machine
from engine.http.versions import NEWEST, OLDEST
from engine.ports import Census
from shoal.docker.specs import generic_json
from shoal.model.row import Row
from shoal.model.types import GenericResource
from worker.images.registry.api import RegistrySettings

INDEX_SERVER = "https://index.docker.io/v1/"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


class Program(Row, frozen=True):
    """Another program the engine works with, and its version."""

    name: str
    version: str


class Offer(Row, frozen=True):
    """What parts of the engine can do, for `/info`."""

    volume_drivers: tuple[str, ...] = ()
    network_drivers: tuple[str, ...] = ()
    log_drivers: tuple[str, ...] = ("json-file",)
    runtimes: Mapping[str, str] = {}
    """Path by name; the native one has none."""
    default_runtime: str = "native"
    init_binary: str = ""
    registries: RegistrySettings = RegistrySettings()
    userns: bool = False
    """Whether containers get user namespaces of their own."""
    selinux: bool = False
    """Whether they get SELinux labels."""
    generic: tuple[GenericResource, ...] = ()
    """What its operator says that the node has."""


class Now(Row, frozen=True):
    """What changes from call to call."""

    time: str
    census: Census
    images: int
    descriptors: int
    tasks: int
    swarm: Mapping[str, Any]
    """What the node is to its cluster."""
    event_readers: int
    ip_forwarding: bool
    bridge_nf_iptables: bool
    bridge_nf_ip6tables: bool
    apparmor: bool = False
    """Whether containers are confined by it."""
    further_warnings: tuple[str, ...] = ()
    environment: Mapping[str, str] = {}


class Node(Row, frozen=True):
    """What stays the same: the node's names, its machine, its programs."""

    id: str
    hostname: str
    version: str
    state_dir: str
    machine: Machine
    programs: tuple[Program, ...] = ()
    debug: bool = False


def version(node: Node) -> dict[str, Any]:
    """`GET /version`."""
    architecture = go_architecture(node.machine.architecture)
    details = {
        "ApiVersion": str(NEWEST),
        "Arch": architecture,
        "BuildTime": "",
        "Experimental": "false",
        "GitCommit": "",
        "GoVersion": "",
        "KernelVersion": node.machine.kernel_version,
        "MinAPIVersion": str(OLDEST),
        "Os": "linux",
    }
    return {
        "Platform": {"Name": "Shoal"},
        "Components": [
            {"Name": "Engine", "Version": node.version, "Details": details},
            *({"Name": one.name, "Version": one.version, "Details": {}} for one in node.programs),
        ],
        "Version": node.version,
        "ApiVersion": str(NEWEST),
        "MinAPIVersion": str(OLDEST),
        "GitCommit": "",
        "GoVersion": "",
        "Os": "linux",
        "Arch": architecture,
        "KernelVersion": node.machine.kernel_version,
        "BuildTime": "",
    }


def info(node: Node, offer: Offer, now: Now) -> dict[str, Any]:
    """`GET /info`."""
    machine, cgroups, census = node.machine, node.machine.cgroups, now.census
    return {
        "ID": node.id,
        "Containers": census.running + census.paused + census.stopped,
        "ContainersRunning": census.running,
        "ContainersPaused": census.paused,
        "ContainersStopped": census.stopped,
        "Images": now.images,
        "Driver": "overlay2",
        "DriverStatus": [["Backing Filesystem", machine.filesystem], ["Supports d_type", "true"]],
        "Plugins": {
            "Volume": offer.volume_drivers,
            "Network": offer.network_drivers,
            "Authorization": None,
            "Log": offer.log_drivers,
        },
        "MemoryLimit": cgroups.memory_limit,
        "SwapLimit": cgroups.swap_limit,
        "CpuCfsPeriod": cgroups.cpu_cfs_period,
        "CpuCfsQuota": cgroups.cpu_cfs_quota,
        "CPUShares": cgroups.cpu_shares,
        "CPUSet": cgroups.cpu_set,
        "PidsLimit": cgroups.pids_limit,
        "IPv4Forwarding": now.ip_forwarding,
        "BridgeNfIptables": now.bridge_nf_iptables,
        "BridgeNfIp6tables": now.bridge_nf_ip6tables,
        "Debug": node.debug,
        "NFd": now.descriptors,
        "OomKillDisable": cgroups.oom_kill_disable,
        "NGoroutines": now.tasks,
        "SystemTime": now.time,
        "LoggingDriver": "json-file",
        "CgroupDriver": "cgroupfs",
        "CgroupVersion": str(cgroups.version),
        "NEventsListener": now.event_readers,
        "KernelVersion": machine.kernel_version,
        "OperatingSystem": machine.operating_system,
        "OSVersion": machine.os_version,
        "OSType": "linux",
        "Architecture": machine.architecture,
        "IndexServerAddress": INDEX_SERVER,
        "RegistryConfig": _registries(offer.registries),
        "NCPU": machine.cpus,
        "MemTotal": machine.memory_bytes,
        "GenericResources": generic_json(offer.generic) or None,
        "DockerRootDir": node.state_dir,
        "HttpProxy": _proxy(now.environment, "http_proxy"),
        "HttpsProxy": _proxy(now.environment, "https_proxy"),
        "NoProxy": _proxy(now.environment, "no_proxy"),
        "Name": node.hostname,
        "Labels": [],
        "ExperimentalBuild": False,
        "ServerVersion": node.version,
        "Runtimes": {name: {"path": path} for name, path in offer.runtimes.items()},
        "DefaultRuntime": offer.default_runtime,
        "Swarm": now.swarm,
        "LiveRestoreEnabled": True,
        "Isolation": "",
        "InitBinary": offer.init_binary,
        "ContainerdCommit": {"ID": "", "Expected": ""},
        "RuncCommit": {"ID": "", "Expected": ""},
        "InitCommit": {"ID": "", "Expected": ""},
        "SecurityOptions": _security(machine, offer, now),
        "Warnings": _warnings(machine, now) or None,
    }


def go_architecture(machine: str) -> str:
    """`uname -m` in the words images are named with."""
    return _ARCHITECTURES.get(machine, machine)


def _registries(settings: RegistrySettings) -> dict[str, Any]:
    subnets = [one for one in settings.insecure if "/" in one]
    hosts = [one for one in settings.insecure if "/" not in one]
    official = {
        "Name": "docker.io", "Mirrors": settings.mirrors, "Secure": True, "Official": True,
    }  # fmt: skip
    others = {
        host: {"Name": host, "Mirrors": [], "Secure": False, "Official": False} for host in hosts
    }
    return {
        "AllowNondistributableArtifactsCIDRs": [],
        "AllowNondistributableArtifactsHostnames": [],
        "InsecureRegistryCIDRs": subnets,
        "IndexConfigs": {"docker.io": official, **others},
        "Mirrors": settings.mirrors,
    }


def _security(machine: Machine, offer: Offer, now: Now) -> Sequence[str]:
    options = ["name=apparmor"] if now.apparmor else []
    if machine.seccomp:
        options.append("name=seccomp,profile=builtin")
    if offer.selinux:
        options.append("name=selinux")
    if offer.userns:
        options.append("name=userns")
    return [*options, "name=cgroupns"]


def _warnings(machine: Machine, now: Now) -> list[str]:
    cgroups = machine.cgroups
    missing = {
        "No memory limit support": cgroups.memory_limit,
        "No swap limit support": cgroups.swap_limit,
        "No oom kill disable support": cgroups.oom_kill_disable or cgroups.version == 2,
        "No cpu cfs quota support": cgroups.cpu_cfs_quota,
        "No cpu cfs period support": cgroups.cpu_cfs_period,
        "No cpu shares support": cgroups.cpu_shares,
        "No cpuset support": cgroups.cpu_set,
        "No pids limit support": cgroups.pids_limit,
        "IPv4 forwarding is disabled": now.ip_forwarding,
    }
    texts = [text for text, there in missing.items() if not there]
    return [f"WARNING: {text}" for text in (*texts, *now.further_warnings)]


def _proxy(environment: Mapping[str, str], name: str) -> str:
    return environment.get(name) or environment.get(name.upper(), "")
