"""Logs, processes and statistics in Docker's words; instances of exec."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from engine.containers import execs as execs_module
from engine.containers import logs, stats, top
from engine.containers.container import Container
from engine.containers.execs import ExecRequest, Execs, failure_code, terminal_size, worded
from engine.containers.logs import ContainerLogs, LogWish, parse_tail
from engine.http.errors import Refused
from engine.resources.archive import encode_stat, go_mode
from shoal.clock import NS_PER_S
from shoal.errors import InvalidArgument, NotFound, ResourceExhausted, SwarmError
from tests.unit.engine.containers.asking import record_of
from tests.unit.engine.containers.doubles import World
from worker.files.jobs import Found
from worker.runtime.interactive import DetailedStats

LINKS = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0
  eth0:     876      11    1    2    0     0          0         0      126       3    4    5    0
"""
PS = """UID          PID    PPID  C STIME TTY          TIME CMD
root           1       0  0 02:33 ?        00:00:00 init
root        8984    8954  0 02:33 ?        00:00:00 sleep 1000
web         9001    8984  0 02:33 ?        00:00:00 sh -c  a   b
"""


class Reads(NamedTuple):
    container_dir: Any
    logs: Any = None


def test_ps_rows_of_the_container_alone():
    table = top.parse(PS, (8984, 9001))
    assert table.titles == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    assert [row[1] for row in table.rows] == ["8984", "9001"]
    assert table.rows[1][-1] == "sh -c a b"


def test_ps_rows_of_threads_follow_their_process():
    output = "PID LWP CMD\n7 - other\n- 7 -\n9 - mine\n- 9 -\n- 10 -\n"
    assert top.parse(output, (9,)).rows == [["9", "-", "mine"], ["-", "9", "-"], ["-", "10", "-"]]


@pytest.mark.parametrize(
    ("output", "words"),
    [("UID CMD\n", "Couldn't find PID"), ("PID\nx\n", "unexpected pid 'x'"),
     ("UID PID\nroot\n", "unexpected line")],
)  # fmt: skip
def test_output_that_is_no_table(output: str, words: str):
    with pytest.raises(SwarmError, match=words):
        top.parse(output, (1,))


@pytest.mark.parametrize("args", ["-o user=PID", "-eo user= PIDX", "-o =PID"])
def test_another_column_named_pid(args: str):
    with pytest.raises(InvalidArgument, match="is not allowed"):
        top.check_args(args)


@pytest.mark.parametrize("args", ["", "aux", "-o pid,comm", "-eo pid=PID"])
def test_usual_ps_options(args: str):
    top.check_args(args)


def sample(cpu_ns: int, read_at_ns: int) -> DetailedStats:
    return DetailedStats(
        read_at_ns=read_at_ns, cpu_usage_ns=cpu_ns, cpu_user_ns=1, cpu_kernel_ns=2,
        system_cpu_ns=3, online_cpus=2, throttled_periods=4, throttled_ns=5, periods=6,
        memory_usage_bytes=7, memory_limit_bytes=0, memory_stat={"inactive_file": 1}, pids=8,
        pids_limit=9, block_io=((8, 0, "read", 10),),
    )  # fmt: skip


def test_a_sample_carries_the_one_before():
    words = stats.worded(Container(record_of()), sample(10, NS_PER_S), sample(30, 2 * NS_PER_S), {})
    assert words["cpu_stats"]["cpu_usage"]["total_usage"] == 30
    assert words["precpu_stats"]["cpu_usage"]["total_usage"] == 10
    assert (words["preread"], words["read"]) == ("1970-01-01T00:00:01Z", "1970-01-01T00:00:02Z")
    assert words["blkio_stats"]["io_service_bytes_recursive"] == [
        {"major": 8, "minor": 0, "op": "read", "value": 10}
    ]
    assert words["pids_stats"] == {"current": 8, "limit": 9}
    assert words["memory_stats"]["limit"] > 1 << 20
    assert "networks" not in words
    assert set(stats.empty(Container(record_of()))) == set(words)


def test_links_without_the_loopback():
    assert stats.parse_links(LINKS) == {
        "eth0": {
            "rx_bytes": 876, "rx_packets": 11, "rx_errors": 1, "rx_dropped": 2,
            "tx_bytes": 126, "tx_packets": 3, "tx_errors": 4, "tx_dropped": 5,
        }
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "tail"), [("all", None), ("", None), ("3", 3), ("0", 0), ("-1", None), ("x", None)]
)
def test_tail(text: str, tail: int | None):
    assert parse_tail(text) == tail


