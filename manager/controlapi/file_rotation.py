"""Another content under the same name: rotation of secrets and configs, decided on one view.

Content never changes under an id, so rotating makes a new object that takes the name over; the one
before becomes NAME@REVISION and is kept for as long as a service refers to it, or may go back to
it. Services are not touched: each is updated for itself, by its own rules, and can be rolled back.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from manager.controlapi.files import find, refers, table
from manager.controlapi.validate_files import file_spec, noun_of
from manager.controlapi.versions import check_version
from manager.store.view import View
from shoal.errors import InvalidArgument
from shoal.model.files import FORMER_MARK, FileRow, files_of, is_former, revision_of
from shoal.model.objects import Secret, Service
from shoal.model.plan import Change, create, remove, update
from shoal.model.specs import ContainerSpec
from shoal.model.types import Meta

ROTATED_BYTES_MAX = 1_400_000
"""Both contents go into one log entry."""
REMOVED_MAX = 100
"""Former contents that are removed at once; the others go next time."""


def rotate_file(
    view: View, kind: type[FileRow], reference: str, data: bytes, *, version: int, new_id: str
) -> list[Change]:
    """Another content for a name; none if it has this one already.

    version: what the caller read; 0: whatever is there. Raises: NotFound, InvalidArgument,
    SequenceConflict.
    """
    row = find(view, kind, reference)
    name, noun = row.spec.annotations.name, noun_of(kind)
    check_version(row.meta.version, version, noun)
    if is_former(row):
        current = name.partition(FORMER_MARK)[0]
        raise InvalidArgument(f"{noun} {name} is a former content: rotate {noun} {current}")
    if hmac.compare_digest(data, row.spec.data):
        return []
    fresh = row.replaced(
        id=new_id,
        meta=Meta(),
        spec=row.spec.replaced(data=data),
        revision=revision_of(row) + 1,
    )
    file_spec(fresh)
    if len(data) + len(row.spec.data) > ROTATED_BYTES_MAX:
        raise InvalidArgument(
            f"{noun} {name}: the contents before and after have more than {ROTATED_BYTES_MAX}"
            f" bytes together: create another {noun}, and give that to the services"
        )
    kept_as = row.spec.annotations.replaced(name=f"{name}{FORMER_MARK}{revision_of(row)}")
    former = row.replaced(spec=row.spec.replaced(annotations=kept_as))
    return [update(former), create(fresh), *_unused(view, kind, name)]


def followers(view: View, kind: type[FileRow], name: str) -> list[Service]:
    """Services that name a secret or config and refer to a former content of it."""
    former = {row.id for row in formers_of(view, kind, name)}
    return sorted(
        (service for service in view.services if _follows(service, kind, name, former)),
        key=lambda service: service.spec.annotations.name,
    )


def formers_of(view: View, kind: type[FileRow], name: str) -> list[FileRow]:
    """The former contents of a name."""
    prefix = f"{name}{FORMER_MARK}"
    return [row for row in table(view, kind) if row.spec.annotations.name.startswith(prefix)]


def _unused(view: View, kind: type[FileRow], name: str) -> Iterable[Change]:
    formers = [row for row in formers_of(view, kind, name) if not _is_kept(view, kind, row)]
    return [remove(row) for row in formers[:REMOVED_MAX]]


def _is_kept(view: View, kind: type[FileRow], row: FileRow) -> bool:
    """Whether a service refers to it, or a revision of a stack, or would when it is rolled back."""
    if any(
        held.id == row.id
        for stack in view.stacks
        for held in (stack.secrets if kind is Secret else stack.configs)
    ):
        return True
    return any(
        refers(spec.task, kind, {row.id})
        for service in view.services
        for spec in (service.spec, service.previous_spec)
        if spec is not None
    )


def _follows(service: Service, kind: type[FileRow], name: str, former: set[str]) -> bool:
    container = service.spec.task.runtime
    return isinstance(container, ContainerSpec) and any(
        of is kind and reference.id in former and reference.name.lower() == name.lower()
        for of, reference, _ in files_of(container)
    )
