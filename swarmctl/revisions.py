"""The revisions of a service: the call that lists them, and each as a row of `service history`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc

from shoal.api.v1 import control_pb2 as pb
from shoal.api.v1 import control_pb2_grpc
from shoal.docker.specs import service_spec_json
from shoal.docker.values import Record
from shoal.docker.words import timestamp
from shoal.model.enums import RevisionCause
from shoal.model.objects import Revision
from shoal.model.row import Row
from shoal.model.specs import ContainerSpec, ServiceSpec
from shoal.wire.objects import from_pb
from swarmctl.client import CALL_TIMEOUT_S, Client
from swarmctl.render.rows import Columns
from swarmctl.render.tables import ellipsis
from swarmctl.render.times import distance

REVISION_COLUMNS: Columns = {
    "Revision": "REVISION",
    "CreatedSince": "CREATED",
    "Cause": "CAUSE",
    "Image": "IMAGE",
    "Changed": "CHANGED",
}
CHANGED_WIDTH = 60
_CAUSES = {
    RevisionCause.CREATED: "created",
    RevisionCause.UPDATED: "updated",
    RevisionCause.ROLLED_BACK: "rolled back",
    RevisionCause.FAILED_BACK: "update failed, back",
}


async def service_revisions(client: Client, reference: str) -> tuple[int, list[Revision]]:
    """The number of the revision in force, and those that are kept, the newest first."""
    stub: Any = control_pb2_grpc.ControlStub(client.channel)
    request = pb.ListServiceRevisionsRequest(service=reference)
    try:
        answer = await stub.ListServiceRevisions(request, timeout=CALL_TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        raise client.failure(error) from error
    return answer.current, [from_pb(one, Revision) for one in answer.revisions]


def revision_rows(
    revisions: list[Revision], current: int, *, now_ns: int, trunc: bool
) -> list[Record]:
    """Rows for a table or a template; each says what it changed of the one before."""
    before = [*revisions[1:], None]
    return [
        _row(one, older, is_current=one.number == current, now_ns=now_ns, trunc=trunc)
        for one, older in zip(revisions, before, strict=True)
    ]


def revision_json(revision: Revision) -> Record:
    """One revision, whole."""
    return Record(
        {
            "Revision": revision.number,
            "CreatedAt": timestamp(revision.meta.created_at_ns),
            "Cause": cause_text(revision),
            "Spec": service_spec_json(revision.spec),
        }
    )


def cause_text(revision: Revision) -> str:
    """What made it, and which one was gone back to."""
    text = _CAUSES[revision.cause]
    return f"{text} to {revision.of}" if revision.of else text


def changed_fields(old: Row, new: Row) -> Iterator[str]:
    """Names of the fields, at any depth, in which two specs differ.

    Rows of the same kind are looked into; a list or map counts as one field.
    """
    for name in new.__struct_fields__:
        mine, other = getattr(old, name), getattr(new, name)
        if mine == other:
            continue
        if isinstance(mine, Row) and type(mine) is type(other):
            yield from changed_fields(mine, other)
        else:
            yield name.removesuffix("_ns").replace("_", "-")


def _row(
    revision: Revision, older: Revision | None, *, is_current: bool, now_ns: int, trunc: bool
) -> Record:
    changed = "" if older is None else ", ".join(changed_fields(older.spec, revision.spec))
    return Record(
        {
            "Revision": f"{revision.number} *" if is_current else str(revision.number),
            "CreatedAt": timestamp(revision.meta.created_at_ns),
            "CreatedSince": f"{distance(now_ns - revision.meta.created_at_ns)} ago",
            "Cause": cause_text(revision),
            "Image": _image(revision.spec),
            "Changed": ellipsis(changed, CHANGED_WIDTH) if trunc else changed,
        }
    )


def _image(spec: ServiceSpec) -> str:
    runtime = spec.task.runtime
    return runtime.image if isinstance(runtime, ContainerSpec) else ""
