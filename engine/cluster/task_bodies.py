"""The template of a service's tasks, read from Docker's JSON. Pure.

As with the container, `before` is what the service has by now, and gives what the client left out
because it is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from msgspec import field

from engine.cluster.choices import chosen
from engine.cluster.container_bodies import Body, ContainerBody, DriverBody
from shoal.errors import InvalidArgument, Unimplemented
from shoal.model.enums import (
    DisconnectAction,
    PlacementStrategy,
    RestartCondition,
    ReturnAction,
)
from shoal.model.specs import (
    ContainerSpec,
    TaskSpec,
)
from shoal.model.types import (
    DisconnectPolicy,
    GenericResource,
    NetworkAttachmentConfig,
    Placement,
    PlacementPreference,
    Platform,
    ResourceRequirements,
    Resources,
    RestartPolicy,
)

_CONTAINER = "container"

Item = TypeVar("Item")


class NamedPieceBody(Body, frozen=True):
    """`NamedResourceSpec`."""

    kind: str = ""
    value: str = ""


class CountBody(Body, frozen=True):
    """`DiscreteResourceSpec`."""

    kind: str = ""
    value: int = 0


class GenericBody(Body, frozen=True):
    """One of `GenericResources`."""

    named_resource_spec: NamedPieceBody | None = None
    discrete_resource_spec: CountBody | None = None

    def row(self) -> GenericResource:
        """The same in our words. Raises: InvalidArgument."""
        named, discrete = self.named_resource_spec, self.discrete_resource_spec
        if named is not None and discrete is None:
            return GenericResource(kind=named.kind, named_value=named.value)
        if discrete is not None and named is None:
            return GenericResource(kind=discrete.kind, count=discrete.value)
        raise InvalidArgument(
            "GenericResources: each must have one of NamedResourceSpec and DiscreteResourceSpec"
        )


class ResourcesBody(Body, frozen=True):
    """`Resources.Limits`, `Resources.Reservations`."""

    nano_cpus: int = field(default=0, name="NanoCPUs")
    memory_bytes: int = 0
    pids: int = 0
    generic_resources: tuple[GenericBody, ...] = ()
    swap_bytes: int | None = None
    memory_swappiness: int | None = None

    def row(self, before: Resources) -> Resources:
        """The same in our words. Raises: InvalidArgument."""
        return Resources(
            nano_cpus=self.nano_cpus,
            memory_bytes=self.memory_bytes,
            pids=self.pids,
            generic=tuple(one.row() for one in self.generic_resources),
            swap_bytes=kept(self.swap_bytes, before.swap_bytes),
            memory_swappiness=kept(self.memory_swappiness, before.memory_swappiness),
        )


class RequirementsBody(Body, frozen=True):
    """`Resources`."""

    limits: ResourcesBody = ResourcesBody()
    reservations: ResourcesBody = ResourcesBody()
    swap_bytes: int | None = None
    memory_swappiness: int | None = None

    def row(self, before: ResourceRequirements) -> ResourceRequirements:
        """The same in our words. Raises: InvalidArgument."""
        limits = self.limits.row(before.limits)
        return ResourceRequirements(
            limits=limits.replaced(
                swap_bytes=kept(self.swap_bytes, limits.swap_bytes),
                memory_swappiness=kept(self.memory_swappiness, limits.memory_swappiness),
            ),
            reservations=self.reservations.row(before.reservations),
        )


class RestartBody(Body, frozen=True):
    """`RestartPolicy`. The back-off is ours."""

    condition: str = ""
    delay: int | None = None
    max_attempts: int = 0
    window: int = 0
    backoff_factor: float | None = None
    backoff_max: int | None = None

    def row(self, before: RestartPolicy | None) -> RestartPolicy:
        """The same in our words. Raises: InvalidArgument."""
        had, factor = before or RestartPolicy(), self.backoff_factor
        return RestartPolicy(
            condition=chosen(
                RestartCondition, self.condition, "RestartCondition", RestartCondition.ANY
            ),
            delay_ns=self.delay,
            max_attempts=self.max_attempts,
            window_ns=self.window,
            backoff_factor=had.backoff_factor if factor is None else factor,
            backoff_max_ns=kept(self.backoff_max, had.backoff_max_ns),
        )


class DisconnectBody(Body, frozen=True):
    """`DisconnectPolicy`, which is ours."""

    action: str = ""
    wait: int | None = None
    on_return: str = ""

    def row(self) -> DisconnectPolicy:
        """The same in our words. Raises: InvalidArgument."""
        return DisconnectPolicy(
            action=chosen(
                DisconnectAction, self.action, "DisconnectPolicy.Action", DisconnectAction.REPLACE
            ),
            wait_ns=self.wait,
            on_return=chosen(
                ReturnAction,
                self.on_return,
                "DisconnectPolicy.OnReturn",
                ReturnAction.KEEP_REPLACEMENT,
            ),
        )


class SpreadBody(Body, frozen=True):
    """`Preferences[].Spread`."""

    spread_descriptor: str = ""


class PreferenceBody(Body, frozen=True):
    """One of `Preferences`. To prefer and to avoid is ours."""

    spread: SpreadBody | None = None
    prefer: str = ""
    avoid: str = ""

    def row(self, wishes: Iterator[PlacementPreference]) -> PlacementPreference:
        """The same in our words. Docker's clients leave nothing of our wishes but their places."""
        if self.spread is None and not self.prefer and not self.avoid:
            kept = next(wishes, None)
            if kept is None:
                raise InvalidArgument("Preferences: each must have Spread, Prefer or Avoid")
            return kept
        spread = self.spread or SpreadBody()
        return PlacementPreference(spread.spread_descriptor, self.prefer, self.avoid)


