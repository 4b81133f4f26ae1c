"""Changes to secrets and configs, and the references of services to them: decided on one view.

Both are immutable but for their labels, so whoever has the id has the content. What is stored in a
service is the id and the name; one that is referred to is not removed.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection, Iterable, Iterator

from manager.controlapi.validate_files import file_spec, is_template, noun_of, text_of
from manager.controlapi.versions import check_version
from manager.store.view import TableView, View
from shoal.errors import AlreadyExists, InvalidArgument, NotFound
from shoal.model import templates
from shoal.model.defaults import is_terminal, is_wanted
from shoal.model.enums import UpdateState
from shoal.model.files import FILES_BYTES_MAX, FORMER_MARK, FileRow, files_of, is_former
from shoal.model.objects import Config, Secret, Service
from shoal.model.plan import Change, create, remove, update
from shoal.model.specs import ConfigSpec, ContainerSpec, SecretSpec, ServiceSpec, TaskSpec
from shoal.model.types import FileReference

UNDER_WAY = frozenset({UpdateState.UPDATING, UpdateState.PAUSED})
"""A service in these goes back to its previous spec when its update fails."""


def create_file(view: View, row: FileRow) -> list[Change]:
    """A new secret or config. Raises: AlreadyExists, InvalidArgument, Unimplemented."""
    file_spec(row)
    name = row.spec.annotations.name
    if table(view, type(row)).by_name(name) is not None:
        raise AlreadyExists(f"{noun_of(type(row))} {name} already exists")
    return [create(row)]


def update_file(
    view: View, kind: type[FileRow], reference: str, spec: SecretSpec | ConfigSpec, *, version: int
) -> list[Change]:
    """Other labels for a secret or config; the data may be left out, or be what it is.

    version: what the caller read; 0: whatever is there. Raises: NotFound, InvalidArgument,
    SequenceConflict.
    """
    row = find(view, kind, reference)
    check_version(row.meta.version, version, noun_of(kind))
    if is_former(row):
        raise InvalidArgument(
            f"{noun_of(kind)} {row.spec.annotations.name} is a former content: its labels stay"
        )
    is_same = (
        spec.annotations.name == row.spec.annotations.name
        and (not spec.data or hmac.compare_digest(spec.data, row.spec.data))
        and spec.templating in {None, row.spec.templating}
        and (not isinstance(spec, SecretSpec) or spec.driver is None)
    )
    if not is_same:
        raise InvalidArgument("only updates to Labels are allowed")
    changed = row.replaced(spec=row.spec.replaced(annotations=spec.annotations))
    file_spec(changed)
    return [update(changed)]


def remove_file(view: View, kind: type[FileRow], reference: str) -> list[Change]:
    """Remove a secret or config that no service uses, with its former contents.

    Raises: NotFound, InvalidArgument.
    """
    row = find(view, kind, reference)
    prefix = f"{row.spec.annotations.name}{FORMER_MARK}"
    rows = [row] + [o for o in table(view, kind) if o.spec.annotations.name.startswith(prefix)]
    ids = {one.id for one in rows}
    users = sorted(service.spec.annotations.name for service in _users(view, kind, ids))
    if users:
        many = "s" if len(users) > 1 else ""
        raise InvalidArgument(
            f"{noun_of(kind)} '{row.spec.annotations.name}' is in use by the following"
            f" service{many}: {', '.join(users)}"
        )
    return [remove(one) for one in rows]


def find(view: View, kind: type[FileRow], reference: str) -> FileRow:
    """A secret or config by id, name or unique id prefix. Raises: NotFound, InvalidArgument."""
    return table(view, kind).resolve(reference)


def table(view: View, kind: type[FileRow]) -> TableView[Secret] | TableView[Config]:
    """All of one kind."""
    return view.secrets if kind is Secret else view.configs


def without_data(row: FileRow) -> FileRow:
    """What may be shown: of a secret, all but its data."""
    if isinstance(row, Secret):
        return row.replaced(spec=row.spec.replaced(data=b""))
    return row


def with_file_ids(view: View, spec: ServiceSpec) -> ServiceSpec:
    """The spec with every secret and config it names by its id and its name.

    Raises: InvalidArgument for what is missing, too much, or refers to what the service lacks.
    """
    container = spec.task.runtime
    if not isinstance(container, ContainerSpec) or not (container.secrets or container.configs):
        return spec
    changed = container.replaced(
        secrets=_resolved(view, Secret, container.secrets),
        configs=_resolved(view, Config, container.configs),
    )
    _check_contents(view, changed)
    return spec.replaced(task=spec.task.replaced(runtime=changed))


def _resolved(
    view: View, kind: type[FileRow], references: Iterable[FileReference]
) -> tuple[FileReference, ...]:
    found: list[FileReference] = []
    missing: list[str] = []
    for reference in references:
        row = _referred(view, kind, reference)
        if row is None:
            missing.append(reference.name or reference.id)
            continue
        name = reference.name if reference.id and reference.name else row.spec.annotations.name
        found.append(reference.replaced(id=row.id, name=name))
    if missing:
        noun = noun_of(kind) + ("s" if len(missing) > 1 else "")
        raise InvalidArgument(f"{noun} not found: {', '.join(missing)}")
    return tuple(found)


def _referred(view: View, kind: type[FileRow], reference: FileReference) -> FileRow | None:
    if reference.id:
        return table(view, kind).get(reference.id)
    try:
        return find(view, kind, reference.name)
    except NotFound:
        return None


def _check_contents(view: View, container: ContainerSpec) -> None:
    """Refuse more than a node is to keep in memory, and templates that call what is not there."""
    size_bytes = 0
    targets = {
        "secret": {reference.target for reference in container.secrets},
        "config": {reference.target for reference in container.configs},
    }
    for kind, reference, _ in files_of(container):
        row = find(view, kind, reference.id)
        size_bytes += len(row.spec.data)
        parts = templates.parse(text_of(row), functions=True) if is_template(row) else ()
        for function, known in targets.items():
            for name in templates.calls(parts, function):
                if name not in known:
                    raise InvalidArgument(
                        f"{noun_of(kind)} {reference.name}: its template asks for {function}"
                        f" {name!r}: give the service a {function} with this target"
                    )
    if size_bytes > FILES_BYTES_MAX:
        raise InvalidArgument(
            f"secrets and configs: {size_bytes} bytes together, at most {FILES_BYTES_MAX} for one"
            " service: keep large content in the image or in a mount"
        )


def _users(view: View, kind: type[FileRow], ids: Collection[str]) -> Iterator[Service]:
    """Services that refer to one of these, would again if their update failed, or still do.

    The last: a task that an update is about to replace may have to be told of its files again.
    """
    for service in view.services:
        specs = [service.spec.task]
        state = service.update_status.state if service.update_status is not None else None
        if service.previous_spec is not None and state in UNDER_WAY:
            specs.append(service.previous_spec.task)
        tasks = view.tasks_of_service(service.id).values()
        specs += [task.spec for task in tasks if is_wanted(task) and not is_terminal(task)]
        if any(refers(spec, kind, ids) for spec in specs):
            yield service


def refers(spec: TaskSpec, kind: type[FileRow], ids: Collection[str]) -> bool:
    """Whether the containers of such tasks see one of these."""
    container = spec.runtime
    return isinstance(container, ContainerSpec) and any(
        of is kind and reference.id in ids for of, reference, _ in files_of(container)
    )
