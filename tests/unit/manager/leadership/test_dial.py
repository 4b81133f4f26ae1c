"""The channel to the leader follows the certificate, and calls under way go on."""

from __future__ import annotations

import asyncio

import grpc

from manager.leadership.calls import Dial

METHOD = "/test/Wait"


class Identity:
    """What the dial shows; replaced as a renewal does it."""

    def __init__(self) -> None:
        self.now = object()


async def serve(called: asyncio.Event, release: asyncio.Event) -> tuple[grpc.aio.Server, int]:
    async def wait(request, context):
        called.set()
        await release.wait()
        return b"done"

    handler = grpc.unary_unary_rpc_method_handler(wait)
    server = grpc.aio.server()
    server.add_registered_method_handlers("test", {"Wait": handler})
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("test", {"Wait": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, port


async def test_a_renewed_certificate_opens_another_channel_and_ends_no_call():
    called, release, identity = asyncio.Event(), asyncio.Event(), Identity()
    server, port = await serve(called, release)
    dial = Dial(grpc.aio.insecure_channel, lambda: identity.now)
    try:
        await dial.to(f"127.0.0.1:{port}")
        first = await dial.channel()
        assert await dial.channel() is first
        call = first.unary_unary(METHOD)(b"")
        await called.wait()
        identity.now = object()
        second = await dial.channel()
        assert second is not first
        assert await dial.channel() is second
        release.set()
        assert await call == b"done"
        identity.now = object()
        assert await dial.channel() is not second
        assert first.get_state() is grpc.ChannelConnectivity.SHUTDOWN
        assert second.get_state() is not grpc.ChannelConnectivity.SHUTDOWN
    finally:
        await dial.close()
        await server.stop(None)
    assert second.get_state() is grpc.ChannelConnectivity.SHUTDOWN
