"""Revisions over the wire."""

from __future__ import annotations

from shoal.api.v1 import control_pb2 as pb
from tests.support.managing import refusal
from tests.unit.manager.controlapi.conftest import create, spec_pb


async def test_revisions_are_listed_and_gone_back_to(api):
    created = await create(api, replicas=2)
    update = pb.UpdateServiceRequest(service="web", spec=spec_pb(replicas=5))
    await api.control.UpdateService(update)
    answer = await api.control.ListServiceRevisions(pb.ListServiceRevisionsRequest(service="web"))
    assert (answer.service_id, answer.current) == (created.id, 2)
    assert [one.number for one in answer.revisions] == [2, 1]
    assert answer.revisions[1].spec == created.spec
    back = pb.UpdateServiceRequest(service="web", rollback=True, rollback_to=1)
    assert (await api.control.UpdateService(back)).service.spec == created.spec
    back.rollback_to = 9
    text = await refusal(api.control.UpdateService(back))
    assert text == "NOT_FOUND revision 9 of service web is not kept: 1 to 3 are"
    lonely = pb.UpdateServiceRequest(service="web", spec=spec_pb(), rollback_to=1)
    assert "rollback to: give it together" in await refusal(api.control.UpdateService(lonely))
