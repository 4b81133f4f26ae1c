"""The cluster's changes as they are committed."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import grpc

from engine.cluster.calls import Calls
from shoal.api.v1 import types_pb2, watch_pb2, watch_pb2_grpc
from shoal.wire.errors import from_rpc_error


class WatchCalls(Calls):
    """The one call about changes."""

    async def watch(
        self, kinds: tuple[str, ...], after: int
    ) -> AsyncGenerator[watch_pb2.WatchMessage, None]:
        """Changes after a version (0: from now on), with what was before them; it does not end.

        Raises: FailedPrecondition where the managers do not reach back so far, or the watch fell
        behind; Unavailable.
        """
        request = watch_pb2.WatchRequest(
            selectors=[watch_pb2.WatchSelector(kind=kind) for kind in kinds],
            resume_from=types_pb2.Version(index=after),
            include_old_object=True,
        )
        stub: Any = watch_pb2_grpc.WatchStub(self._channel)
        call = stub.Watch(request)
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()
