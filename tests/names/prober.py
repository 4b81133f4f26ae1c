"""A thread that asks from inside tasks, without end: their resolver for names, tasks for pages.

The sockets are made in the tasks' network namespaces, so that nothing tells these questions from a
task's own. Every question is answered, fails, or is given up after a while; all of it is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.reversename

from tests.names.facts import Answer, Asker, Kind, Question
from worker.network import netns

NAMES_ADDRESS = ("127.0.0.11", 53)
GIVE_UP_S = 10.0
"""Longer than the managers take to notice that a node is dead."""
ANSWER_BYTES_MAX = 4096

Questions = Callable[[], Iterator[Question]]
"""What to ask in the next turn."""


class Prober:
    """Askers come and go; `answers` is what was heard from all of them."""

    def __init__(self, *, pause_s: float) -> None:
        """pause_s: of one asker, between an answer and the next question."""
        self._pause_s = pause_s
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="prober", daemon=True)
        self._askers: dict[str, list[asyncio.Task[None]]] = {}
        self._numbers = itertools.count(1)
        self.answers: list[Answer] = []
        self.crashes: list[BaseException] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Ask while the body runs."""
        self._thread.start()
        try:
            yield
        finally:
            asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def change(self, askers: Mapping[str, tuple[Asker, list[Questions]]]) -> None:
        """Make these all that ask: each asks its lists of questions side by side."""
        asyncio.run_coroutine_threadsafe(self._change(askers), self._loop).result()

    async def _change(self, askers: Mapping[str, tuple[Asker, list[Questions]]]) -> None:
        for task_id in self._askers.keys() - askers.keys():
            for task in self._askers.pop(task_id):
                task.cancel()
        for task_id in askers.keys() - self._askers.keys():
            asker, lists = askers[task_id]
            self._askers[task_id] = [asyncio.create_task(self._ask(asker, q)) for q in lists]
            for task in self._askers[task_id]:
                task.add_done_callback(self._note_crash)

    async def _stop(self) -> None:
        tasks = [task for tasks in self._askers.values() for task in tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _note_crash(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.crashes.append(error)

    async def _ask(self, asker: Asker, questions: Questions) -> None:
        path = Path(f"/proc/{asker.pid}/ns/net")
        with contextlib.ExitStack() as stack:
            try:
                with netns.entered(path):
                    names = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
                    names.setblocking(False)
                    names.connect(NAMES_ADDRESS)
            except FileNotFoundError:
                return  # it has ended meanwhile
            while True:
                for question in questions():
                    if question.kind is Kind.TALK:
                        answer = await self._talk(asker, question, names, path)
                    else:
                        answer = await _look_up(asker, question, names)
                    self.answers.append(answer)
                    await asyncio.sleep(self._pause_s)

    async def _talk(
        self, asker: Asker, question: Question, names: socket.socket, path: Path
    ) -> Answer:
        """Look a name up and fetch a page from the first address."""
        asked_s = time.monotonic()
        named = await _look_up(asker, question, names)
        error, host = named.error, ""
        if not error:
            try:
                async with asyncio.timeout(GIVE_UP_S):
                    host = await self._page(path, next(iter(named.values)))
            except StopIteration:
                error = f"{question.name} has no address"
            except FileNotFoundError:
                error = "the asker has ended"
            except (OSError, EOFError) as failure:
                error = f"{type(failure).__name__}: {failure}"
        values = frozenset((host,) if host else ())
        return Answer(asker, question, asked_s, time.monotonic(), values, named.code, error)

    async def _page(self, path: Path, address: str) -> str:
        """Host name of the task that answers there. Raises: OSError, EOFError."""
        loop = asyncio.get_running_loop()
        number = next(self._numbers)
        with netns.entered(path):
            outward = socket.socket()
        with outward:
            outward.setblocking(False)
            await loop.sock_connect(outward, (address, 80))
            request = f"GET /{number} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n"
            await loop.sock_sendall(outward, request.encode())
            data = b""
            while chunk := await loop.sock_recv(outward, ANSWER_BYTES_MAX):
                data += chunk
        words = data.partition(b"\r\n\r\n")[2].split()
        if len(words) != 2 or words[0] != f"/{number}".encode():
            raise EOFError(f"not the page asked for: {data[-80:]!r}")
        return words[1].decode()


async def _look_up(asker: Asker, question: Question, names: socket.socket) -> Answer:
    query = _query(question)
    asked_s = time.monotonic()
    try:
        async with asyncio.timeout(GIVE_UP_S):
            reply = await _exchange(names, query)
    except OSError as failure:  # TimeoutError is one
        error = f"{type(failure).__name__}: {failure}"
        return Answer(asker, question, asked_s, time.monotonic(), error=error)
    values = frozenset(item.to_text().rstrip(".") for answer in reply.answer for item in answer)
    code = dns.rcode.to_text(reply.rcode())
    return Answer(asker, question, asked_s, time.monotonic(), values, code)


def _query(question: Question) -> dns.message.Message:
    number = secrets.randbelow(1 << 16)
    if question.kind is Kind.REVERSE:
        return dns.message.make_query(dns.reversename.from_address(question.name), "PTR", id=number)
    kind = "AAAA" if question.kind is Kind.NOTHING else "A"
    return dns.message.make_query(question.name, kind, id=number)


async def _exchange(names: socket.socket, query: dns.message.Message) -> dns.message.Message:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(names, query.to_wire())
    while True:
        reply = dns.message.from_wire(await loop.sock_recv(names, ANSWER_BYTES_MAX))
        if reply.id == query.id:
            return reply
