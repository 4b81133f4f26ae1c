"""Metrics and health over HTTP, on an address of the user's choice (loopback by default)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
from aiohttp import web

from shoal.errors import FailedPrecondition, InvalidArgument
from swarmd.addresses import join_host_port, split_host_port
from swarmd.page import CONTENT_TYPE
from swarmd.status import NodeStatus

_SHUTDOWN_S = 2.0


@asynccontextmanager
async def serve(address: str, status: NodeStatus) -> AsyncIterator[str]:
    """Serve /metrics, /healthz and /readyz. Result: the address that is listened on.

    address: HOST:PORT; port 0 takes a free one; without a host, every address of the machine.
    Raises: InvalidArgument for a bad address, FailedPrecondition when it cannot be listened on.
    """
    host, port = parse_address(address)
    application = web.Application()
    application.add_routes(_Pages(status).routes())
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=_SHUTDOWN_S)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise FailedPrecondition(
                f"metrics address: {address} cannot be listened on ({error.strerror}): free it, "
                'or give another --metrics-addr ("" for none)'
            ) from error
        bound_host, bound_port = runner.addresses[0][:2]
        yield join_host_port(bound_host, bound_port)
    finally:
        await runner.cleanup()


def parse_address(address: str) -> tuple[str | None, int]:
    """Host (None: all) and port. Raises InvalidArgument."""
    field = "metrics address"
    if address.rpartition(":")[2] == "0":  # any free port
        host = address.rpartition(":")[0].strip("[]")
        return host or None, 0
    if address.startswith(":"):
        return None, split_host_port(field, f"all{address}")[1] or 0
    host, port = split_host_port(field, address)
    if port is None:
        raise InvalidArgument(f"{field}: {address!r} has no port: write HOST:PORT")
    return host, port


class _Pages:
    def __init__(self, status: NodeStatus) -> None:
        self._status = status

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/metrics", self._metrics),
            web.get("/healthz", self._healthz),
            web.get("/readyz", self._readyz),
        ]

    async def _metrics(self, request: web.Request) -> web.Response:
        del request
        page = await self._status.metrics_page()
        return web.Response(body=page, headers={"Content-Type": CONTENT_TYPE})

    async def _healthz(self, request: web.Request) -> web.Response:
        del request
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        del request
        reasons = await self._status.reasons()
        body = msgspec.json.encode({"ready": not reasons, "reasons": reasons}) + b"\n"
        return web.Response(
            body=body, status=503 if reasons else 200, content_type="application/json"
        )
