"""From a task and its image to the container's configuration: pure, and the one place for it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shoal.errors import InvalidArgument, Unimplemented
from shoal.model import defaults, log_drivers
from shoal.model.devices import ALL, inside
from shoal.model.enums import MountPropagation, MountRecursive, MountType
from shoal.model.generic import environment
from shoal.model.objects import Task
from shoal.model.privileges import APPARMOR_MODES, SECCOMP_MODES
from shoal.model.specs import ContainerSpec
from shoal.model.types import DeviceMapping, DnsConfig, Driver, Privileges
from shoal.model.types import Mount as SpecMount
from worker.agent.devices import ordered
from worker.agent.health import HEALTH_LABEL, label_of
from worker.agent.templates import NodeFacts, expand
from worker.health.core import check_of, over_image
from worker.images.model import Image, ImageConfig
from worker.logs import drivers
from worker.logs.api import LogDriver, LogSubject
from worker.network.api import Attachment
from worker.network.local.ruleset import NAMES_ADDRESS
from worker.runtime.api import (
    LOG_FILES_DEFAULT,
    LOG_SIZE_BYTES_DEFAULT,
    ContainerConfig,
    Device,
    Mount,
    Ulimit,
)
from worker.volumes.api import Volume

IMAGE_ID_LABEL = "dev.shoal.image-id"
"""The image a container was made from, whatever its name stands for later."""
TASK_ID_LABEL = "com.docker.swarm.task.id"
VOLUMES_LABEL = "dev.shoal.volumes"
"""Names of the volumes that a task's container uses, between blanks."""

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([kmgt]?)(?:i?b)?", re.IGNORECASE)
_SIZE_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
LOG_SIZE_BYTES_MIN = 4096
LOG_SIZE_BYTES_MAX = 1 << 40
UNCONFINED = "unconfined"
_TASK_NAME_LABEL = "com.docker.swarm.task.name"
_PROPAGATION = {
    MountPropagation.RPRIVATE: "rprivate",
    MountPropagation.PRIVATE: "private",
    MountPropagation.RSHARED: "rshared",
    MountPropagation.SHARED: "shared",
    MountPropagation.RSLAVE: "rslave",
    MountPropagation.SLAVE: "slave",
}


def container_config(
    task: Task,
    image: Image,
    layers: Sequence[str],
    attachment: Attachment | None,
    node: NodeFacts,
    *,
    volumes: Mapping[str, Volume],
    file_mounts: Sequence[Mount] = (),
    devices: Sequence[DeviceMapping] = (),
) -> ContainerConfig:
    """The container of a task.

    layers: lower directories of the image, topmost first. attachment: None for a namespace of its
    own without a link. volumes: the task's, by their mounts' targets. file_mounts: its
    secrets and configs. devices: of its generic resources. Raises InvalidArgument for what only
    shows here: no command, bad template; Unimplemented for a wish that would be ignored.
    """
    spec, base = task.container, image.config
    _check_supported(spec)
    arguments = _arguments(spec, base)
    if not arguments:
        raise InvalidArgument("no command specified: neither the service nor the image has one")
    driver = log_driver(task)
    size_bytes, files = _log_options(driver)
    terminal = ("TERM=xterm",) if spec.tty else ()
    env = (*terminal, *base.env, *(expand(text, task, node) for text in spec.env))
    env += environment(task.assigned_generic_resources)
    check = check_of(over_image(spec.health_check, base.healthcheck), base.shell)
    labels = _labels(task, image, node, volumes.values()) | {HEALTH_LABEL: label_of(check)}
    hostname = expand(spec.hostname, task, node) or task.id[:12]
    limits = task.spec.resources.limits
    dns = _resolver(spec.dns, attachment)
    return ContainerConfig(
        id=task.id,
        layers=tuple(layers),
        args=arguments,
        env=env,
        cwd=spec.dir or base.working_dir or "/",
        user=spec.user or base.user,
        groups=spec.groups,
        hostname=hostname,
        netns_path="" if attachment is None else attachment.netns_path,
        hosts=_hosts(spec, attachment, hostname),
        dns_servers=dns.nameservers,
        dns_search=dns.search,
        dns_options=dns.options,
        mounts=(*(_mount(mount, task, node, volumes) for mount in spec.mounts), *file_mounts),
        devices=tuple(map(_device, ordered(devices, spec.devices))),
        nano_cpus=limits.nano_cpus,
        memory_bytes=limits.memory_bytes,
        memory_reservation_bytes=task.spec.resources.reservations.memory_bytes,
        pids_max=limits.pids,
        ulimits=tuple(Ulimit(item.name, item.soft, item.hard) for item in spec.ulimits),
        cap_add=spec.capability_add,
        cap_drop=spec.capability_drop,
        **_confinement(spec.privileges),
        tty=spec.tty,
        open_stdin=spec.open_stdin,
        init=bool(spec.init),
        read_only=spec.read_only,
        stop_signal=spec.stop_signal or base.stop_signal or defaults.STOP_SIGNAL,
        stop_grace_s=defaults.stop_grace_period_ns(spec) / 1e9,
        sysctls=tuple(sorted(spec.sysctls.items())),
        oom_score_adj=spec.oom_score_adj,
        labels=labels,
        log_max_size_bytes=size_bytes,
        log_max_files=files,
        log=_told_logger(driver, task, image, env, labels),
    )


