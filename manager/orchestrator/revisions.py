"""Revisions: the last specs of a service, each under a number, to look at and to go back to.

Invariant: what a service asks for is its newest revision, for every change goes through `record`,
in the transaction of the change. Numbers rise by one and are never used again, so the ids of all
that is kept follow from the service alone. The reaper takes away what KEPT newer ones follow, and
all of a service that is gone. A service from before revisions were kept gets its first two with its
next change.
"""

from __future__ import annotations

from collections.abc import Iterable

from manager.store.draft import Draft
from manager.store.view import View
from shoal.errors import NotFound
from shoal.model.enums import RevisionCause
from shoal.model.objects import Revision, Service
from shoal.model.row import Row
from shoal.model.specs import ServiceSpec

KEPT = 10
"""Revisions of one service, the one in force among them."""


class Recorded(Row, frozen=True):
    """A changed service with the number of its revision, and the rows to be made with it."""

    service: Service
    made: tuple[Revision, ...] = ()


def revision_id(service_id: str, number: int) -> str:
    """Where the revision with that number is."""
    return f"{service_id}.{number}"


def revisions_of(view: View, service: Service) -> list[Revision]:
    """What is kept of a service, the newest first."""
    numbers = range(service.revision, max(0, service.revision - KEPT), -1)
    found = (view.revisions.get(revision_id(service.id, number)) for number in numbers)
    return [revision for revision in found if revision is not None]


def revision(view: View, service: Service, number: int) -> Revision:
    """One that is kept. Raises NotFound, saying which are."""
    found = view.revisions.get(revision_id(service.id, number))
    if found is None:
        kept = sorted(one.number for one in revisions_of(view, service))
        which = f"{kept[0]} to {kept[-1]} are" if kept else "none is, before its next change"
        name = service.spec.annotations.name
        raise NotFound(f"revision {number} of service {name} is not kept: {which}")
    return found


def first(service: Service) -> Recorded:
    """A new service."""
    service = service.replaced(revision=1)
    return Recorded(service=service, made=(_made(service, RevisionCause.CREATED),))


def record(view: View, before: Service, after: Service, cause: RevisionCause) -> Recorded:
    """The change of a service's spec; nothing new where the spec stays what it is."""
    if after.spec == before.spec:
        return Recorded(service=after)
    made: list[Revision] = []
    if before.revision == 0:
        before = before.replaced(revision=1)
        made.append(_made(before, RevisionCause.CREATED))
    after = after.replaced(revision=before.revision + 1)
    goes_back = cause in {RevisionCause.ROLLED_BACK, RevisionCause.FAILED_BACK}
    of = _number_of(revisions_of(view, before), after.spec) if goes_back else 0
    made.append(_made(after, cause, of=of))
    return Recorded(service=after, made=tuple(made))


def trim(draft: Draft, service: Service) -> None:
    """Remove what is older than the revisions to be kept; no gap hides anything that is older."""
    number = service.revision - KEPT
    while (old := draft.view.revisions.get(revision_id(service.id, number))) is not None:
        if not draft.room(old):
            return
        draft.remove(old)
        number -= 1


def sweep(draft: Draft, service_id: str) -> None:
    """Remove the revisions of a service that is gone. Looks through all there are."""
    left = [one for one in draft.view.revisions if one.service_id == service_id]
    for one in draft.fitting(sorted(left, key=lambda one: one.number)):
        draft.remove(one)


def _made(service: Service, cause: RevisionCause, *, of: int = 0) -> Revision:
    return Revision(
        id=revision_id(service.id, service.revision),
        service_id=service.id,
        number=service.revision,
        spec=service.spec,
        cause=cause,
        of=of,
    )


def _number_of(kept: Iterable[Revision], spec: ServiceSpec) -> int:
    """The newest of the revisions with that spec, by its first number; 0: none has it."""
    return next((one.of or one.number for one in kept if one.spec == spec), 0)
