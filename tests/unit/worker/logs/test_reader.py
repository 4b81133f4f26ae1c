"""Reading log files: filters, tail, files that vanish, damaged lines."""

from __future__ import annotations

import gzip
import json

import pytest

from shoal.errors import NotFound
from worker.logs import reader
from worker.logs.model import LogLine, parse_entry, parse_time


def _entry(number: int, stream: str = "stdout") -> str:
    time = f"2026-01-01T00:00:00.{number:09d}Z"
    return json.dumps({"log": f"{number}\n", "stream": stream, "time": time}) + "\n"


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "log.end").touch()
    (tmp_path / "state.json").write_text('{"state":"exited"}')
    for file, numbers in ((3, range(1, 5)), (4, range(5, 9))):
        text = "".join(_entry(n, "stdout" if n % 2 else "stderr") for n in numbers)
        (tmp_path / f"logs/{file:06d}.json").write_text(text)
    return tmp_path


async def _numbers(directory, **fields) -> list[int]:
    return [int(line.text) async for line in reader.read(str(directory), **fields)]


async def test_everything_in_order(directory):
    assert await _numbers(directory) == list(range(1, 9))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"tail": 3}, [6, 7, 8]),
        ({"tail": 6}, [3, 4, 5, 6, 7, 8]),
        ({"tail": 100}, list(range(1, 9))),
        ({"tail": 0}, []),
        ({"streams": ("stderr",), "tail": 2}, [6, 8]),
        ({"streams": ("stdout",)}, [1, 3, 5, 7]),
        ({"since_ns": parse_time("2026-01-01T00:00:00.000000006Z")}, [7, 8]),
        ({"tail": 5, "since_ns": parse_time("2026-01-01T00:00:00.000000006Z")}, [7, 8]),
    ],
)
async def test_filters(directory, fields, expected):
    assert await _numbers(directory, **fields) == expected
    assert await _numbers(directory, follow=True, **fields) == expected


async def test_damaged_and_unfinished_lines_are_left_out(directory):
    with (directory / "logs/000004.json").open("a") as file:
        file.write("{broken}\n" + _entry(9) + '{"log":"half')
    assert await _numbers(directory, tail=2) == [8, 9]
    assert await _numbers(directory) == list(range(1, 10))


async def test_compressed_files_are_read_alike_and_damage_ends_one(directory):
    plain = directory / "logs/000003.json"
    packed = directory / "logs/000003.json.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    assert await _numbers(directory) == list(range(1, 9))
    assert await _numbers(directory, tail=6) == [3, 4, 5, 6, 7, 8]
    whole = packed.read_bytes()
    for damaged in (b"", b"nonsense", whole[: len(whole) // 2]):
        packed.write_bytes(damaged)
        assert (await _numbers(directory))[-4:] == [5, 6, 7, 8]


async def test_a_file_may_be_compressed_while_it_is_read(directory, monkeypatch):
    monkeypatch.setattr(reader, "_CHUNK_BYTES", 100)
    lines = reader.read(str(directory))
    assert (await anext(lines)).text == "1\n"
    plain = directory / "logs/000003.json"
    (directory / "logs/000003.json.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    assert [int(line.text) async for line in lines] == list(range(2, 9))


async def test_until(directory):
    time = parse_time("2026-01-01T00:00:00.000000006Z")
    assert await _numbers(directory, until_ns=time) == [1, 2, 3, 4, 5, 6]
    assert await _numbers(directory, until_ns=time, tail=2) == [5, 6]
    assert await _numbers(directory, until_ns=time, follow=True, streams=("stderr",)) == [2, 4, 6]


async def test_slow_follower_goes_on_with_the_oldest_file_left(directory):
    lines = reader.read(str(directory))
    assert (await anext(lines)).text == "1\n"
    (directory / "logs/000003.json").unlink()
    (directory / "logs/000004.json").unlink()
    (directory / "logs/000007.json").write_text(_entry(20))
    rest = [int(line.text) async for line in lines]
    assert rest[-1] == 20


async def test_unknown_container(tmp_path):
    with pytest.raises(NotFound):
        await anext(reader.read(str(tmp_path / "nosuch")))


async def test_container_without_output(tmp_path):
    (tmp_path / "log.end").touch()
    assert await _numbers(tmp_path, tail=5, follow=True) == []


def test_entries():
    line = parse_entry(_entry(5, "stderr").encode())
    assert line == LogLine(1_767_225_600_000_000_005, "stderr", "5\n")
    assert not line.partial
    assert parse_entry(b'{"log":"x","stream":"stdin","time":"2026-01-01T00:00:00Z"}') is None
    assert parse_entry(b'{"log":"x","stream":"stdout","time":"yesterday"}') is None
    assert parse_time("2026-01-01T00:00:00.5Z") == 1_767_225_600_500_000_000


@pytest.mark.parametrize(("follow", "expected"), [(False, [7, 8]), (True, [7, 8, 9])])
async def test_the_last_lines_are_no_more_when_others_come_meanwhile(directory, follow, expected):
    found: list[int] = []
    async for line in reader.read(str(directory), tail=2, follow=follow):
        if not found:
            with (directory / "logs/000004.json").open("a") as file:
                file.write(_entry(9))
        found.append(int(line.text))
    assert found == expected
