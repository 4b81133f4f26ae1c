"""Services and their tasks: the engine's calls about them. Rows in, rows out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable

import grpc

from engine.cluster.calls import CALL_TIMEOUT_S, PAGE_SIZE, AnswerT, Calls
from engine.cluster.words import of_service
from shoal.api.v1 import control_pb2, logs_pb2, specs_pb2, types_pb2
from shoal.docker.objects import ServiceCounts
from shoal.model.objects import Service, Task
from shoal.model.specs import ServiceSpec
from shoal.wire.errors import from_rpc_error
from shoal.wire.objects import from_pb, to_pb


class ServiceCalls(Calls):
    """Calls about services and tasks. Services are named by id, name or unique id prefix."""

    async def services(
        self, filters: control_pb2.Filters | None = None
    ) -> list[tuple[Service, ServiceCounts]]:
        """The services that fit, each with its counts."""
        request = control_pb2.ListServicesRequest(filters=filters, page_size=PAGE_SIZE)
        found: list[tuple[Service, ServiceCounts]] = []
        async for answer in self._pages(self._control.ListServices, request):
            for service, status in zip(answer.services, answer.statuses, strict=True):
                counts = ServiceCounts(
                    status.running_tasks, status.desired_tasks, status.completed_tasks
                )
                found.append((from_pb(service, Service), counts))
        return found

    async def service(self, reference: str, *, insert_defaults: bool = False) -> Service:
        """One of them."""
        request = control_pb2.GetServiceRequest(service=reference, insert_defaults=insert_defaults)
        answer = await self._call(self._control.GetService(request, timeout=CALL_TIMEOUT_S))
        return from_pb(answer.service, Service)

    async def create_service(self, spec: ServiceSpec) -> tuple[str, list[str]]:
        """The new service's id, and what its user should know."""
        request = control_pb2.CreateServiceRequest(spec=to_pb(spec, specs_pb2.ServiceSpec))
        call = self._control.CreateService(request, timeout=CALL_TIMEOUT_S)
        answer = await self._changed(call, spec.annotations.name)
        return answer.service.id, list(answer.warnings)

    async def update_service(self, service_id: str, version: int, spec: ServiceSpec) -> list[str]:
        """Another spec for a service; what its user should know."""
        request = control_pb2.UpdateServiceRequest(
            service=service_id,
            version=types_pb2.Version(index=version),
            spec=to_pb(spec, specs_pb2.ServiceSpec),
        )
        call = self._control.UpdateService(request, timeout=CALL_TIMEOUT_S)
        answer = await self._changed(call, spec.annotations.name, service_id)
        return list(answer.warnings)

    async def roll_back_service(self, service: Service, version: int) -> list[str]:
        """Back to the previous spec; what its user should know."""
        request = control_pb2.UpdateServiceRequest(
            service=service.id, version=types_pb2.Version(index=version), rollback=True
        )
        call = self._control.UpdateService(request, timeout=CALL_TIMEOUT_S)
        answer = await self._changed(call, service.spec.annotations.name, service.id)
        return list(answer.warnings)

    async def remove_service(self, reference: str) -> None:
        """Remove a service and its tasks."""
        request = control_pb2.RemoveServiceRequest(service=reference)
        await self._call(self._control.RemoveService(request, timeout=CALL_TIMEOUT_S))

    async def tasks(self, filters: control_pb2.Filters | None = None) -> list[Task]:
        """The tasks that fit."""
        request = control_pb2.ListTasksRequest(filters=filters, page_size=PAGE_SIZE)
        found: list[Task] = []
        async for answer in self._pages(self._control.ListTasks, request):
            found += (from_pb(one, Task) for one in answer.tasks)
        return found

    async def task(self, reference: str) -> Task:
        """A task by id or unique id prefix."""
        request = control_pb2.GetTaskRequest(task=reference)
        answer = await self._call(self._control.GetTask(request, timeout=CALL_TIMEOUT_S))
        return from_pb(answer.task, Task)

    async def logs(
        self, request: logs_pb2.SubscribeLogsRequest
    ) -> AsyncGenerator[logs_pb2.SubscribeLogsMessage, None]:
        """Lines as the nodes send them; ends by itself unless followed."""
        call = self._logs.SubscribeLogs(request)
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise await self._told(from_rpc_error(error)) from error
        finally:
            call.cancel()

    async def _changed(self, call: Awaitable[AnswerT], name: str, service_id: str = "") -> AnswerT:
        """The answer of a manager to a change of the service that is called so."""
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            refusal = of_service(from_rpc_error(error), name, service_id)
            raise await self._told(refusal) from error
