"""Published ports of the routing mesh: each belongs to one service of the whole cluster.

An ingress port is refused when another service has it, in ingress mode or, because the mesh
answers on every node, in host mode. Services may have one number at different addresses, or on
different interfaces. Ports that are not asked for by number come from 30000-32767,
the lowest free one; a service keeps it as long as its spec publishes that target port, with
whatever options.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from manager.store.view import View
from shoal.errors import InvalidArgument, ResourceExhausted
from shoal.model.defaults import DYNAMIC_PORTS
from shoal.model.enums import EndpointMode, PortProtocol, PublishMode
from shoal.model.objects import Service
from shoal.model.published import are_at_odds, is_at_odds, name_of
from shoal.model.specs import ServiceSpec
from shoal.model.types import Endpoint, PortConfig

PortKey = tuple[PortProtocol, int]


class Holding(NamedTuple):
    """A service has a port."""

    service: Service
    port: PortConfig


class PortOwners:
    """Who has which port: a service per ingress port and place, services per host-mode port."""

    def __init__(self, view: View) -> None:
        self._held: dict[PortKey, list[Holding]] = {}
        self._keys: dict[str, set[PortKey]] = {}
        for service in sorted(view.services, key=_seniority):
            if not service.pending_delete:
                self._add(service, held_ports(service))

    def replace(self, service: Service) -> None:
        """Take note of the service's new endpoint."""
        for key in self._keys.pop(service.id, ()):
            self._held[key] = [held for held in self._held[key] if held.service.id != service.id]
        self._add(service, held_ports(service))

    def endpoint(self, service: Service) -> Endpoint:
        """The endpoint that the service's spec asks for.

        Raises: InvalidArgument for a port that is taken or given twice; ResourceExhausted when
        there is no dynamic port left.
        """
        check_spec(service.spec)
        wishes = service.spec.endpoint.ports
        numbers = [port.published_port for port in wishes]
        taken = {_key(port) for port in wishes if port.published_port}
        for port in wishes:
            if port.published_port:
                self._check(service, port)
        # Ports that are kept come before new ones, which take the lowest that is left then.
        for choose in (self._kept, self._kept_otherwise, self._lowest):
            for place, port in enumerate(wishes):
                if numbers[place] or port.publish_mode is PublishMode.HOST:
                    continue  # in host mode the node chooses
                numbers[place] = choose(service, port, taken)
                taken.add((port.protocol, numbers[place]))
        virtual_ips = service.endpoint.virtual_ips if service.endpoint is not None else ()
        return Endpoint(
            spec=service.spec.endpoint,
            ports=tuple(
                port.replaced(published_port=number)
                for port, number in zip(wishes, numbers, strict=True)
            ),
            virtual_ips=virtual_ips,
        )

    def _add(self, service: Service, ports: Iterator[PortConfig]) -> None:
        for port in ports:
            self._keys.setdefault(service.id, set()).add(_key(port))
            self._held.setdefault(_key(port), []).append(Holding(service, port))

    def _owner(self, service: Service, port: PortConfig) -> Service | None:
        """Another service because of which this one cannot have the port."""
        for held in self._held.get(_key(port), ()):
            # Two services may share one of mode=host: the scheduler puts them on different nodes.
            shared = held.port.publish_mode is port.publish_mode is PublishMode.HOST
            if held.service.id != service.id and not shared and are_at_odds(port, held.port):
                return held.service
        return None

    def _check(self, service: Service, port: PortConfig) -> None:
        owner = self._owner(service, port)
        if owner is not None:
            raise InvalidArgument(
                f"port {name_of(port)} is already in use by "
                f"service {owner.spec.annotations.name}: publish another one, or remove it there"
            )

    def _is_free(self, service: Service, port: PortConfig, taken: set[PortKey]) -> bool:
        return _key(port) not in taken and self._owner(service, port) is None

    def _kept(self, service: Service, port: PortConfig, taken: set[PortKey]) -> int:
        """The dynamic number that the service has for this port; 0 where there is none."""
        alike = (held for held in _held(service) if held.replaced(published_port=0) == port)
        return self._first_free(service, alike, taken)

    def _kept_otherwise(self, service: Service, port: PortConfig, taken: set[PortKey]) -> int:
        """The one it has for the same target with other options."""
        alike = (held for held in _held(service) if _target(held) == _target(port))
        return self._first_free(service, alike, taken)

    def _first_free(self, service: Service, held: Iterator[PortConfig], taken: set[PortKey]) -> int:
        numbers = (port for port in held if port.published_port in DYNAMIC_PORTS)
        free = (port for port in numbers if self._is_free(service, port, taken))
        return next((port.published_port for port in free), 0)

    def _lowest(self, service: Service, port: PortConfig, taken: set[PortKey]) -> int:
        """The lowest free dynamic number. Raises: ResourceExhausted."""
        for number in DYNAMIC_PORTS:
            if self._is_free(service, port.replaced(published_port=number), taken):
                return number
        raise ResourceExhausted(
            f"no free port for {port.target_port}/{port.protocol.name.lower()}: all of "
            f"{DYNAMIC_PORTS.start}-{DYNAMIC_PORTS.stop - 1} are published; give one by number"
        )


def check_ports(view: View, spec: ServiceSpec, *, service_id: str = "") -> None:
    """Refuse a spec whose ports cannot be allocated at this moment.

    service_id: the service that is updated; "" for a new one.
    Raises: InvalidArgument, ResourceExhausted. For the control API; the allocator decides again.
    """
    check_spec(spec)
    if not spec.endpoint.ports:
        return
    known = view.services.get(service_id) if service_id else None
    service = (known or Service(id=service_id)).replaced(spec=spec)
    PortOwners(view).endpoint(service)


def check_spec(spec: ServiceSpec) -> None:
    """Refuse ports that contradict each other within one spec. Raises: InvalidArgument."""
    seen: dict[PortKey, list[PortConfig]] = {}
    for port in spec.endpoint.ports:
        ingress = port.publish_mode is PublishMode.INGRESS
        if ingress and spec.endpoint.mode is EndpointMode.DNSRR:
            raise InvalidArgument(
                f"port {port.target_port}: endpoint mode dnsrr has no ingress ports; "
                "publish with mode=host or use endpoint mode vip"
            )
        if not port.published_port:
            continue
        if is_at_odds(port, seen.get(_key(port), ())):
            raise InvalidArgument(f"port {name_of(port)} is published twice")
        seen.setdefault(_key(port), []).append(port)


def held_ports(service: Service) -> Iterator[PortConfig]:
    """Ports with numbers that the service holds: allocated ones, and host-mode ones of its spec."""
    endpoint = service.endpoint or Endpoint()
    for port in endpoint.ports:
        if port.published_port:
            yield port
    for port in service.spec.endpoint.ports:
        if port.published_port and port.publish_mode is PublishMode.HOST:
            yield port


def _key(port: PortConfig) -> PortKey:
    return (port.protocol, port.published_port)


def _held(service: Service) -> tuple[PortConfig, ...]:
    return service.endpoint.ports if service.endpoint is not None else ()


def _target(port: PortConfig) -> tuple[object, ...]:
    return port.protocol, port.target_port, port.publish_mode


def _seniority(service: Service) -> tuple[int, str]:
    return (service.meta.created_at_ns, service.id)
