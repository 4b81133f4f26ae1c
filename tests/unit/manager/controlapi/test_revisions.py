"""Revisions of services, and their updates halted and resumed, over the wire."""

from __future__ import annotations

from shoal.api.v1 import control_pb2 as pb
from shoal.model.enums import UpdateState
from shoal.model.types import UpdateStatus
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


async def test_an_update_is_halted_and_resumed(api):
    created = await create(api)
    pause = pb.PauseServiceUpdateRequest(service="web")
    text = await refusal(api.control.PauseServiceUpdate(pause))
    assert text == "FAILED_PRECONDITION service web: no update is under way"
    for running, halted in (
        (UpdateState.UPDATING, UpdateState.PAUSED),
        (UpdateState.ROLLBACK_STARTED, UpdateState.ROLLBACK_PAUSED),
    ):
        service = api.store.view.services.resolve(created.id)
        api.put(service.replaced(update_status=UpdateStatus(state=running, started_at_ns=1)))
        answer = (await api.control.PauseServiceUpdate(pause)).service
        assert answer.update_status.state == halted
        assert answer.update_status.message.endswith(" paused by request")
        resume = pb.PauseServiceUpdateRequest(service="web", resume=True)
        answer = (await api.control.PauseServiceUpdate(resume)).service
        assert answer.update_status.state == running
        assert answer.update_status.started_at_ns == api.clock.now_ns(), (
            "earlier ends count no more"
        )
        text = await refusal(api.control.PauseServiceUpdate(resume))
        assert text == "FAILED_PRECONDITION service web: no update is paused"
    pause.version.index = 1
    assert "update out of sequence" in await refusal(api.control.PauseServiceUpdate(pause))
