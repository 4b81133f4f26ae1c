"""The fake daemon's revisions of services, and updates that are halted and resumed."""

from __future__ import annotations

from shoal.api.v1 import control_pb2, objects_pb2
from shoal.model.enums import RevisionCause, UpdateState
from shoal.model.objects import Revision
from shoal.model.types import UpdateStatus
from shoal.wire.objects import to_pb
from tests.unit.swarmctl.fake_files import Servicer, answered
from tests.unit.swarmctl.rows import meta


class FakeHistory(Servicer):
    @answered
    def PauseServiceUpdate(self, request, context):
        state = UpdateState.COMPLETED if request.resume else UpdateState.PAUSED
        service = self.state.service(request.service)
        service = service.replaced(update_status=UpdateStatus(state=state, message="by request"))
        self.state.services[service.id] = service
        return control_pb2.PauseServiceUpdateResponse(service=to_pb(service, objects_pb2.Service))

    @answered
    def ListServiceRevisions(self, request, context):
        """As a service that was updated once, if it has a previous spec."""
        service = self.state.service(request.service)
        specs = [spec for spec in (service.previous_spec, service.spec) if spec is not None]
        revisions = [
            Revision(
                id=f"{service.id}.{number}", service_id=service.id, number=number, spec=spec,
                meta=meta(100), cause=RevisionCause(number - 1),
            )
            for number, spec in enumerate(specs, start=1)
        ]  # fmt: skip
        return control_pb2.ListServiceRevisionsResponse(
            service_id=service.id,
            current=len(specs),
            revisions=[to_pb(one, objects_pb2.Revision) for one in reversed(revisions)],
        )