def log_driver(task: Task) -> LogDriver:
    """Where the output of a task goes. Raises: Unimplemented for a driver this node has not."""
    asked = task.log_driver or task.spec.log_driver or Driver()
    name = asked.name or log_drivers.DEFAULT
    if name not in log_drivers.TASK_OPTIONS:
        raise Unimplemented(f"log driver: {name} is not available on this node's version")
    return LogDriver(name=name, options=dict(asked.options))


def _told_logger(
    driver: LogDriver, task: Task, image: Image, env: tuple[str, ...], labels: Mapping[str, str]
) -> dict[str, Any]:
    """What `log.conf` says besides sizes. Raises: InvalidArgument."""
    if driver.name == log_drivers.DEFAULT:
        return {}
    subject = LogSubject(
        id=task.id,
        name=labels[_TASK_NAME_LABEL],
        image=task.container.image,
        image_id=image.id,
        labels=labels,
        env=env,
    )
    return drivers.conf(driver, subject)


def _arguments(spec: ContainerSpec, image: ImageConfig) -> tuple[str, ...]:
    """Docker's rule: a new entrypoint also drops the image's command."""
    if spec.command:
        return (*spec.command, *spec.args)
    return (*(image.entrypoint or ()), *(spec.args or image.cmd or ()))


def _hosts(
    spec: ContainerSpec, attachment: Attachment | None, hostname: str
) -> tuple[tuple[str, str], ...]:
    hosts: list[tuple[str, str]] = []
    for line in spec.hosts:
        address, _, names = line.partition(" ")
        hosts.extend((address, name) for name in names.split())
    if attachment is not None:
        own = attachment.overlay_addresses or (attachment.address,)
        hosts.extend((address, hostname) for address in own)
    return tuple(hosts)


def _resolver(wanted: DnsConfig, attachment: Attachment | None) -> DnsConfig:
    """What resolv.conf says. On overlay networks the node's resolver asks the others.

    Names of one word are asked for as they are, as in Docker: services have such names.
    """
    if attachment is None or not attachment.overlay_addresses:
        return wanted
    options = wanted.options
    if not any(option.startswith("ndots:") for option in options):
        options = (*options, "ndots:0")
    return DnsConfig(
        nameservers=(NAMES_ADDRESS,), search=wanted.search or attachment.search, options=options
    )


def _mount(mount: SpecMount, task: Task, node: NodeFacts, volumes: Mapping[str, Volume]) -> Mount:
    source, own_ids = expand(mount.source, task, node), False
    if mount.type is MountType.VOLUME:
        volume = volumes[mount.target]
        source, own_ids = volume.mountpoint, volume.own_ids
    return Mount(
        target=expand(mount.target, task, node),
        kind="tmpfs" if mount.type is MountType.TMPFS else "bind",
        source=source,
        read_only=mount.read_only,
        propagation=_PROPAGATION[mount.propagation],  # type: ignore[arg-type]  # literals
        recursive=mount.recursive is not MountRecursive.DISABLED,
        tmpfs_size_bytes=mount.tmpfs_size_bytes,
        tmpfs_mode=mount.tmpfs_mode or 0o1777,
        own_ids=own_ids,
        relabel="shared" if mount.type is MountType.VOLUME else "",
    )


