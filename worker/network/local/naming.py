"""What the node's networks say to its resolver process: frozen messages and their framing.

The worker says which containers there are and what they are called; the resolver (worker.resolver)
answers where it listens in each container's namespace. It outlives the worker, and is told
everything again by the next one. Frame: four bytes of length, big endian, and msgpack.
"""

from __future__ import annotations

import asyncio
from typing import Final, TypeVar

import msgspec

FRAME_BYTES_MAX: Final = 64 << 20
Kind = TypeVar("Kind")


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A container in one network with names."""

    network: str
    """Its id; `network_name` is what comes behind a name's dot."""
    network_name: str
    names: tuple[str, ...]
    """The first is what its addresses are called. None: it only asks."""
    ipv4: str = ""
    ipv6: str = ""
    links: tuple[tuple[str, str], ...] = ()
    """What this container calls others of the network, and their container ids."""


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """A container that asks. servers: who is asked about everything else."""

    container: str
    netns_path: str
    places: tuple[Place, ...]
    servers: tuple[str, ...] = ()
    forwards: bool = True
    """False: all its networks are internal, so nothing outside is resolved."""
    ports: tuple[int, int] = (0, 0)
    """Where it listened before, for UDP and TCP: taken again if they are free; 0: any."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A change. whole: what it names is all there is. leave: nobody needs it any more.

    others: whoever has names without asking here, by a key of his own: services, tasks of other
    nodes. others_gone: keys.
    """

    whole: bool = False
    leave: bool = False
    clients: tuple[Client, ...] = ()
    gone: tuple[str, ...] = ()
    others: dict[str, Place] = {}
    others_gone: tuple[str, ...] = ()


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """Where it listens for each client of the request, and why for some it does not."""

    ports: dict[str, tuple[int, int]] = {}
    errors: dict[str, str] = {}


async def read_message(reader: asyncio.StreamReader, kind: type[Kind]) -> Kind:
    """Raises: IncompleteReadError at the end, ValueError for what is no message."""
    length = int.from_bytes(await reader.readexactly(4), "big")
    if length > FRAME_BYTES_MAX:
        raise ValueError(f"a frame of {length} bytes: at most {FRAME_BYTES_MAX}")
    return msgspec.msgpack.decode(await reader.readexactly(length), type=kind)


async def write_message(writer: asyncio.StreamWriter, message: msgspec.Struct) -> None:
    """Raises: OSError."""
    data = msgspec.msgpack.encode(message)
    writer.write(len(data).to_bytes(4, "big") + data)
    await writer.drain()
