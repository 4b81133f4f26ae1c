"""A daemon that speaks just enough of the node's API to form a cluster, for tests of the lab.

It is a real process in the node's namespaces: the manager takes joins on its address over TCP, so
that a cluster only forms when the lab's network carries them. It starts the processes a node has
(manager, worker, keeper) as plain sleepers. With `--break init` or `--break start` it fails there.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
from pathlib import Path

import grpc

from shoal.api.v1 import control_pb2, node_pb2, node_pb2_grpc, objects_pb2
from shoal.api.v1 import types_pb2 as types

TOKEN = "token-of-the-standin"


def sleeper(directory: Path, name: str) -> None:
    script = directory / name
    script.write_text("import signal\nwhile True:\n    signal.pause()\n")
    subprocess.Popen([sys.executable, str(script)], start_new_session=name == "keeper")


class Standin(node_pb2_grpc.NodeControlServicer):
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.hostnames = [options.hostname]
        self.tcp = grpc.aio.server()

    async def Info(self, request, context):
        return node_pb2.InfoResponse(hostname=self.options.hostname, state="inactive")

    async def Init(self, request, context):
        if self.options.break_at == "init":
            print("the standin will not be initialised", flush=True)
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "told to fail")
        self.tcp.add_insecure_port(f"{request.advertise_address}:2377")
        node_pb2_grpc.add_NodeControlServicer_to_server(self, self.tcp)
        await self.tcp.start()
        return node_pb2.InitResponse(
            join_tokens=types.JoinTokens(worker=TOKEN, manager=TOKEN),
            advertise_address=f"{request.advertise_address}:2377",
        )

    async def Join(self, request, context):
        if not request.remote_addresses:  # from another node: its name stands in the token's place
            self.hostnames.append(request.advertise_address)
            return node_pb2.JoinResponse()
        if request.token != TOKEN:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "wrong token")
        async with grpc.aio.insecure_channel(request.remote_addresses[0]) as channel:
            stub = node_pb2_grpc.NodeControlStub(channel)
            await stub.Join(
                node_pb2.JoinRequest(advertise_address=self.options.hostname), timeout=10
            )
        return node_pb2.JoinResponse()

    async def Leave(self, request, context):
        return node_pb2.LeaveResponse()


def list_nodes(standin: Standin) -> grpc.GenericRpcHandler:
    async def answer(request, context):
        del request, context
        ready = types.NodeStatus(state=types.NODE_STATE_READY)
        nodes = [
            objects_pb2.Node(
                id=name, description=types.NodeDescription(hostname=name), status=ready
            )
            for name in standin.hostnames
        ]
        return control_pb2.ListNodesResponse(nodes=nodes)

    method = grpc.unary_unary_rpc_method_handler(
        answer,
        request_deserializer=control_pb2.ListNodesRequest.FromString,
        response_serializer=control_pb2.ListNodesResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler("shoal.api.v1.Control", {"ListNodes": method})


async def serve(options: argparse.Namespace) -> None:
    standin = Standin(options)
    server = grpc.aio.server()
    node_pb2_grpc.add_NodeControlServicer_to_server(standin, server)
    server.add_generic_rpc_handlers((list_nodes(standin),))
    server.add_insecure_port(f"unix:{options.run_dir}/swarmd.sock")
    await server.start()
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", required=True)
    parser.add_argument("--hostname", required=True)
    parser.add_argument("--break", dest="break_at", default="")
    options = parser.parse_args()
    if options.break_at == "start":
        sys.exit("the standin will not start")
    for name in ("manager", "worker", "keeper"):
        sleeper(Path(options.run_dir), name)
    asyncio.run(serve(options))


if __name__ == "__main__":
    main()