def _device(device: DeviceMapping) -> Device:
    return Device(device.host_path, inside(device), device.permissions or ALL)


def _check_supported(spec: ContainerSpec) -> None:
    """Refuse what the managers of another version may let through and this worker cannot do."""
    wishes: dict[str, object] = {
        "isolation": spec.isolation not in {"", "default"},
        "seccomp": spec.privileges.seccomp_mode not in SECCOMP_MODES,
        "apparmor": spec.privileges.apparmor_mode not in APPARMOR_MODES,
    }
    for mount in spec.mounts:
        wishes |= {
            f"mount type {mount.type.name.lower()}": mount.type
            not in {MountType.BIND, MountType.VOLUME, MountType.TMPFS},
            f"mount {mount.target}: bind-recursive=readonly": mount.recursive
            is MountRecursive.READONLY,
            f"mount {mount.target}: subpath": mount.subpath,
            f"mount {mount.target}: tmpfs options": mount.tmpfs_options,
            f"mount {mount.target}: creating the source": mount.create_source,
        }
    for field, wished in wishes.items():
        if wished:
            raise Unimplemented(f"{field}: not possible on this node's version")


def _confinement(asked: Privileges) -> dict[str, Any]:
    """What `asked` makes of the runtime's fields: the words of `--security-opt` of a container."""
    profile = asked.seccomp_profile.decode(errors="replace")
    labels = ["disable"] if asked.selinux_disable else []
    labels += [
        f"{name}:{value}"
        for name, value in (
            ("user", asked.selinux_user), ("role", asked.selinux_role),
            ("type", asked.selinux_type), ("level", asked.selinux_level),
        )
        if value
    ]  # fmt: skip
    return {
        "no_new_privileges": asked.no_new_privileges,
        "seccomp_profile": {"unconfined": UNCONFINED, "custom": profile}.get(
            asked.seccomp_mode, ""
        ),
        "apparmor_profile": UNCONFINED if asked.apparmor_mode == "disabled" else "",
        "selinux_labels": tuple(labels),
    }


def _log_options(driver: LogDriver) -> tuple[int, int]:
    """Size in bytes of a log file of json-file, and how many are kept. Raises InvalidArgument."""
    known = log_drivers.TASK_OPTIONS[driver.name]
    for key in driver.options:
        if key not in known:
            raise InvalidArgument(f"log-opt: {key!r} is unknown, use {' or '.join(sorted(known))}")
    size_bytes, files = LOG_SIZE_BYTES_DEFAULT, LOG_FILES_DEFAULT
    if driver.name != log_drivers.DEFAULT:
        return size_bytes, files
    if "max-size" in driver.options:
        size_bytes = _size_bytes(driver.options["max-size"])
    if "max-file" in driver.options:
        text = driver.options["max-file"]
        if not (text.isascii() and text.isdigit() and int(text) > 0):
            raise InvalidArgument(f"log-opt max-file: {text!r} must be 1 or more")
        files = int(text)
    return size_bytes, files


def _size_bytes(text: str) -> int:
    found = _SIZE.fullmatch(text.strip())
    size_bytes = 0
    if found is not None:
        size_bytes = int(float(found.group(1)) * _SIZE_UNITS[found.group(2).lower()])
    if not LOG_SIZE_BYTES_MIN <= size_bytes <= LOG_SIZE_BYTES_MAX:
        raise InvalidArgument(f"log-opt max-size: {text!r} must be from 4k to 1t, like 10m")
    return size_bytes


def _labels(task: Task, image: Image, node: NodeFacts, volumes: Iterable[Volume]) -> dict[str, str]:
    name = task.service_annotations.name
    return {
        **task.container.labels,
        "com.docker.swarm.service.id": task.service_id,
        "com.docker.swarm.service.name": name,
        "com.docker.swarm.task": "",
        TASK_ID_LABEL: task.id,
        _TASK_NAME_LABEL: f"{name}.{task.slot or task.node_id}.{task.id}",
        "com.docker.swarm.node.id": node.id,
        "dev.shoal.image": task.container.image,
        IMAGE_ID_LABEL: image.id,
        VOLUMES_LABEL: " ".join(sorted({volume.name for volume in volumes})),
    }
