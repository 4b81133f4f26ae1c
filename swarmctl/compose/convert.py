"""A Compose project as the spec of a stack. Pure: contents of files come in.

What Docker's `stack deploy` makes of a key is what it becomes here; names, labels and defaults are
the same, so that both see the same stacks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from shoal.errors import InvalidArgument, NotFound
from shoal.model.dependencies import in_order
from shoal.model.enums import DependencyCondition
from shoal.model.specs import ConfigSpec, NetworkSpec, SecretSpec, ServiceSpec, StackSpec
from shoal.model.types import Annotations, Driver, IpamConfig, IpamOptions
from swarmctl.compose.convert_service import service_spec
from swarmctl.compose.names import Namespace
from swarmctl.compose.tree import Document, LocatedError

ReadBytes = Callable[[str], bytes]
"""The content of a file by its path. Raises: NotFound, InvalidArgument."""

CONDITIONS = {
    "service_started": DependencyCondition.STARTED,
    "service_healthy": DependencyCondition.HEALTHY,
    "service_completed_successfully": DependencyCondition.COMPLETED,
}
DEFAULT_NETWORK = "default"


def stack_spec(
    project: Document, name: str, environ: Mapping[str, str], read: ReadBytes, source: str
) -> StackSpec:
    """The whole project. Raises: InvalidArgument with the line."""
    value, places = project
    namespace = Namespace(name)
    services = value["services"]
    if not services:
        raise LocatedError(places.fault((), "no services: name at least one").message)
    _check_references(project)
    files = _Files(project, namespace, environ, read)
    return StackSpec(
        annotations=Annotations(name=name),
        networks=_networks(project, namespace),
        secrets=tuple(files.secrets()),
        configs=tuple(files.configs()),
        services=_services(project, namespace),
        source=source,
    )


def _services(project: Document, namespace: Namespace) -> tuple[ServiceSpec, ...]:
    """In the order in which they depend on each other."""
    services = project.value["services"]
    graph = {key: sorted(one.get("depends_on", ())) for key, one in services.items()}
    with project.places.at("services"):
        order = in_order(graph)
    return tuple(service_spec(key, project, namespace, CONDITIONS) for key in order)


def _check_references(project: Document) -> None:
    """Refuse services that name what the file does not have."""
    value, places = project
    for name, service in value["services"].items():
        at = ("services", name)
        for other in service.get("depends_on", ()):
            if other not in value["services"]:
                said = f"service {name!r} depends on undefined service {other!r}"
                raise LocatedError(places.fault((*at, "depends_on"), said).message)
        for network in service.get("networks", ()):
            if network != DEFAULT_NETWORK and network not in value["networks"]:
                said = f"undefined network {network!r}: name it under networks"
                raise LocatedError(places.fault((*at, "networks"), said).message)
        for kind in ("secrets", "configs"):
            for one in service.get(kind, ()):
                if one.get("source") not in value[kind]:
                    said = f"undefined {kind[:-1]} {one.get('source')!r}: name it under {kind}"
                    raise LocatedError(places.fault((*at, kind), said).message)


def _networks(project: Document, namespace: Namespace) -> tuple[NetworkSpec, ...]:
    """Those that a service is on; that of services which name none is `default`."""
    value, places = project
    used = {
        network
        for service in value["services"].values()
        for network in service.get("networks") or {DEFAULT_NETWORK: {}}
    }
    result = []
    for key in sorted(used):
        given = value["networks"].get(key, {})
        if not given.get("external"):
            with places.at("networks", key):
                result.append(_network(key, given, namespace))
    return tuple(result)


def _network(key: str, given: dict[str, Any], namespace: Namespace) -> NetworkSpec:
    ipam = given.get("ipam") or {}
    driver = ipam.get("driver")
    return NetworkSpec(
        annotations=Annotations(
            name=namespace.name_of(key, given), labels=namespace.labels(given.get("labels"))
        ),
        driver=Driver(name=given.get("driver") or "overlay", options=given.get("driver_opts", {})),
        ipv6_enabled=given.get("enable_ipv6", False),
        internal=given.get("internal", False),
        attachable=given.get("attachable", False),
        ipam=IpamOptions(
            driver=Driver(name=driver) if driver else None,
            configs=tuple(
                IpamConfig(
                    subnet=one.get("subnet", ""),
                    ip_range=one.get("ip_range", ""),
                    gateway=one.get("gateway", ""),
                    reserved=one.get("aux_addresses", {}),
                )
                for one in ipam.get("config", ())
            ),
        ),
    )


class _Files:
    """Secrets and configs of one project."""

    def __init__(
        self,
        project: Document,
        namespace: Namespace,
        environ: Mapping[str, str],
        read: ReadBytes,
    ) -> None:
        self._project = project
        self._names = namespace
        self._environ = environ
        self._read = read

    def secrets(self) -> Iterator[SecretSpec]:
        for key, given in self._own("secrets"):
            with self._project.places.at("secrets", key):
                name = given.get("driver")
                yield SecretSpec(
                    annotations=self._annotations(key, given),
                    data=b"" if name else self._content("secret", given),
                    driver=Driver(name=name, options=given.get("driver_opts", {}))
                    if name
                    else None,
                    templating=_templating(given),
                )

    def configs(self) -> Iterator[ConfigSpec]:
        for key, given in self._own("configs"):
            with self._project.places.at("configs", key):
                yield ConfigSpec(
                    annotations=self._annotations(key, given),
                    data=self._content("config", given),
                    templating=_templating(given),
                )

    def _own(self, section: str) -> list[tuple[str, dict[str, Any]]]:
        given = self._project.value[section]
        return [(key, one) for key, one in sorted(given.items()) if not one.get("external")]

    def _annotations(self, key: str, given: dict[str, Any]) -> Annotations:
        return Annotations(
            name=self._names.name_of(key, given), labels=self._names.labels(given.get("labels"))
        )

    def _content(self, kind: str, given: dict[str, Any]) -> bytes:
        sources = [key for key in ("file", "environment", "content") if key in given]
        if len(sources) != 1:
            ways = "file and environment" if kind == "secret" else "file, environment and content"
            raise InvalidArgument(f"a {kind} has one of {ways}, or it is external")
        text = str(given[sources[0]])
        if sources[0] == "file":
            try:
                return self._read(text)
            except NotFound as error:
                raise InvalidArgument(error.message) from error
        if sources[0] == "content":
            return text.encode()
        if text not in self._environ:
            raise InvalidArgument(f"environment: variable {text} is not set")
        return self._environ[text].encode("utf-8", "surrogateescape")


def _templating(given: dict[str, Any]) -> Driver | None:
    name = given.get("template_driver")
    return Driver(name=name) if name else None
