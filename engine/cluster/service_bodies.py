"""Services' specs, read from Docker's JSON. Pure.

A client sends the whole spec, and Docker's clients only what Docker knows. So that a spec that
comes back as it was shown is the same spec, a body is read on top of `before`, what the service has
by now (an empty spec, for a new one): fields of ours that are absent stay, and so does what
Docker's clients leave out because it is zero. What cannot be done is refused by name.
"""

from __future__ import annotations

from msgspec import field

from engine.cluster.choices import chosen
from engine.cluster.container_bodies import Body
from engine.cluster.task_bodies import NetworkBody, TaskBody, kept, taken
from shoal.errors import InvalidArgument
from shoal.model.enums import (
    DependencyCondition,
    EndpointMode,
    FailureAction,
    PortProtocol,
    PublishMode,
    PublishPreference,
    PublishSource,
    UpdateOrder,
)
from shoal.model.specs import (
    GlobalJobMode,
    GlobalMode,
    ReplicatedJobMode,
    ReplicatedMode,
    ServiceMode,
    ServiceSpec,
)
from shoal.model.types import (
    Annotations,
    EndpointSpec,
    PortConfig,
    ServiceDependency,
    UpdateConfig,
)


class ReplicatedBody(Body, frozen=True):
    """`Mode.Replicated`."""

    replicas: int = 1


class ReplicatedJobBody(Body, frozen=True):
    """`Mode.ReplicatedJob`."""

    max_concurrent: int = 1
    total_completions: int | None = None


class ModeBody(Body, frozen=True):
    """`Mode`."""

    replicated: ReplicatedBody | None = None
    everywhere: Body | None = field(default=None, name="Global")
    replicated_job: ReplicatedJobBody | None = None
    global_job: Body | None = None

    def row(self) -> ServiceMode:
        """The same in our words; one replica when nothing is said. Raises: InvalidArgument."""
        found: list[ServiceMode] = []
        if self.replicated is not None:
            found.append(ReplicatedMode(self.replicated.replicas))
        if self.everywhere is not None:
            found.append(GlobalMode())
        if self.replicated_job is not None:
            job = self.replicated_job
            total = job.max_concurrent if job.total_completions is None else job.total_completions
            found.append(ReplicatedJobMode(job.max_concurrent, total))
        if self.global_job is not None:
            found.append(GlobalJobMode())
        if len(found) > 1:
            raise InvalidArgument("must specify only one service mode")
        return found[0] if found else ReplicatedMode(replicas=1)


class UpdateBody(Body, frozen=True):
    """`UpdateConfig`, `RollbackConfig`. The deadline is ours."""

    parallelism: int = 0
    delay: int = 0
    failure_action: str = ""
    monitor: int | None = None
    max_failure_ratio: float = 0.0
    order: str = ""
    progress_deadline: int | None = None

    def row(self, before: UpdateConfig | None) -> UpdateConfig:
        """The same in our words. Docker's clients leave out a monitor of zero."""
        was_zero = before is not None and before.monitor_ns == 0
        return UpdateConfig(
            parallelism=self.parallelism,
            delay_ns=self.delay,
            failure_action=chosen(
                FailureAction, self.failure_action, "FailureAction", FailureAction.PAUSE
            ),
            monitor_ns=0 if was_zero and self.monitor is None else self.monitor,
            max_failure_ratio=self.max_failure_ratio,
            order=chosen(UpdateOrder, self.order, "update order", UpdateOrder.STOP_FIRST),
            progress_deadline_ns=kept(
                self.progress_deadline, None if before is None else before.progress_deadline_ns
            ),
        )


