"""A thread that looks at services through the managers, again and again, and keeps what it saw."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from shoal.api.v1 import control_pb2 as pb
from shoal.api.v1 import control_pb2_grpc, types_pb2
from shoal.security.grpc_tls import channel_options
from tests.names.facts import Asker, Place, Snapshot

CALL_TIMEOUT_S = 2.0
"""A manager that is cut off or dead is not waited for longer: another one is asked."""
PAUSE_S = 0.02
FIRST_LOOK_S = 40.0
RECENT_LOOKS = 200


class Managers:
    """Calls to whichever manager answers."""

    def __init__(self, sockets: Sequence[Path]) -> None:
        self._channels = [
            grpc.insecure_channel(f"unix:{path}", options=channel_options()) for path in sockets
        ]
        # The generated stub serves both kinds of channels; its types know one.
        stub: Any = control_pb2_grpc.ControlStub
        self._stubs: list[Any] = [stub(one) for one in self._channels]

    def look(self, service: str) -> Snapshot | None:
        """What the leader shows of a service; None: no manager knows a leader."""
        request = pb.ListServiceEndpointsRequest(service=service)
        asked_s = time.monotonic()
        shown = self._call("ListServiceEndpoints", request)
        if shown is None:
            return None
        ready = pb.SERVICE_ENDPOINT_STATE_READY
        return Snapshot(
            asked_s=asked_s,
            heard_s=time.monotonic(),
            manager_id=shown.manager_id,
            version=shown.version,
            ready=frozenset(
                Place(one.network, address, one.task_id)
                for one in shown.network_endpoints
                for address in one.addresses
                if one.state == ready
            ),
            acknowledged={node.node_id: node.version for node in shown.nodes if node.version},
        )

    def askers(self, service: str) -> dict[str, Asker]:
        """The service's running tasks that have a process, by id."""
        shown = self._call("ListTasks", pb.ListTasksRequest(filters=pb.Filters(services=[service])))
        return {
            task.id: Asker(
                task_id=task.id,
                node_id=task.node_id,
                service=service,
                pid=task.status.container.pid,
                networks=frozenset(),
            )
            for task in (shown.tasks if shown is not None else ())
            if task.status.state == types_pb2.TASK_STATE_RUNNING and task.status.container.pid
        }

    def close(self) -> None:
        """Idempotent."""
        for channel in self._channels:
            channel.close()

    def _call(self, method: str, request: Any) -> Any:
        for _ in self._stubs:
            try:
                return getattr(self._stubs[0], method)(request, timeout=CALL_TIMEOUT_S)
            except grpc.RpcError:
                self._stubs.append(self._stubs.pop(0))
        return None


class Observer:
    """Looks at some services; `latest` and `since` may be asked from other threads."""

    def __init__(self, managers: Managers, services: Sequence[str]) -> None:
        self._managers = managers
        self._seen: dict[str, list[Snapshot]] = {service: [] for service in services}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="observer", daemon=True)

    def seen(self, service: str) -> list[Snapshot]:
        """All looks so far, in order."""
        return list(self._seen[service])

    def recent(self, service: str) -> Iterator[Snapshot]:
        """The last looks, newest first."""
        return reversed(self._seen[service][-RECENT_LOOKS:])

    def latest(self, service: str) -> Snapshot:
        """The newest look."""
        return self._seen[service][-1]

    def look_again(self) -> None:
        """Wait until all services were looked at once more, from now on. Raises: TimeoutError."""
        now_s = time.monotonic()
        while any(not s or s[-1].asked_s < now_s for s in self._seen.values()):
            if time.monotonic() > now_s + FIRST_LOOK_S:
                raise TimeoutError("no manager shows endpoints")
            time.sleep(PAUSE_S)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Look while the body runs."""
        self._thread.start()
        try:
            self.look_again()
            yield
        finally:
            self._stop.set()
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(PAUSE_S):
            for service, seen in self._seen.items():
                snapshot = self._managers.look(service)
                if snapshot is not None:
                    seen.append(snapshot)
