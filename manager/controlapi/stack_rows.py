"""What a stack consists of, how its parts change, and its removal: decided on one view. Pure."""

from __future__ import annotations

from collections import Counter
from enum import Enum
from typing import TypeVar

from manager.controlapi import files, networks, services
from manager.controlapi.validate_files import noun_of
from manager.store.overlay import Overlay
from manager.store.view import TableView, View
from shoal.errors import NotFound
from shoal.model.files import FileRow, is_former
from shoal.model.objects import Config, Network, Secret, Service, Stack
from shoal.model.plan import Change, remove
from shoal.model.row import Row
from shoal.model.specs import ServiceSpec, StackSpec
from shoal.model.stacks import NAMESPACE_LABEL, is_former_stack, stack_name

MemberT = TypeVar("MemberT", Service, Network, Secret, Config)


class Act(Enum):
    """What becomes of one object."""

    CREATED = "created"
    UPDATED = "updated"
    ROTATED = "rotated"
    REMOVED = "removed"


class Step(Row, frozen=True):
    """One object that a deployment changes. old, new: its specs, where it is a service."""

    kind: str
    name: str
    act: Act
    id: str
    old: ServiceSpec | None = None
    new: ServiceSpec | None = None


class Deployment(Row, frozen=True):
    """What a deployment does. `revision` 0: nothing, for everything is as it is wished."""

    changes: tuple[Change, ...] = ()
    steps: tuple[Step, ...] = ()
    warnings: tuple[str, ...] = ()
    revision: int = 0


def without_contents(spec: StackSpec) -> StackSpec:
    """The spec as it is stored and shown."""
    return spec.replaced(
        secrets=tuple(one.replaced(data=b"") for one in spec.secrets),
        configs=tuple(one.replaced(data=b"") for one in spec.configs),
    )


def remove_stack(view: View, name: str) -> tuple[list[Change], list[Step]]:
    """Remove everything of a stack. Networks go when the last task on them has ended.

    Raises: NotFound; InvalidArgument or FailedPrecondition where others use what is to go.
    """
    work = Overlay(view)
    steps: list[Step] = []
    for service in members_of(view.services, name):
        work.apply(services.remove_service(work, service.id))
        steps.append(Step("service", service.spec.annotations.name, Act.REMOVED, service.id))
    owned: list[FileRow] = [*members_of(view.secrets, name), *members_of(view.configs, name)]
    for row in owned:
        if not is_former(row):
            work.apply(files.remove_file(work, type(row), row.id))
            noun = noun_of(type(row))
            steps.append(Step(noun, row.spec.annotations.name, Act.REMOVED, row.id))
    for network in members_of(view.networks, name):
        work.apply(networks.remove_network(work, network.id))
        steps.append(Step("network", network.spec.annotations.name, Act.REMOVED, network.id))
    for stack in revisions_of(view, name):
        work.apply([remove(stack)])
    changes = list(work.merged())
    if not changes:
        raise NotFound(f"nothing found in stack: {name}")
    return changes, steps


def revisions_of(view: View, name: str) -> list[Stack]:
    """All revisions of a stack that are kept, the newest first."""
    found = [one for one in view.stacks if stack_name(one).lower() == name.lower()]
    return sorted(found, key=lambda one: -one.revision)


class Summary(Row, frozen=True):
    """One line of `stack ls`. revision 0: a client made the stack, and keeps it to itself."""

    name: str
    services: int
    networks: int
    secrets: int
    configs: int
    revision: int
    deployed_at_ns: int


def summaries(view: View) -> list[Summary]:
    """All stacks, whoever made them, by name."""
    newest = {one.spec.annotations.name: one for one in view.stacks if not is_former_stack(one)}
    services, networks = _counts(view.services), _counts(view.networks)
    secrets, configs = _counts(view.secrets), _counts(view.configs)
    return [
        Summary(
            name=name,
            services=services[name],
            networks=networks[name],
            secrets=secrets[name],
            configs=configs[name],
            revision=newest[name].revision if name in newest else 0,
            deployed_at_ns=newest[name].meta.created_at_ns if name in newest else 0,
        )
        for name in sorted({*services, *networks, *secrets, *configs, *newest})
    ]


def _counts(rows: TableView[MemberT]) -> Counter[str]:
    labels = (row.spec.annotations.labels.get(NAMESPACE_LABEL) for row in rows)
    return Counter(name for name in labels if name)


def members_of(rows: TableView[MemberT], name: str) -> list[MemberT]:
    """Objects that bear a stack's label, by name."""
    found = [row for row in rows if row.spec.annotations.labels.get(NAMESPACE_LABEL) == name]
    return sorted(found, key=lambda row: row.spec.annotations.name)