class PortBody(Body, frozen=True):
    """One of `Ports`. Where it answers and whom it prefers is ours."""

    name: str = ""
    protocol: str = ""
    target_port: int = 0
    published_port: int = 0
    publish_mode: str = ""
    sticky: bool | None = None
    source: str = ""
    prefer: str = ""
    ip: str | None = field(default=None, name="IP")
    interface: str | None = None
    weight_label: str | None = None

    def row(self, before: list[PortConfig]) -> PortConfig:
        """The same in our words; what is ours of a port stays, and is taken out of `before`."""
        port = PortConfig(
            name=self.name,
            protocol=chosen(PortProtocol, self.protocol, "Protocol", PortProtocol.TCP),
            target_port=self.target_port,
            published_port=self.published_port,
            publish_mode=chosen(PublishMode, self.publish_mode, "PublishMode", PublishMode.INGRESS),
        )
        had = taken(before, lambda one: _docker_part(one) == port) or port
        return port.replaced(
            sticky=had.sticky if self.sticky is None else self.sticky,
            source=chosen(PublishSource, self.source, "Ports.Source", had.source),
            prefer=chosen(PublishPreference, self.prefer, "Ports.Prefer", had.prefer),
            address=had.address if self.ip is None else self.ip,
            interface=had.interface if self.interface is None else self.interface,
            weight_label=had.weight_label if self.weight_label is None else self.weight_label,
        )


class EndpointBody(Body, frozen=True):
    """`EndpointSpec`."""

    mode: str = ""
    ports: tuple[PortBody, ...] = ()

    def row(self, before: EndpointSpec) -> EndpointSpec:
        """The same in our words. Raises: InvalidArgument."""
        mode = chosen(EndpointMode, self.mode, "EndpointSpec.Mode", EndpointMode.VIP)
        had = list(before.ports)
        return EndpointSpec(mode, tuple(one.row(had) for one in self.ports))


class DependencyBody(Body, frozen=True):
    """One of `DependsOn`, which is ours."""

    service: str = ""
    condition: str = ""

    def row(self) -> ServiceDependency:
        """The same in our words. Raises: InvalidArgument."""
        started = DependencyCondition.STARTED
        condition = chosen(DependencyCondition, self.condition, "DependsOn.Condition", started)
        return ServiceDependency(self.service, condition)


class ServiceBody(Body, frozen=True):
    """`POST /services/create`, `POST /services/{id}/update`."""

    name: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    task_template: TaskBody = TaskBody()
    mode: ModeBody = ModeBody()
    update_config: UpdateBody | None = None
    rollback_config: UpdateBody | None = None
    networks: tuple[NetworkBody, ...] = ()
    endpoint_spec: EndpointBody = EndpointBody()
    drain_timeout: int | None = None
    ttl_after_finish: int | None = field(default=None, name="TTLAfterFinish")
    priority: int | None = None
    disruption_budget: int | None = None
    depends_on: tuple[DependencyBody, ...] | None = None

    def row(self, before: ServiceSpec) -> ServiceSpec:
        """The same in our words. Raises: InvalidArgument, Unimplemented."""
        needs = self.depends_on
        return before.replaced(
            annotations=Annotations(self.name, self.labels),
            task=self.task_template.row(before.task, self.networks),
            mode=self.mode.row(),
            update=self.update_config and self.update_config.row(before.update),
            rollback=self.rollback_config and self.rollback_config.row(before.rollback),
            endpoint=self.endpoint_spec.row(before.endpoint),
            drain_timeout_ns=kept(self.drain_timeout, before.drain_timeout_ns),
            ttl_after_finish_ns=kept(self.ttl_after_finish, before.ttl_after_finish_ns),
            priority=kept(self.priority, before.priority) or 0,
            disruption_budget=kept(self.disruption_budget, before.disruption_budget),
            depends_on=before.depends_on if needs is None else tuple(one.row() for one in needs),
        )


def _docker_part(port: PortConfig) -> PortConfig:
    """The port without what is ours."""
    return PortConfig(
        name=port.name,
        protocol=port.protocol,
        target_port=port.target_port,
        published_port=port.published_port,
        publish_mode=port.publish_mode,
    )
