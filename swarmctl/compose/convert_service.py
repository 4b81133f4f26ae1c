"""One service of a Compose project as a service's spec. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal.errors import InvalidArgument
from shoal.model.devices import parse_device
from shoal.model.enums import DependencyCondition, PortProtocol, PublishMode
from shoal.model.files import FILE_MODE
from shoal.model.health import NONE
from shoal.model.specs import ContainerSpec, ServiceSpec, TaskSpec
from shoal.model.stacks import IMAGE_LABEL
from shoal.model.types import (
    Annotations,
    DnsConfig,
    Driver,
    EndpointSpec,
    FileReference,
    HealthCheck,
    NetworkAttachmentConfig,
    PortConfig,
    Privileges,
    ServiceDependency,
    Ulimit,
)
from swarmctl.compose.convert_deploy import (
    endpoint_mode,
    placement,
    resources,
    restart_policy,
    service_mode,
    update_config,
)
from swarmctl.compose.convert_mounts import mount, tmpfs_mount
from swarmctl.compose.names import Namespace
from swarmctl.compose.tree import Document, LocatedError, Path, Places
from swarmctl.edit.container import capability, edit_capabilities
from swarmctl.parsing.ports import parse_publish
from swarmctl.parsing.units import parse_duration
from swarmctl.parsing.values import parse_host, parse_ulimit

_PROTOCOLS = {item.name.lower(): item for item in PortProtocol}
_MODES = {item.name.lower(): item for item in PublishMode}


def service_spec(
    key: str,
    project: Document,
    namespace: Namespace,
    conditions: Mapping[str, DependencyCondition],
) -> ServiceSpec:
    """The service under that key. Raises: InvalidArgument with the line."""
    return _Conversion(key, project, namespace).spec(conditions)


class _Conversion:
    def __init__(self, key: str, project: Document, namespace: Namespace) -> None:
        self._key = key
        self._project = project.value
        self._places: Places = project.places
        self._path: Path = ("services", key)
        self._given: dict[str, Any] = project.value["services"][key]
        self._deploy: dict[str, Any] = self._given.get("deploy") or {}
        self._names = namespace

    def spec(self, conditions: Mapping[str, DependencyCondition]) -> ServiceSpec:
        image = self._given.get("image")
        if not image:
            said = "image: must be given: images are built with other tools, and named here"
            raise LocatedError(self._places.fault(self._path, said).message)
        deploy, at = self._deploy, self._places.at
        labels = {**self._names.labels(deploy.get("labels")), IMAGE_LABEL: image}
        container = self._container()
        with at(*self._path, "deploy"):
            mode, endpoints = service_mode(deploy), endpoint_mode(deploy)
            update = update_config(deploy.get("update_config"))
            rollback = update_config(deploy.get("rollback_config"))
            task = TaskSpec(
                runtime=container,
                resources=resources(deploy),
                restart=self._restart(),
                placement=placement(deploy),
                log_driver=self._log_driver(),
                networks=self._networks(),
            )
        with at(*self._path, "ports"):
            ports = tuple(map(_port, self._given.get("ports", ())))
        dependencies = self._given.get("depends_on", {})
        return ServiceSpec(
            annotations=Annotations(name=self._names.scoped(self._key), labels=labels),
            task=task,
            mode=mode,
            update=update,
            rollback=rollback,
            endpoint=EndpointSpec(mode=endpoints, ports=tuple(sorted(ports, key=_port_key))),
            depends_on=tuple(
                ServiceDependency(
                    service=self._names.scoped(name),
                    condition=conditions[dependencies[name]["condition"]],
                )
                for name in sorted(dependencies)
            ),
        )

    def _container(self) -> ContainerSpec:
        given = self._given
        grace = given.get("stop_grace_period")
        added, dropped = self._capabilities()
        return ContainerSpec(
            image=given["image"],
            labels=self._names.labels(given.get("labels")),
            command=tuple(given.get("entrypoint", ())),
            args=tuple(given.get("command", ())),
            hostname=given.get("hostname", ""),
            env=_environment(given.get("environment", {})),
            dir=given.get("working_dir", ""),
            user=given.get("user", ""),
            privileges=self._privileges(),
            tty=given.get("tty", False),
            open_stdin=given.get("stdin_open", False),
            read_only=given.get("read_only", False),
            mounts=self._mounts(),
            stop_signal=given.get("stop_signal", ""),
            stop_grace_period_ns=None if grace is None else parse_duration(grace),
            health_check=self._health(),
            hosts=self._each("extra_hosts", parse_host),
            dns=DnsConfig(
                nameservers=tuple(given.get("dns", ())), search=tuple(given.get("dns_search", ()))
            ),
            secrets=self._files("secrets"),
            configs=self._files("configs"),
            isolation=given.get("isolation", ""),
            init=given.get("init"),
            sysctls=dict(given.get("sysctls", {})),
            capability_add=added,
            capability_drop=dropped,
            ulimits=self._each("ulimits", self._ulimit),
            oom_score_adj=given.get("oom_score_adj", 0),
            devices=self._each("devices", parse_device),
        )

    def _each(self, key: str, read: Any) -> tuple[Any, ...]:
        """Every entry of a list or mapping, read at its place."""
        given = self._given.get(key, ())
        with self._places.at(*self._path, key):
            return tuple(map(read, sorted(given) if isinstance(given, dict) else given))

    def _mounts(self) -> tuple[Any, ...]:
        volumes = self._project["volumes"]
        named = self._each("volumes", lambda one: mount(one, volumes, self._names))
        return (*named, *self._each("tmpfs", tmpfs_mount))

    def _ulimit(self, name: str) -> Ulimit:
        limit = self._given["ulimits"][name]
        return parse_ulimit(f"{name}={limit['soft']}:{limit['hard']}")

    def _restart(self) -> Any:
        with self._places.at(*self._path):
            return restart_policy(self._deploy, self._given.get("restart"))

    def _capabilities(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """One that is in both lists is added, as Docker does."""
        added = [capability(name) for name in self._given.get("cap_add", ())]
        dropped = [capability(name) for name in self._given.get("cap_drop", ())]
        if "ALL" in added:
            added = ["ALL"]
        if "ALL" in dropped:
            dropped = ["ALL"]
        left = tuple(sorted(set(dropped) - set(added)))
        return edit_capabilities((), left, {"cap_add": tuple(sorted(set(added)))})

    def _privileges(self) -> Privileges:
        given = self._given.get("credential_spec")
        if not given:
            return Privileges()
        return Privileges(
            credential_spec_config=given.get("config", ""),
            credential_spec_file=given.get("file", ""),
            credential_spec_registry=given.get("registry", ""),
        )

    def _health(self) -> HealthCheck | None:
        given = self._given.get("healthcheck")
        if given is None:
            return None
        with self._places.at(*self._path, "healthcheck"):
            if given.get("disable"):
                if given.get("test"):
                    raise InvalidArgument("test and disable can't be set at the same time")
                return HealthCheck(test=(NONE,))
            retries = given.get("retries", 0)
            if retries != int(retries) or retries < 0:
                raise InvalidArgument(f"retries: {retries} must be a whole number, 0 or more")
            return HealthCheck(
                test=tuple(given.get("test", ())),
                interval_ns=parse_duration(given.get("interval", "0")),
                timeout_ns=parse_duration(given.get("timeout", "0")),
                retries=int(retries),
                start_period_ns=parse_duration(given.get("start_period", "0")),
                start_interval_ns=parse_duration(given.get("start_interval", "0")),
            )

    def _files(self, kind: str) -> tuple[FileReference, ...]:
        section = self._project[kind]

        def reference(one: dict[str, Any]) -> FileReference:
            source, mode = one["source"], one.get("mode", FILE_MODE)
            if mode != int(mode):
                raise InvalidArgument(f"mode: {mode} must be a whole number, such as 0440")
            return FileReference(
                name=self._names.name_of(source, section[source]),
                target=one.get("target") or source,
                uid=one.get("uid", "0"),
                gid=one.get("gid", "0"),
                mode=int(mode),
            )

        found: tuple[FileReference, ...] = self._each(kind, reference)
        return tuple(sorted(found, key=lambda one: (one.name, one.target)))

    def _networks(self) -> tuple[NetworkAttachmentConfig, ...]:
        wishes = self._given.get("networks") or {"default": {}}
        result = []
        for name, wish in sorted(wishes.items()):
            given = self._project["networks"].get(name, {})
            addresses = [wish[key] for key in ("ipv4_address", "ipv6_address") if key in wish]
            result.append(
                NetworkAttachmentConfig(
                    target=self._names.name_of(name, given),
                    aliases=(*wish.get("aliases", ()), self._key),
                    addresses=tuple(addresses),
                    driver_options=wish.get("driver_opts", {}),
                )
            )
        return tuple(sorted(result, key=lambda one: one.target))

    def _log_driver(self) -> Driver | None:
        given = self._given.get("logging")
        if given is None:
            return None
        options = {
            key: str(one) for key, one in (given.get("options") or {}).items() if one is not None
        }
        return Driver(name=given.get("driver", ""), options=options)


def _environment(given: Mapping[str, str | None]) -> tuple[str, ...]:
    """Sorted; a variable without a value is passed as its name alone."""
    return tuple(name if text is None else f"{name}={text}" for name, text in sorted(given.items()))


def _port(given: dict[str, Any]) -> PortConfig:
    protocol, mode = given.get("protocol", "tcp"), given.get("mode", "ingress")
    if protocol not in _PROTOCOLS:
        raise InvalidArgument(f"protocol {protocol!r} is not one of {', '.join(_PROTOCOLS)}")
    if mode not in _MODES:
        raise InvalidArgument(f"mode {mode!r} is not one of {', '.join(_MODES)}")
    published, address = str(given.get("published", "")), given.get("host_ip", "")
    text = f"target={given['target']},protocol={protocol},mode={mode}"
    text += f",published={published}" if published not in {"", "0"} else ""
    return parse_publish(text + (f",ip={address}" if address else ""))[0]


def _port_key(port: PortConfig) -> tuple[int, int, int, str]:
    return port.published_port, port.target_port, port.protocol, port.address
