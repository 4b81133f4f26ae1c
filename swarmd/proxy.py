"""Passes calls for the node's other processes on, as bytes (`shoal.wire.relay`)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any

import grpc
from typing_extensions import override

from shoal.api.v1 import control_pb2, logs_pb2, node_pb2, stacks_pb2, watch_pb2
from shoal.errors import SwarmError
from shoal.wire.errors import abort
from shoal.wire.relay import relay
from swarmd.children import MANAGER, WORKER
from swarmd.upstream import Upstream

ROUTES: Mapping[str, str] = {
    control_pb2.DESCRIPTOR.services_by_name["Control"].full_name: MANAGER,
    logs_pb2.DESCRIPTOR.services_by_name["Logs"].full_name: MANAGER,
    stacks_pb2.DESCRIPTOR.services_by_name["Stacks"].full_name: MANAGER,
    watch_pb2.DESCRIPTOR.services_by_name["Watch"].full_name: MANAGER,
    node_pb2.DESCRIPTOR.services_by_name["Images"].full_name: WORKER,
}
"""Service -> the process that serves it. What is not here cannot be reached through swarmd."""

Refusal = Callable[[str], SwarmError | None]


class Proxy(grpc.GenericRpcHandler):
    """The handler of every service in ROUTES.

    upstreams: by process name. refuse: why calls for a process are refused now, None if not.
    """

    def __init__(self, upstreams: Mapping[str, Upstream], refuse: Refusal) -> None:
        self._upstreams = upstreams
        self._refuse = refuse

    @override
    def service(self, handler_call_details: Any) -> Any:
        """The handler of a method, None if it is not ours."""
        method: str = handler_call_details.method
        process = ROUTES.get(method.rpartition("/")[0].lstrip("/"))
        if process is None:
            return None
        upstream = self._upstreams[process]

        async def forward(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            error = self._refuse(process)
            if error is not None:
                await abort(context, error)
            async with aclosing(relay(upstream, method, requests, context)) as responses:
                async for response in responses:
                    yield response

        return grpc.stream_stream_rpc_method_handler(forward)
