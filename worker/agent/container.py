"""From a task and its image to the container's configuration: pure, and the one place for it."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.errors import InvalidArgument
from shoal.model import defaults
from shoal.model.enums import MountPropagation, MountRecursive, MountType
from shoal.model.objects import Task
from shoal.model.specs import ContainerSpec
from shoal.model.types import Driver
from shoal.model.types import Mount as SpecMount
from worker.agent.templates import NodeFacts, expand
from worker.images.model import ImageConfig
from worker.network.api import Attachment
from worker.runtime.api import (
    LOG_FILES_DEFAULT,
    LOG_SIZE_BYTES_DEFAULT,
    ContainerConfig,
    Mount,
    Ulimit,
)

_SIZE_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def container_config(
    task: Task,
    image: ImageConfig,
    layers: Sequence[str],
    attachment: Attachment | None,
    node: NodeFacts,
) -> ContainerConfig:
    """The container of a task.

    layers: lower directories of the image, topmost first. attachment: None for a namespace of its
    own without a link. Raises InvalidArgument for what only shows here: no command, bad template.
    """
    spec = task.container
    arguments = _arguments(spec, image)
    if not arguments:
        raise InvalidArgument("no command specified: neither the service nor the image has one")
    size_bytes, files = _log_options(task.log_driver or task.spec.log_driver)
    hostname = expand(spec.hostname, task, node) or task.id[:12]
    limits = task.spec.resources.limits
    return ContainerConfig(
        id=task.id,
        layers=tuple(layers),
        args=arguments,
        env=(*image.env, *(expand(text, task, node) for text in spec.env)),
        cwd=spec.dir or image.working_dir or "/",
        user=spec.user or image.user,
        groups=spec.groups,
        hostname=hostname,
        netns_path="" if attachment is None else attachment.netns_path,
        hosts=_hosts(spec, attachment, hostname),
        dns_servers=spec.dns.nameservers,
        dns_search=spec.dns.search,
        dns_options=spec.dns.options,
        mounts=tuple(_mount(mount, task, node) for mount in spec.mounts),
        nano_cpus=limits.nano_cpus,
        memory_bytes=limits.memory_bytes,
        memory_reservation_bytes=task.spec.resources.reservations.memory_bytes,
        pids_max=limits.pids,
        ulimits=tuple(Ulimit(item.name, item.soft, item.hard) for item in spec.ulimits),
        cap_add=spec.capability_add,
        cap_drop=spec.capability_drop,
        no_new_privileges=spec.privileges.no_new_privileges,
        read_only=spec.read_only,
        stop_signal=spec.stop_signal or image.stop_signal or defaults.STOP_SIGNAL,
        stop_grace_s=defaults.stop_grace_period_ns(spec) / 1e9,
        sysctls=tuple(sorted(spec.sysctls.items())),
        oom_score_adj=spec.oom_score_adj,
        labels=_labels(task, node),
        log_max_size_bytes=size_bytes,
        log_max_files=files,
    )


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
        hosts.append((attachment.address, hostname))
    return tuple(hosts)


def _mount(mount: SpecMount, task: Task, node: NodeFacts) -> Mount:
    propagation = {
        MountPropagation.RPRIVATE: "rprivate",
        MountPropagation.PRIVATE: "private",
        MountPropagation.RSHARED: "rshared",
        MountPropagation.SHARED: "shared",
        MountPropagation.RSLAVE: "rslave",
        MountPropagation.SLAVE: "slave",
    }[mount.propagation]
    return Mount(
        target=mount.target,
        kind="tmpfs" if mount.type is MountType.TMPFS else "bind",
        source=expand(mount.source, task, node),
        read_only=mount.read_only,
        propagation=propagation,  # type: ignore[arg-type]  # a literal of the table above
        recursive=mount.recursive is not MountRecursive.DISABLED,
        tmpfs_size_bytes=mount.tmpfs_size_bytes,
        tmpfs_mode=mount.tmpfs_mode or 0o1777,
    )


def _log_options(driver: Driver | None) -> tuple[int, int]:
    """Size in bytes of a log file, and how many are kept. Raises InvalidArgument."""
    options = {} if driver is None else driver.options
    size_bytes, files = LOG_SIZE_BYTES_DEFAULT, LOG_FILES_DEFAULT
    if "max-size" in options:
        text = options["max-size"].strip().lower().removesuffix("ib").removesuffix("b")
        number = text.rstrip("kmg")
        unit = text[len(number) :]
        if not number.isdigit() or unit not in _SIZE_UNITS or int(number) == 0:
            raise InvalidArgument(f"log-opt max-size: {options['max-size']!r} must be like 10m")
        size_bytes = int(number) * _SIZE_UNITS[unit]
    if "max-file" in options:
        if not options["max-file"].isdigit() or int(options["max-file"]) == 0:
            raise InvalidArgument(f"log-opt max-file: {options['max-file']!r} must be 1 or more")
        files = int(options["max-file"])
    return size_bytes, files


def _labels(task: Task, node: NodeFacts) -> dict[str, str]:
    name = task.service_annotations.name
    return {
        **task.container.labels,
        "com.docker.swarm.service.id": task.service_id,
        "com.docker.swarm.service.name": name,
        "com.docker.swarm.task.id": task.id,
        "com.docker.swarm.task.name": f"{name}.{task.slot or task.node_id}.{task.id}",
        "com.docker.swarm.node.id": node.id,
        "dev.shoal.image": task.container.image,
    }
