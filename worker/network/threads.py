"""A thread for calls that block in the kernel, so that nothing blocks the event loop.

It lives in the network namespace of the thread that first runs something in it.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from shoal.errors import Internal, PermissionDenied

Result = TypeVar("Result")


class KernelThread:
    """One thread for blocking calls, in order; the kernel's refusals become our errors."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    async def run(self, call: Callable[[], Result]) -> Result:
        """Run `call` in the thread. A cancelled caller does not stop it half-way."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, call)
        except OSError as error:  # NetlinkError is one
            if error.errno in (errno.EPERM, errno.EACCES):
                raise PermissionDenied(
                    f"the node's network needs root (CAP_NET_ADMIN, CAP_SYS_ADMIN): {error}"
                ) from error
            raise Internal(f"the kernel refused a change to the node's network: {error}") from error

    def later(self, call: Callable[[], None]) -> None:
        """Queue `call`, which deals with its errors itself; nobody waits for it."""
        self._executor.submit(call)

    def stop(self) -> None:
        """End the thread after what is queued."""
        self._executor.shutdown(wait=False)
