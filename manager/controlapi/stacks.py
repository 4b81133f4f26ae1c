"""Changes to stacks: everything that a deployment writes, decided on one view.

A stack is a wish for several services with their networks, secrets and configs. It is compared
with what there is, by name, and what differs is created, updated or rotated by the same rules as
the single calls; the whole becomes one transaction and one revision. Deployed again, it changes
nothing.

What belongs to a stack is told by the label that Docker gives, so stacks that other clients made
are taken over. What bears another stack's label, or none but another content, is never touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from manager.controlapi import files, networks, services
from manager.controlapi.file_rotation import rotate_file
from manager.controlapi.stack_rows import (
    Act,
    Deployment,
    Step,
    members_of,
    revisions_of,
    without_contents,
)
from manager.controlapi.validate import SPEC_BYTES_MAX
from manager.controlapi.validate_files import noun_of
from manager.controlapi.validate_names import object_name
from manager.controlapi.versions import check_version
from manager.store.overlay import Overlay
from manager.store.view import View
from shoal.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from shoal.model.dependencies import in_order
from shoal.model.files import FileRow
from shoal.model.objects import Config, Network, Secret, Service, Stack
from shoal.model.plan import CHANGES_MAX, Change, create, remove, update
from shoal.model.specs import ContainerSpec, NetworkSpec, ServiceSpec, StackSpec
from shoal.model.stacks import IMAGE_LABEL, NAMESPACE_LABEL, REVISIONS_MAX, former_name, stack_name
from shoal.model.types import Annotations, StackFile

MEMBERS_MAX = 100
"""Services, networks, secrets and configs of one stack."""
SOURCE_BYTES_MAX = SPEC_BYTES_MAX


def deploy_stack(
    view: View,
    spec: StackSpec,
    *,
    prune: bool,
    version: int,
    ids: Iterator[str],
    now_ns: int,
    rolled_back_to: int = 0,
) -> Deployment:
    """Make the cluster hold what a stack wants.

    prune: services of the stack that it does not name any more are removed. version: of the newest
    revision, as the caller read it; 0: whatever is there. Raises: InvalidArgument, NotFound,
    AlreadyExists, FailedPrecondition, SequenceConflict, Unimplemented.
    """
    check_stack(spec)
    newest = view.stacks.by_name(spec.annotations.name)
    if newest is not None:
        check_version(newest.meta.version, version, "stack")
    elif version:
        raise NotFound(f"stack {spec.annotations.name} not found")
    work = _Deploying(view, spec, ids, now_ns=now_ns)
    if prune:
        work.prune()
    work.all()
    work.note_revision(newest, rolled_back_to)
    return work.result()


def put_file(view: View, row: FileRow, stack: str, *, new_id: str) -> list[Change]:
    """What makes a secret or config be there as a stack wants it."""
    name, noun = row.spec.annotations.name, noun_of(type(row))
    there = files.table(view, type(row)).by_name(name)
    if there is None:
        return files.create_file(view, row.replaced(id=new_id))
    owner = there.spec.annotations.labels.get(NAMESPACE_LABEL)
    if owner != stack and (owner is not None or there.spec.data != row.spec.data):
        raise AlreadyExists(
            f"{noun} {name} is there already and does not belong to the stack: declare it as"
            " external, or give another name"
        )
    changes = rotate_file(view, type(row), there.id, row.spec.data, version=0, new_id=new_id)
    after = Overlay(view)
    after.apply(changes)
    there = files.find(after, type(row), name)
    if there.spec.annotations.labels != row.spec.annotations.labels:
        spec = row.spec.replaced(data=there.spec.data)
        after.apply(files.update_file(after, type(row), there.id, spec, version=0))
    elif row.spec.templating != there.spec.templating:
        raise InvalidArgument(
            f"{noun} {name}: its template driver cannot be changed: give it another name"
        )
    return list(after.merged())


def check_stack(spec: StackSpec) -> None:
    """Refuse a stack whose parts do not fit together."""
    name = spec.annotations.name
    object_name("stack name", name)
    parts: Sequence[tuple[str, Sequence[Annotations]]] = (
        ("network", [one.annotations for one in spec.networks]),
        ("secret", [one.annotations for one in spec.secrets]),
        ("config", [one.annotations for one in spec.configs]),
        ("service", [one.annotations for one in spec.services]),
    )
    count = sum(len(members) for _, members in parts)
    if count > MEMBERS_MAX:
        raise InvalidArgument(f"stack {name}: {count} objects, at most {MEMBERS_MAX}: part it")
    if not spec.services:
        raise InvalidArgument(f"stack {name}: no services: name at least one")
    size_bytes = len(spec.source.encode("utf-8", "surrogatepass"))
    if size_bytes > SOURCE_BYTES_MAX:
        raise InvalidArgument(f"source: {size_bytes} bytes, at most {SOURCE_BYTES_MAX}")
    for kind, members in parts:
        if len({one.name.lower() for one in members}) < len(members):
            raise InvalidArgument(f"stack {name}: two {kind}s have the same name")
        for one in members:
            if one.labels.get(NAMESPACE_LABEL) != name:
                raise InvalidArgument(f"{kind} {one.name}: label {NAMESPACE_LABEL} must be {name}")


class _Deploying:
    """One deployment in the making; each step sees those before it."""

    def __init__(self, view: View, spec: StackSpec, ids: Iterator[str], *, now_ns: int) -> None:
        self._view = Overlay(view)
        self._spec = spec
        self._name = spec.annotations.name
        self._ids = ids
        self._now_ns = now_ns
        self._stored: list[ServiceSpec] = []
        self._steps: list[Step] = []
        self._warnings: list[str] = []
        self._revision = 0

    def result(self) -> Deployment:
        changes = self._view.merged()
        if len(changes) > CHANGES_MAX:
            raise InvalidArgument(
                f"stack {self._name}: {len(changes)} objects would change at once, at most"
                f" {CHANGES_MAX}: remove services by themselves first, or part the stack"
            )
        return Deployment(
            changes=changes,
            steps=tuple(self._steps),
            warnings=tuple(self._warnings),
            revision=self._revision,
        )

    def all(self) -> None:
        for network in self._spec.networks:
            self._network(network)
        for secret in self._spec.secrets:
            self._file(Secret(spec=secret))
        for config in self._spec.configs:
            self._file(Config(spec=config))
        by_name = {one.annotations.name: one for one in self._spec.services}
        graph = {name: [d.service for d in one.depends_on] for name, one in by_name.items()}
        for name in in_order(graph):
            self._service(by_name[name])

    def prune(self) -> None:
        """Remove services that are not named any more, those first that others depend on last."""
        named = {one.annotations.name for one in self._spec.services}
        for service in members_of(self._view.services, self._name):
            if service.spec.annotations.name not in named:
                self._do(services.remove_service(self._view, service.id))
                self._step("service", service.spec.annotations.name, Act.REMOVED, service.id,
                           old=service.spec)  # fmt: skip

    def note_revision(self, newest: Stack | None, rolled_back_to: int) -> None:
        """Keep what was deployed, where it differs from what was deployed last."""
        row = Stack(
            spec=without_contents(self._spec).replaced(services=tuple(self._stored)),
            secrets=self._holding(Secret, [one.annotations.name for one in self._spec.secrets]),
            configs=self._holding(Config, [one.annotations.name for one in self._spec.configs]),
            rolled_back_to=rolled_back_to,
        )
        if newest is not None:
            same = (newest.spec, newest.secrets, newest.configs)
            if same == (row.spec, row.secrets, row.configs) and not self._steps:
                return
            annotations = newest.spec.annotations.replaced(
                name=former_name(self._name, newest.revision)
            )
            former = newest.replaced(spec=newest.spec.replaced(annotations=annotations))
            self._do([update(former)])
        self._revision = 1 if newest is None else newest.revision + 1
        self._do([create(row.replaced(id=next(self._ids), revision=self._revision))])
        for old in revisions_of(self._view, self._name)[REVISIONS_MAX:]:
            self._do([remove(old)])

    def _network(self, spec: NetworkSpec) -> None:
        name = spec.annotations.name
        there = self._view.networks.by_name(name)
        if there is None:
            new_id = next(self._ids)
            self._do(networks.create_network(self._view, spec, network_id=new_id))
            self._step("network", name, Act.CREATED, new_id)
            return
        if there.spec.annotations.labels.get(NAMESPACE_LABEL) != self._name:
            raise AlreadyExists(
                f"network {name} is there already and does not belong to the stack: declare it as"
                " external, or give another name"
            )
        if _settings(there) == _settings(Network(spec=spec)):
            return
        if there.pending_delete:
            raise FailedPrecondition(
                f"network {name} is being removed, and had other settings: try again in a moment"
            )
        self._warnings.append(
            f"network {name} has other settings, which stay: a network never changes. Remove the"
            " stack to have it made anew"
        )

    def _file(self, row: FileRow) -> None:
        name, kind = row.spec.annotations.name, type(row)
        there = files.table(self._view, kind).by_name(name)
        new_id = next(self._ids)
        changes = put_file(self._view, row, self._name, new_id=new_id)
        if not changes:
            return
        self._do(changes)
        is_new = files.table(self._view, kind).get(new_id) is not None
        act = Act.CREATED if there is None else Act.ROTATED if is_new else Act.UPDATED
        found = files.find(self._view, kind, name)
        self._step(noun_of(kind), name, act, found.id)

    def _service(self, spec: ServiceSpec) -> None:
        name = spec.annotations.name
        there = self._view.services.by_name(name)
        if there is None:
            new_id = next(self._ids)
            made = services.create_service(self._view, spec, service_id=new_id, now_ns=self._now_ns)
            self._do(made)
            self._stored.append(spec)
            self._step("service", name, Act.CREATED, new_id, new=spec)
            return
        if there.spec.annotations.labels.get(NAMESPACE_LABEL) != self._name:
            raise AlreadyExists(
                f"service {name} is there already and does not belong to the stack: remove it, or"
                " name the stack otherwise"
            )
        spec = _pinned(there.spec, spec)
        self._stored.append(spec)
        changes = services.update_service(
            self._view, there.id, _kept(there.spec, spec), version=0, now_ns=self._now_ns
        )
        changed = changes[0].object
        if isinstance(changed, Service) and changed.spec != there.spec:
            self._do(changes)
            self._step("service", name, Act.UPDATED, there.id, old=there.spec, new=changed.spec)

    def _holding(self, kind: type[FileRow], names: Sequence[str]) -> tuple[StackFile, ...]:
        return tuple(
            StackFile(name=name, id=files.find(self._view, kind, name).id) for name in sorted(names)
        )

    def _do(self, changes: Sequence[Change]) -> None:
        self._view.apply(changes)

    def _step(
        self,
        kind: str,
        name: str,
        act: Act,
        object_id: str,
        *,
        old: ServiceSpec | None = None,
        new: ServiceSpec | None = None,
    ) -> None:
        self._steps.append(Step(kind=kind, name=name, act=act, id=object_id, old=old, new=new))


def _pinned(old: ServiceSpec, new: ServiceSpec) -> ServiceSpec:
    """The wish with what its image was pinned to before, unless it was looked up anew."""
    named = new.annotations.labels.get(IMAGE_LABEL)
    before, after = old.task.runtime, new.task.runtime
    if (
        not isinstance(before, ContainerSpec)
        or not isinstance(after, ContainerSpec)
        or after.image != named
        or old.annotations.labels.get(IMAGE_LABEL) != named
    ):
        return new
    placement = new.task.placement.replaced(platforms=old.task.placement.platforms)
    runtime = after.replaced(image=before.image)
    return new.replaced(task=new.task.replaced(runtime=runtime, placement=placement))


def _kept(old: ServiceSpec, new: ServiceSpec) -> ServiceSpec:
    """The wish with what a file cannot say: forced updates, and credentials of before."""
    task = new.task.replaced(force_update=old.task.force_update)
    before, after = old.task.runtime, task.runtime
    if (
        isinstance(before, ContainerSpec)
        and isinstance(after, ContainerSpec)
        and after.pull_options is None
    ):
        task = task.replaced(runtime=after.replaced(pull_options=before.pull_options))
    return new.replaced(task=task)


def _settings(network: Network) -> NetworkSpec:
    """What of a network's spec cannot be changed, but for what is the same in other words."""
    spec = network.spec
    driver = spec.driver
    ipam = spec.ipam.driver
    return spec.replaced(
        annotations=Annotations(name=spec.annotations.name),
        driver=driver.replaced(name=driver.name or "overlay") if driver is not None else None,
        ipam=spec.ipam.replaced(driver=None)
        if ipam is not None and not ipam.options
        else spec.ipam,
    )


