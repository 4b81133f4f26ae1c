"""Asking the servers outside: bytes through, only the number is ours.

Each question goes out with a random number from a socket of its own, so with a random source port,
to one server at a time: a forged answer must guess both. Bounded: so many questions at once, so
long each.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Sequence
from typing import Final

AT_ONCE: Final = 1024
SERVER_DEADLINE_S: Final = 2.0
TCP_DEADLINE_S: Final = 4.0
SERVERS_MAX: Final = 3
_PORT: Final = 53
_BYTES_MAX: Final = 65535


class Forwarder:
    """Asks on behalf of containers, from the node's own network namespace."""

    def __init__(self, port: int = _PORT) -> None:
        self._port = port
        self._room = asyncio.Semaphore(AT_ONCE)

    async def ask(self, query: bytes, servers: Sequence[str], *, udp: bool) -> bytes | None:
        """The first answer; None when there is none."""
        if self._room.locked():
            return None  # more would only wait: the client asks again
        async with self._room:
            for server in servers[:SERVERS_MAX]:
                number = secrets.token_bytes(2)
                sent = number + query[2:]
                try:
                    answer = await (self._udp if udp else self._tcp)(server, sent)
                except (OSError, EOFError, TimeoutError):
                    continue
                if answer is not None:
                    return query[:2] + answer[2:]
        return None

    async def _udp(self, server: str, sent: bytes) -> bytes | None:
        loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in server else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as outward:
            outward.setblocking(False)
            await loop.sock_connect(outward, (server, self._port))
            await loop.sock_sendall(outward, sent)
            async with asyncio.timeout(SERVER_DEADLINE_S):
                while True:
                    answer = await loop.sock_recv(outward, _BYTES_MAX)
                    if _answers(answer, sent):
                        return answer

    async def _tcp(self, server: str, sent: bytes) -> bytes | None:
        async with asyncio.timeout(TCP_DEADLINE_S):
            reader, writer = await asyncio.open_connection(server, self._port)
            try:
                writer.write(len(sent).to_bytes(2, "big") + sent)
                await writer.drain()
                length = int.from_bytes(await reader.readexactly(2), "big")
                answer = await reader.readexactly(length)
            finally:
                writer.close()
        return answer if _answers(answer, sent) else None


def _answers(answer: bytes, sent: bytes) -> bool:
    """Whether it is an answer to that question: number, direction, and the question itself."""
    if len(answer) < 12 or answer[:2] != sent[:2] or not answer[2] & 0x80:
        return False
    end = _question_end(sent)
    same = answer[12:end].lower() == sent[12:end].lower()
    return same or answer[4:6] == b"\0\0"  # some errors come without the question


def _question_end(query: bytes) -> int:
    place = 12
    while place < len(query) and query[place]:
        place += query[place] + 1
    return place + 5