async def test_lines_as_they_are_shown(tmp_path: Path):
    container = Container(record_of())
    (tmp_path / "logs").mkdir()
    (tmp_path / "log.end").touch()
    (tmp_path / "logs/000001.json").write_text(
        "".join(
            f'{{"log":"{text}\\n","stream":"{stream}","time":"1970-01-01T00:00:0{second}Z"}}\n'
            for second, stream, text in ((1, "stdout", "a"), (2, "stderr", "b"), (3, "stdout", "c"))
        )
    )
    reader = ContainerLogs(Reads(lambda _: str(tmp_path)))  # type: ignore[arg-type]

    async def shown(**wish: Any) -> list[tuple[int, bytes]]:
        wish.setdefault("streams", frozenset(logs.STREAMS))
        return [line async for line in reader.lines(container, LogWish(**wish))]

    assert await shown() == [(1, b"a\n"), (2, b"b\n"), (1, b"c\n")]
    assert await shown(tail=1, timestamps=True) == [(1, b"1970-01-01T00:00:03.000000000Z c\n")]
    assert await shown(tail=1, until_ns=2 * NS_PER_S, details=True) == [(2, b" b\n")]
    assert await shown(since_ns=NS_PER_S, streams=frozenset({"stdout"})) == [(1, b"c\n")]
    with pytest.raises(InvalidArgument, match="at least one stream"):
        await shown(streams=frozenset())


async def test_instances_of_exec_are_bounded_and_started_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(execs_module, "EXECS_MAX", 2)
    world = World()
    try:
        async with world.running() as parts:
            container = await world.start(cmd=["sleep"])
            execs = Execs(parts)
            request = ExecRequest(cmd=["true", "x"], user="web", detach_keys="ctrl-x")
            first = execs.create(container, request)
            second = execs.create(container, request)
            assert parts.containers.find(container).exec_ids == (first.id, second.id)
            execs.begin(second.id)
            with pytest.raises(Refused, match="already running"):
                execs.begin(second.id)
            third = execs.create(container, request)  # the first was never started
            with pytest.raises(NotFound, match="No such exec instance"):
                execs.find(first.id)
            execs.begin(third.id)
            with pytest.raises(ResourceExhausted, match="2 processes"):
                execs.create(container, request)
            with pytest.raises(InvalidArgument, match="No exec command"):
                execs.create(container, ExecRequest(cmd=[]))
            words = worded(second)
            assert (words["Running"], words["ExitCode"], words["DetachKeys"]) == (
                False, None, b"\x18",
            )  # fmt: skip
            assert words["ProcessConfig"]["arguments"] == ["x"]
    finally:
        world.close()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ('exec: "true": executable file not found in $PATH', 127),
        ('exec: "true": stat true: no such file or directory', 127),
        ('exec: "true": permission denied', 126),
        ('chdir to cwd ("/nodir") set in config.json failed: no such file or directory', 126),
        ("", 126),
    ],
)
def test_exit_code_of_a_program_that_cannot_run(error: str, code: int):
    assert failure_code(error, ExecRequest(cmd=["true"])) == code


def test_console_sizes():
    assert terminal_size(None) is terminal_size([0, 0]) is None
    size = terminal_size([24, 80])
    assert size is not None
    assert (size.height, size.width) == (24, 80)
    for bad in ([1], [-1, 5], [1, 1 << 16]):
        with pytest.raises(InvalidArgument, match="ConsoleSize"):
            terminal_size(bad)


@pytest.mark.parametrize(
    ("mtime_ns", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (5, "1970-01-01T00:00:00.000000005Z"),
        (-NS_PER_S, "1969-12-31T23:59:59Z"),
        (1 << 62, "2116-02-20T23:53:38.427387904Z"),
        (1 << 80, "3871-04-29T10:40:00Z"),
    ],
)
def test_times_of_files(mtime_ns: int, text: str):
    found = Found(name="f", size=1, mode=0o100644, mtime_ns=mtime_ns)
    assert json.loads(base64.b64decode(encode_stat(found)))["mtime"] == text


def test_modes_in_go_s_words():
    assert go_mode(0o041777) == 2148532735
    assert go_mode(0o100644) == 420
    assert go_mode(0o120777) == 1 << 27 | 0o777
    assert go_mode(0o020666) == 1 << 26 | 1 << 21 | 0o666
    assert go_mode(0o104755) == 1 << 23 | 0o755
