"""Applies the newest endpoints to the data plane and acknowledges their version.

Never falls behind: versions that arrive while one is being applied are merged into the next. Never
acknowledges what is not in force: when applying fails it is tried again. Ports that could not be
served are tried again after a while, since the process that holds one may end; so is everything
while a port answers at the addresses of an interface, which may change.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import structlog

from shoal.aio.signal import Signal
from shoal.errors import SwarmError

PORT_RETRY_S = 5.0
APPLY_RETRY_S = 1.0

PortErrors = Mapping[tuple[str, int], str]
"""Reason by (protocol, port), of the ports that this node cannot serve."""

_log = structlog.get_logger()


class EndpointApplier:
    """Drives one data plane; `begin` starts over for a new session."""

    def __init__(
        self,
        apply: Callable[[], Awaitable[PortErrors]],
        *,
        looks_again: Callable[[], bool] = lambda: False,
    ) -> None:
        """looks_again: whether what is applied depends on more than what the managers say."""
        self._apply = apply
        self._looks_again = looks_again
        self._wanted: int | None = None
        self._news = Signal()
        self.problem = ""
        """Why the newest endpoints are not in force; empty when they are."""

    def begin(self) -> None:
        """A new session: what was wanted before counts no more."""
        self._wanted = None

    def want(self, version: int) -> None:
        """This version is complete and may be applied."""
        if version != self._wanted:
            self._wanted = version
            self._news.set()

    async def run(self, acknowledge: Callable[[int, PortErrors], Awaitable[None]]) -> None:
        """Apply for ever; what `acknowledge` raises ends the run."""
        acknowledged: tuple[int, PortErrors] | None = None
        retry_s: float | None = None
        while True:
            await self._news.wait(retry_s)
            version = self._wanted
            if version is None:
                continue  # set in an earlier session
            try:
                errors = dict(await self._apply())
            except (SwarmError, OSError) as error:
                self.problem = f"endpoints version {version} is not applied: {error}"
                _log.error("endpoints.not_applied", version=version, reason=str(error))
                retry_s = APPLY_RETRY_S
                continue
            self.problem = ""
            retry_s = PORT_RETRY_S if errors or self._looks_again() else None
            if acknowledged != (version, errors):
                await acknowledge(version, errors)
                acknowledged = (version, errors)
