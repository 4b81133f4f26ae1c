"""A small process in place of a manager or a worker: real gRPC, behaviours by method name.

It writes what is asked of it, one line each, to `<state>/<name>.calls`. Files in the state
directory change its mind: `<name>.unready` (why it is not ready), `refuse-remove`, `<name>.exit`
(exit at once with that code), `news` (an encoded MembershipNews), `follow` (hold a session with a
manager, as an agent does, and pass its news on).
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import grpc

from shoal.api.v1 import node_pb2, node_pb2_grpc, types_pb2
from shoal.errors import FailedPrecondition, SwarmError
from shoal.model.types import NodeDescription
from shoal.security.grpc_tls import channel_credentials, secure_channel
from shoal.security.identity import read_identity
from shoal.security.lock import LockKeys, decode_lock_keys
from shoal.settings.node import read_node_config
from shoal.settings.process import die_with_parent
from shoal.wire.errors import ErrorInterceptor


class Script:
    def __init__(self, name: str, state: Path) -> None:
        self.name, self.state = name, state
        self.keys = LockKeys()
        self.stop = asyncio.Event()

    def record(self, line: str) -> None:
        with (self.state / f"{self.name}.calls").open("a") as file:
            file.write(line + "\n")


class Telemetry(node_pb2_grpc.TelemetryServicer):
    def __init__(self, script: Script) -> None:
        self.script = script

    async def GetMetrics(self, request, context):
        name = self.script.name
        text = f"# HELP fake_{name} A metric.\n# TYPE fake_{name} gauge\nfake_{name} 1\n"
        return node_pb2.GetMetricsResponse(text=text.encode())

    async def GetReadiness(self, request, context):
        reason = self.script.state / f"{self.script.name}.unready"
        if reason.exists():
            return node_pb2.GetReadinessResponse(ready=False, reason=reason.read_text())
        return node_pb2.GetReadinessResponse(ready=True)


class WorkerControl(node_pb2_grpc.WorkerControlServicer):
    def __init__(self, script: Script) -> None:
        self.script = script

    async def Reload(self, request, context):
        self.script.keys = decode_lock_keys(request.lock_keys)
        member = (self.script.state / "identity").is_dir()
        self.script.record(f"reload {'member' if member else 'nobody'}")
        return node_pb2.ReloadResponse()

    async def ReloadIdentity(self, request, context):
        self.script.keys = decode_lock_keys(request.lock_keys)
        self.script.record("reload identity")
        return node_pb2.ReloadIdentityResponse()

    async def WatchMembership(self, request, context):
        if (self.script.state / "follow").exists():
            async with aclosing(session_news(self.script)) as all_news:
                async for news in all_news:
                    yield news
            return
        told = b""
        path = self.script.state / "news"
        while True:
            news = path.read_bytes() if path.exists() else b""
            if news != told:
                told = news
                yield node_pb2.MembershipNews.FromString(news)
            await asyncio.sleep(0.02)

    async def RemoveTasks(self, request, context):
        if (self.script.state / "refuse-remove").exists():
            raise FailedPrecondition("a mount is busy")
        self.script.record("remove")
        return node_pb2.RemoveTasksResponse()


async def session_news(script: Script) -> AsyncGenerator[node_pb2.MembershipNews, None]:
    """What managers say in a session of this node, with whatever identity is on disk."""
    state = script.state
    from worker.agent.client import ManagerClient  # only here: children start often

    turn = 0
    while True:
        try:
            identity, config = (
                read_identity(state, script.keys),
                read_node_config(state / "node.json"),
            )
            credentials = channel_credentials(
                identity.root_pem, identity.certificate_pem, identity.key_pem
            )
            managers = config.managers or (config.advertise_address,)
            async with (
                secure_channel(managers[turn % len(managers)], credentials) as channel,
                aclosing(ManagerClient(channel).session(NodeDescription(hostname="n"))) as session,
            ):
                async for news in session:
                    certificate = news.node.certificate
                    yield node_pb2.MembershipNews(
                        desired_role=types_pb2.NodeRole.ValueType(news.node.spec.desired_role),
                        managers=news.managers,
                        root_ca=news.root_ca,
                        renew_certificate=certificate is not None and certificate.renew,
                    )
        except SwarmError:
            turn += 1  # this one may be a manager no more
            await asyncio.sleep(0.1)


class Raw(grpc.GenericRpcHandler):
    """Any other method: bytes in, bytes out."""

    def __init__(self, script: Script) -> None:
        self.script = script

    def service(self, details):
        name = details.method.rpartition("/")[2]
        behaviour = getattr(self, name.lower(), None)
        if behaviour is None:
            return None
        return grpc.stream_stream_rpc_method_handler(behaviour)

    async def echo(self, requests, context):
        given = {k: v for k, v in context.invocation_metadata() if k.startswith("x-")}
        await context.send_initial_metadata(tuple(given.items()))
        count = 0
        async for request in requests:
            count += 1
            yield request
        context.set_trailing_metadata((("x-count", str(count)), ("x-raw-bin", b"\x00\xff")))

    async def sum(self, requests, context):
        total = 0
        async for request in requests:
            total += len(request)
        yield str(total).encode()

    async def fail(self, requests, context):
        async for request in requests:
            yield request
        await context.abort(
            grpc.StatusCode.ABORTED,
            "the object changed",
            (("shoal-code", "sequence_conflict"), ("x-more", "yes")),
        )

    async def bare(self, requests, context):
        async for _ in requests:
            break
        await context.abort(grpc.StatusCode.DATA_LOSS, "no code of ours")
        yield b""

    async def hang(self, requests, context):
        self.script.record("hang begins")
        try:
            yield b"begun"
            await asyncio.Event().wait()
        finally:
            self.script.record("hang ends")

    async def listimages(self, requests, context):
        """How much time is left. As where one request is expected: its end is not waited for."""
        await anext(aiter(requests))
        remaining = context.time_remaining()
        yield b"none" if remaining is None else str(remaining).encode()

    async def flood(self, requests, context):
        count = 0
        try:
            while True:
                yield bytes(64 * 1024)
                count += 1
                (self.script.state / "flood").write_text(str(count))
        finally:
            self.script.record("flood ends")

    async def die(self, requests, context):
        yield b"last words"
        signal.raise_signal(signal.SIGKILL)


async def serve(script: Script, socket: Path) -> None:
    server = grpc.aio.server(interceptors=[ErrorInterceptor()])
    node_pb2_grpc.add_TelemetryServicer_to_server(Telemetry(script), server)
    node_pb2_grpc.add_WorkerControlServicer_to_server(WorkerControl(script), server)
    server.add_generic_rpc_handlers((Raw(script),))
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, script.stop.set)
    if (script.state / f"{script.name}.stubborn").exists():
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, script.record, "ignored")
    script.record("serving")
    await script.stop.wait()
    await server.stop(0.5)
    script.record("ended")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--state-dir", type=Path)
    parser.add_argument("--run-dir", type=Path)
    parser.add_argument("--parent-pid", type=int)
    arguments = parser.parse_args()
    die_with_parent(arguments.parent_pid)
    wanted_exit = arguments.state_dir / f"{arguments.name}.exit"
    if wanted_exit.exists():
        sys.exit(int(wanted_exit.read_text()))
    script = Script(arguments.name, arguments.state_dir)
    asyncio.run(serve(script, arguments.run_dir / f"{arguments.name}.sock"))


if __name__ == "__main__":
    main()
