"""The logger's own arithmetic on real pipes: lines, pieces, rotation, and death at any point."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.logs import logger
from worker.logs.model import parse_entry


class Place:
    """A container directory with a pipe for each stream."""

    def __init__(self, path: Path, **conf: int) -> None:
        self.path = path
        (path / "logs").mkdir()
        (path / "log.conf").write_text(json.dumps(conf))
        self.writers = {}
        for name in logger.STREAMS:
            os.mkfifo(path / name)
        self.readers = {
            name: os.open(path / name, os.O_RDONLY | os.O_NONBLOCK) for name in logger.STREAMS
        }
        self.writers = {name: os.open(path / name, os.O_WRONLY) for name in logger.STREAMS}

    def open_log(self) -> tuple[logger.ContainerLog, logger.Stream]:
        log = logger.ContainerLog(str(self.path))
        stream = logger.Stream(log, "stdout", os.dup(self.readers["stdout"]))
        log.streams.append(stream)
        log.recover(stream)
        return log, stream

    def say(self, data: bytes) -> None:
        os.write(self.writers["stdout"], data)

    def text(self) -> str:
        files = sorted((self.path / "logs").iterdir())
        entries = [parse_entry(x) for file in files for x in file.read_bytes().splitlines()]
        assert None not in entries
        return "".join(entry.text for entry in entries if entry)

    def close(self) -> None:
        for fd in (*self.readers.values(), *self.writers.values()):
            os.close(fd)


@pytest.fixture
def place(tmp_path):
    made = Place(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("data", "whole"),
    [
        (b"", 0),
        (b"abc", 0),
        (b"abc\n", 4),
        (b"abc\nde", 4),
        (b"x" * 16384, 16384),
        (b"x" * 40000, 32768),
        (b"a\n" + b"x" * 20000, 2 + 16384),
    ],
)
def test_whole_bytes(data, whole):
    assert logger._whole_bytes(data) == whole


@given(st.binary(max_size=200))
def test_pieces_lose_nothing(data):
    pieces = logger._pieces(data)
    assert b"".join(pieces) == data
    assert all(b"\n" not in piece[:-1] for piece in pieces)


def test_peek_leaves_the_bytes(place):
    place.say(b"one\n")
    assert logger.peek(place.readers["stdout"]) == b"one\n"
    assert logger.peek(place.readers["stdout"]) == b"one\n"
    assert logger.peek(place.readers["stderr"]) is None
    os.close(place.writers.pop("stderr"))
    assert logger.peek(place.readers["stderr"]) == b""


def test_rotation_splits_a_chunk_between_files(tmp_path):
    place = Place(tmp_path, max_size_bytes=4096, max_files=3)
    log, stream = place.open_log()
    for start in range(0, 1000, 100):
        place.say(b"".join(b"%d\n" % n for n in range(start, start + 100)))
        while data := logger.peek(stream.fd):
            log.append(stream, data)
    log.close()
    place.close()
    sizes = [file.stat().st_size for file in (tmp_path / "logs").iterdir()]
    assert len(sizes) == 3
    assert max(sizes) <= 4096
    numbers = [int(line) for line in place.text().split()]
    assert numbers == list(range(numbers[0], 1000))


class Killed(BaseException):
    """Stands for SIGKILL at one point."""


@pytest.mark.parametrize("point", ["before write", "half written", "before take", "after take"])
def test_death_at_any_point_neither_drops_nor_repeats(place, monkeypatch, point):
    log, stream = place.open_log()
    place.say(b"first\nsecond\n")
    real_write, real_take = log._write, logger._take

    def write(entries: bytes) -> None:
        if point == "before write":
            raise Killed
        real_write(entries[:20] if point == "half written" else entries)
        if point == "half written":
            raise Killed

    def take(fd: int, count: int) -> None:
        if point == "after take":
            real_take(fd, count)
        raise Killed

    monkeypatch.setattr(log, "_write", write)
    with monkeypatch.context() as patch:
        patch.setattr(logger, "_take", take)
        with pytest.raises(Killed):
            log.append(stream, logger.peek(stream.fd))
    log.close()
    place.say(b"third\n")
    log, stream = place.open_log()
    while data := logger.peek(stream.fd):
        log.append(stream, data)
    log.close()
    assert place.text() == "first\nsecond\nthird\n"


def test_same_line_again_after_a_clean_stop_is_kept(place):
    for _ in range(3):
        log, stream = place.open_log()
        place.say(b"tick\n")
        log.append(stream, logger.peek(stream.fd))
        log.close()
    assert place.text() == "tick\n" * 3


def test_full_disk_drops_and_says_so(place, monkeypatch, capfd):
    log, stream = place.open_log()

    def full(entries: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(log, "_write", full)
    place.say(b"lost\n")
    log.append(stream, logger.peek(stream.fd))
    assert logger.peek(stream.fd) is None
    monkeypatch.undo()
    place.say(b"kept\n")
    log.append(stream, logger.peek(stream.fd))
    log.close()
    assert place.text() == "kept\n"
    assert "output dropped" in capfd.readouterr().err


def test_times_strictly_increase_across_restarts(place, monkeypatch):
    monkeypatch.setattr(logger.time, "time_ns", lambda: 1_700_000_000_123_456_789)
    for _ in range(2):
        log, stream = place.open_log()
        place.say(b"a\nb\n")
        log.append(stream, logger.peek(stream.fd))
        log.close()
    lines = (place.path / "logs/000001.json").read_bytes().splitlines()
    times = [parse_entry(line).time_ns for line in lines]
    assert times == [1_700_000_000_123_456_789 + n for n in range(4)]
    assert b'"time":"2023-11-14T22:13:20.123456789Z"' in lines[0]