class PlatformBody(Body, frozen=True):
    """One of `Platforms`."""

    architecture: str = ""
    os: str = field(default="", name="OS")


class PlacementBody(Body, frozen=True):
    """`Placement`."""

    constraints: tuple[str, ...] = ()
    preferences: tuple[PreferenceBody, ...] = ()
    max_replicas: int = 0
    platforms: tuple[PlatformBody, ...] = ()
    strategy: str = ""

    def row(self, before: Placement) -> Placement:
        """The same in our words. Raises: InvalidArgument."""
        wishes = (one for one in before.preferences if not one.spread_descriptor)
        return Placement(
            constraints=self.constraints,
            preferences=tuple(one.row(wishes) for one in self.preferences),
            platforms=tuple(Platform(one.architecture, one.os) for one in self.platforms),
            max_replicas=self.max_replicas,
            strategy=chosen(
                PlacementStrategy, self.strategy, "Placement.Strategy", before.strategy
            ),
        )


class NetworkBody(Body, frozen=True):
    """One of `Networks`."""

    target: str = ""
    aliases: tuple[str, ...] = ()
    driver_opts: dict[str, str] = field(default_factory=dict)
    addresses: tuple[str, ...] | None = None

    def row(self, before: list[NetworkAttachmentConfig]) -> NetworkAttachmentConfig:
        """The same in our words; addresses stay, and the wish is taken out of `before`."""
        had = taken(before, lambda one: one.target == self.target)
        addresses = self.addresses
        if addresses is None:
            addresses = () if had is None else had.addresses
        return NetworkAttachmentConfig(self.target, self.aliases, addresses, self.driver_opts)


class TaskBody(Body, frozen=True):
    """`TaskTemplate`."""

    container_spec: ContainerBody | None = None
    plugin_spec: Body | None = None
    network_attachment_spec: Body | None = None
    resources: RequirementsBody = RequirementsBody()
    restart_policy: RestartBody | None = None
    placement: PlacementBody = PlacementBody()
    networks: tuple[NetworkBody, ...] = ()
    log_driver: DriverBody | None = None
    force_update: int = 0
    runtime: str = ""
    disconnect_policy: DisconnectBody | None = None
    listen_timeout: int | None = None

    def row(self, before: TaskSpec, networks: tuple[NetworkBody, ...]) -> TaskSpec:
        """The same in our words. networks: of old clients, which have them elsewhere.

        Raises: InvalidArgument, Unimplemented.
        """
        container = self._container()
        had = before.runtime if isinstance(before.runtime, ContainerSpec) else ContainerSpec()
        disconnect, attached = self.disconnect_policy, list(before.networks)
        return before.replaced(
            runtime=container.row(had),
            resources=self.resources.row(before.resources),
            restart=self.restart_policy and self.restart_policy.row(before.restart),
            placement=self.placement.row(before.placement),
            log_driver=self.log_driver and self.log_driver.row(),
            networks=tuple(one.row(attached) for one in self.networks or networks),
            force_update=self.force_update,
            disconnect=before.disconnect if disconnect is None else disconnect.row(),
            listen_timeout_ns=kept(self.listen_timeout, before.listen_timeout_ns),
        )

    def _container(self) -> ContainerBody:
        if self.runtime == "plugin" or self.plugin_spec is not None:
            raise Unimplemented("TaskTemplate.PluginSpec: plugins cannot be services here")
        if self.network_attachment_spec is not None:
            raise InvalidArgument(
                "TaskTemplate.NetworkAttachmentSpec: attachments are made by"
                " `docker network connect`, not as services"
            )
        if self.container_spec is None or self.runtime not in {"", _CONTAINER}:
            raise InvalidArgument("mismatched Runtime and *Spec fields")
        return self.container_spec


def kept(wished: int | None, before: int | None) -> int | None:
    """What is wished; where nothing is said, what is there."""
    return before if wished is None else wished


def taken(rest: list[Item], fits: Callable[[Item], bool]) -> Item | None:
    """The first that fits, taken out of the list; None when none does."""
    for place, item in enumerate(rest):
        if fits(item):
            return rest.pop(place)
    return None
