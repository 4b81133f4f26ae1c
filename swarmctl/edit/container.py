"""The container of a service's tasks."""

from __future__ import annotations

from collections.abc import Iterable

from shoal.model.devices import inside
from shoal.model.files import FileRow
from shoal.model.objects import Secret
from shoal.model.specs import ContainerSpec, ServiceSpec
from shoal.model.types import DnsConfig, FileReference, FileRotation, Mount, Ulimit
from swarmctl.edit.health import edit_health
from swarmctl.edit.lists import Flags, edited_list, edited_map, merged

_PLAIN = {
    "image": "image",
    "pull_options": "pull_options",
    "args": "args",
    "entrypoint": "command",
    "hostname": "hostname",
    "workdir": "dir",
    "user": "user",
    "read_only": "read_only",
    "tty": "tty",
    "open_stdin": "open_stdin",
    "init": "init",
    "isolation": "isolation",
    "stop_signal": "stop_signal",
    "stop_grace_period": "stop_grace_period_ns",
    "oom_score_adj": "oom_score_adj",
}


def edit_container(container: ContainerSpec, flags: Flags) -> ContainerSpec:
    """The container with every given flag applied."""
    plain = {field: flags[flag] for flag, field in _PLAIN.items() if flag in flags}
    add, drop = edit_capabilities(container.capability_add, container.capability_drop, flags)
    privileges = container.privileges
    if "no_new_privileges" in flags:
        privileges = privileges.replaced(no_new_privileges=flags["no_new_privileges"])
    if (rotation := flags.get("secret_rotation")) is not None:
        plain["file_rotation"] = FileRotation(rotation.signal) if rotation.live else None
    return container.replaced(
        **plain,
        env=merged(
            container.env,
            add=flags.get("env_add", ()),
            remove=flags.get("env_rm", ()),
            key=_variable,
        ),
        labels=edited_map(container.labels, flags, "container_label"),
        groups=edited_list(container.groups, flags, "group"),
        hosts=edited_list(container.hosts, flags, "host"),
        sysctls=edited_map(container.sysctls, flags, "sysctl"),
        dns=_edit_dns(container.dns, flags),
        mounts=merged(
            container.mounts,
            add=flags.get("mount_add", ()),
            remove=flags.get("mount_rm", ()),
            key=_target,
        ),
        secrets=_edit_files(container.secrets, flags, "secret"),
        configs=_edit_files(container.configs, flags, "config"),
        ulimits=merged(
            container.ulimits,
            add=flags.get("ulimit_add", ()),
            remove=flags.get("ulimit_rm", ()),
            key=_limit_name,
        ),
        devices=merged(
            container.devices,
            add=flags.get("device_add", ()),
            remove=flags.get("device_rm", ()),
            key=inside,
        ),
        health_check=edit_health(container.health_check, flags),
        capability_add=add,
        capability_drop=drop,
        privileges=privileges,
    )


def with_newest_files(spec: ServiceSpec, kind: type[FileRow], name: str) -> ServiceSpec:
    """The spec with what it names by `name` to be found anew: the managers put in the new id."""
    container = spec.task.runtime
    if not isinstance(container, ContainerSpec):
        return spec
    field = "secrets" if kind is Secret else "configs"
    references = tuple(
        one.replaced(id="") if one.name.lower() == name.lower() else one
        for one in getattr(container, field)
    )
    runtime = container.replaced(**{field: references})
    return spec.replaced(task=spec.task.replaced(runtime=runtime))


def edit_capabilities(
    added: Iterable[str], dropped: Iterable[str], flags: Flags
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Both lists under `cap_add` and `cap_drop`; adding what was dropped undoes it, and back."""
    add, drop = dict.fromkeys(added), dict.fromkeys(dropped)
    for name in flags.get("cap_add", ()):
        _move(name, into=add, out_of=drop)
    for name in flags.get("cap_drop", ()):
        _move(name, into=drop, out_of=add)
    return tuple(add), tuple(drop)


def capability(name: str) -> str:
    """The full name of a capability: `CAP_NET_ADMIN` for `net_admin`; `ALL` stays."""
    upper = name.strip().upper()
    return upper if upper == "ALL" or upper.startswith("CAP_") else f"CAP_{upper}"


def _move(name: str, *, into: dict[str, None], out_of: dict[str, None]) -> None:
    full = capability(name)
    if full in out_of:
        del out_of[full]
    else:
        into[full] = None


def _edit_dns(dns: DnsConfig, flags: Flags) -> DnsConfig:
    return DnsConfig(
        nameservers=edited_list(dns.nameservers, flags, "dns"),
        search=edited_list(dns.search, flags, "dns_search"),
        options=edited_list(dns.options, flags, "dns_option"),
    )


def _edit_files(
    current: Iterable[FileReference], flags: Flags, name: str
) -> tuple[FileReference, ...]:
    """Removed by name or id; an added one takes the place of who had its target."""
    gone = set(flags.get(f"{name}_rm", ()))
    kept = [one for one in current if not gone & {one.name, one.id}]
    return merged(kept, add=flags.get(f"{name}_add", ()), key=_file_target)


def _file_target(reference: FileReference) -> str:
    return reference.target


def _variable(assignment: str) -> str:
    return assignment.partition("=")[0]


def _target(mount: Mount) -> str:
    return mount.target


def _limit_name(ulimit: Ulimit) -> str:
    return ulimit.name
