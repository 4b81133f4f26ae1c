"""The calls that move a whole cluster: a backup out of it, one into a node that is in none.

Invariant: a backup that breaks off, or does not match the checksum its manager sends, is an error.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

import grpc

from shoal.api.v1 import control_pb2, control_pb2_grpc, node_pb2, node_pb2_grpc, types_pb2
from shoal.errors import Unavailable
from shoal.wire.uploads import GO_ON_KEY
from swarmctl.client import Client
from swarmctl.types import BackupPart, RestoredCluster, RestoreOptions

TIMEOUT_S = 3600.0


async def backup(client: Client) -> AsyncIterator[BackupPart]:
    """The parts of a backup file. Raises: SwarmError; what came before is worth nothing then."""
    call = control_pb2_grpc.ControlStub(client.channel).BackupCluster(
        control_pb2.BackupClusterRequest(), timeout=TIMEOUT_S
    )
    digest, sha256 = hashlib.sha256(), b""
    summary = control_pb2.BackupSummary()
    try:
        async for message in call:
            if message.HasField("summary"):
                summary = message.summary
            digest.update(message.chunk)
            sha256 = message.sha256
            yield BackupPart(
                chunk=message.chunk,
                objects=message.objects,
                total=summary.objects,
                cluster_id=summary.cluster_id,
                version=summary.version.index,
            )
    except grpc.aio.AioRpcError as error:
        raise client.failure(error) from error
    finally:
        call.cancel()
    if sha256 != digest.digest():
        why = "does not match its checksum" if sha256 else "broke off before its end"
        raise Unavailable(f"the backup {why}: try again")


async def restore(
    client: Client, options: RestoreOptions, chunks: AsyncIterator[bytes]
) -> RestoredCluster:
    """Restore a cluster on the daemon's node. Raises: SwarmError; what `chunks` raises."""
    call = node_pb2_grpc.NodeControlStub(client.channel).Restore(timeout=TIMEOUT_S)
    try:
        await call.write(node_pb2.RestoreRequest(options=_options(options)))
        # A refusal that comes while we write would be lost in the library: wait for the word.
        if GO_ON_KEY in dict(await call.initial_metadata()):
            async for chunk in chunks:
                await call.write(node_pb2.RestoreRequest(chunk=chunk))
            await call.write(node_pb2.RestoreRequest(last=True))
            await call.done_writing()
        answer = await call
    except grpc.aio.AioRpcError as error:
        raise client.failure(error) from error
    finally:
        call.cancel()
    return RestoredCluster(
        node_id=answer.node_id,
        cluster_id=answer.cluster_id,
        advertise_address=answer.advertise_address,
        objects=answer.objects,
        created_at_ns=answer.created_at_ns,
        known_nodes=answer.known_nodes,
        autolock=answer.autolock,
    )


def _options(options: RestoreOptions) -> node_pb2.RestoreOptions:
    return node_pb2.RestoreOptions(
        advertise_address=options.advertise_address,
        listen_address=options.listen_address,
        availability=types_pb2.NodeAvailability.ValueType(options.availability),
        data_path_address=options.data_path_address,
        ca_key=options.ca_key,
    )