def roll_back_stack(
    view: View,
    reference: str,
    revision: int,
    *,
    version: int,
    ids: Iterator[str],
    now_ns: int,
) -> Deployment:
    """Deploy what a stack was at a revision, as a new one; services that came later are removed.

    revision: 0 is the one before the newest. Raises: NotFound, FailedPrecondition, and what
    `deploy_stack` does.
    """
    found = revisions_of(view, reference)
    if not found:
        raise NotFound(f"stack {reference} not found, or it was not deployed by this cluster")
    choices = found if revision else found[1:]
    former = next((one for one in choices if revision in (0, one.revision)), None)
    if former is None:
        known = ", ".join(str(one.revision) for one in found)
        wanted = f"revision {revision}" if revision else "a revision before this one"
        raise NotFound(f"stack {reference}: {wanted} is not there, only {known}")
    spec = former.spec.replaced(
        annotations=former.spec.annotations.replaced(name=stack_name(former)),
        secrets=tuple(
            one.replaced(data=_content(view, Secret, former, one.annotations.name))
            for one in former.spec.secrets
        ),
        configs=tuple(
            one.replaced(data=_content(view, Config, former, one.annotations.name))
            for one in former.spec.configs
        ),
    )
    return deploy_stack(
        view, spec, prune=True, version=version, ids=ids, now_ns=now_ns,
        rolled_back_to=former.revision,
    )  # fmt: skip


def _content(view: View, kind: type[FileRow], stack: Stack, name: str) -> bytes:
    held = stack.secrets if kind is Secret else stack.configs
    for one in held:
        row = files.table(view, kind).get(one.id) if one.name == name else None
        if row is not None:
            return row.spec.data
    raise FailedPrecondition(
        f"stack {stack_name(stack)}: the content that {noun_of(kind)} {name} had at revision"
        f" {stack.revision} is gone: deploy the file of that time"
    )
