"""Live copies over real sockets: where each begins, what it owes, when it is let go."""

from __future__ import annotations

import json
import os
import select
import socket
from collections.abc import Iterator

import pytest

from worker.logs import copies


class Source:
    """A stream of which so many bytes were taken, and so many wait."""

    def __init__(self, taken: int = 0, waiting: int = 0) -> None:
        self.taken = taken
        self.waiting = waiting

    def held(self) -> int:
        return self.waiting


class Client:
    """The other end of a copy."""

    def __init__(
        self, made: copies.Copies, sources: list[Source], *how: str, drains: bool = False
    ) -> None:
        self.sock, theirs = socket.socketpair()
        self.sock.setblocking(False)
        made.accept("c1", list(how), theirs.detach(), sources, 77, drains=drains)

    def frames(self) -> list[tuple[int, object]]:
        data = b""
        try:
            while piece := self.sock.recv(1 << 20):
                data += piece
        except BlockingIOError:
            pass
        found = []
        while data:
            kind, length = copies.HEADER.unpack(data[:8])
            payload, data = data[8 : 8 + length], data[8 + length :]
            found.append((kind, payload if kind else json.loads(payload)))
        return found


@pytest.fixture
def made() -> Iterator[copies.Copies]:
    with select.epoll() as epoll:
        table = copies.Copies(epoll)
        yield table
        table.drop("c1")
        for copy in list(table._by_fd.values()):
            table._forget(copy)


def joined(*places: int) -> tuple[int, object]:
    return 0, {"state": "joined", "places": list(places), "log_time_ns": 77}


@pytest.mark.parametrize(
    ("how", "places", "seen"),
    [
        (("now",), (15, 20), b"new"),
        (("log",), (10, 20), b"12345new"),
        (("resume", "12", "20"), (12, 20), b"345new"),
        (("resume", "3", "0"), (10, 20), b"12345new"),
        (("resume", "16", "20"), (16, 20), b"ew"),
    ],
)
def test_where_a_copy_begins(made, how, places, seen):
    client = Client(made, [Source(10, 5), Source(20)], *how)
    assert client.frames() == [joined(*places)]
    made.show("c1", 1, 10, b"12345")
    made.show("c1", 1, 10, b"12345new")
    made.show("c1", 1, 15, b"new")  # the line was taken meanwhile: all of it was given
    assert b"".join(payload for _, payload in client.frames()) == seen
    client.sock.close()


def test_who_waits_gets_the_next_run_whole(made):
    client = Client(made, [], "now")
    assert client.frames() == [(0, {"state": "waiting", "log_time_ns": 77})]
    made.begin("c1", [Source(100), Source()], 77)
    made.show("c1", 2, 0, b"err")
    assert client.frames() == [joined(100, 0), (2, b"err")]
    made.finish("c1")
    assert client.frames() == [(0, {"state": "ended"})]
    client.sock.close()


def test_resuming_after_the_end_meets_it(made):
    client = Client(made, [], "resume", "5", "5")
    assert client.frames() == [(0, {"state": "ended"})]
    client.sock.close()


def test_a_client_owes_one_frame_and_is_cut_in_the_end(made, monkeypatch):
    client = Client(made, [Source(), Source()], "now")
    base = 0
    while not made.holds("c1"):
        made.show("c1", 1, base, b"x" * 65536)
        base += 65536
    assert made.timeout_s() == -1
    made.ended("c1")
    assert 0 < made.timeout_s() <= copies.PATIENCE_S
    assert made.cut_slow() == []
    now_s = copies.time.monotonic()
    monkeypatch.setattr(copies.time, "monotonic", lambda: now_s + copies.PATIENCE_S)
    assert made.cut_slow() == ["c1"]
    assert not made.holds("c1")
    client.sock.close()


def test_too_many_and_nonsense_are_refused_and_leave_nothing(made, monkeypatch):
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(copies, "COPIES_MAX", 0)
    client = Client(made, [], "now")
    assert client.frames() == [(0, {"refused": "too many live copies on this node"})]
    client.sock.close()
    for how in ((), ("later",), ("resume",), ("resume", "1"), ("now", "1"), ("resume", "a", "b")):
        ours, theirs = socket.socketpair()
        with ours, pytest.raises(ValueError, match=r"not a mode|invalid literal"):
            made.accept("c1", list(how), theirs.detach(), [], 0)
    assert len(os.listdir("/proc/self/fd")) == before


def test_who_begins_after_the_log_waits_until_it_is_complete(made):
    client = Client(made, [], "log", drains=True)
    other = Client(made, [], "now", drains=True)
    assert client.frames() == []
    assert other.frames() == [(0, {"state": "waiting", "log_time_ns": 77})]
    made.settled("c1", 99)
    made.settled("c1", 100)
    assert client.frames() == [(0, {"state": "waiting", "log_time_ns": 99})]
    assert other.frames() == []
    for one in (client, other):
        one.sock.close()
