"""The metrics page: valid text, swarmd's families first, nothing said about what is unknown."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from shoal.errors import InvalidArgument
from swarmd.host import Usage, memory_bytes, os_name
from swarmd.page import NodeSample, ProcessSample, render
from swarmd.process import describe_exit
from swarmd.web import parse_address

SAMPLE = NodeSample(
    version="1.2",
    cluster_id="c1",
    node_id="n1",
    is_manager=True,
    processes=(
        ProcessSample("swarmd", up=True, restarts=0, usage=Usage(10, 1.5, 3)),
        ProcessSample("manager", up=False, restarts=2, usage=None),
    ),
)


def parsed(page: bytes):
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


def test_every_family_is_there():
    assert parsed(render(SAMPLE, [])) == {
        ("swarm_node_info", "c1", "n1"): 1,
        ("swarm_node_manager",): 1,
        ("shoal_node_locked",): 0,
        ("shoal_build_info", "1.2"): 1,
        ("shoal_process_up", "swarmd"): 1,
        ("shoal_process_up", "manager"): 0,
        ("shoal_process_restarts_total", "swarmd"): 0,
        ("shoal_process_restarts_total", "manager"): 2,
        ("shoal_process_resident_memory_bytes", "swarmd"): 10,
        ("shoal_process_cpu_seconds_total", "swarmd"): 1.5,
        ("shoal_process_open_fds", "swarmd"): 3,
    }


def test_outside_a_cluster_there_is_no_node_info():
    outside = NodeSample(version="1", cluster_id="", node_id="", is_manager=False, processes=())
    values = parsed(render(outside, []))
    assert values == {
        ("swarm_node_manager",): 0,
        ("shoal_node_locked",): 0,
        ("shoal_build_info", "1"): 1,
    }


def test_a_locked_node_is_shown():
    locked = NodeSample(
        version="1", cluster_id="", node_id="", is_manager=False, processes=(), is_locked=True
    )
    assert parsed(render(locked, []))["shoal_node_locked",] == 1


def test_pages_follow_each_other_on_lines_of_their_own():
    page = render(SAMPLE, [b"a 1", b"", b"b 2\n"])
    assert page.endswith(b"\na 1\nb 2\n")


def test_the_rules_of_a_metrics_linter():
    """What `promtool check metrics` asks: help, `_total` on counters alone, base units."""
    for family in text_string_to_metric_families(render(SAMPLE, []).decode()):
        assert family.documentation.endswith("."), family.name
        is_counter = family.type == "counter"
        for sample in family.samples:
            assert sample.name.endswith("_total") == is_counter, sample.name
        assert not family.name.endswith(("_ms", "_milliseconds", "_kb", "_count", "_sum"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:9323", ("127.0.0.1", 9323)),
        (":9323", (None, 9323)),
        ("[::1]:9323", ("::1", 9323)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("[::1]:0", ("::1", 0)),
        (":0", (None, 0)),
    ],
)
def test_metrics_addresses(text, expected):
    assert parse_address(text) == expected


@pytest.mark.parametrize("text", ["127.0.0.1", "x:y", ":", "[::1]", "a:70000"])
def test_metrics_addresses_that_are_none(text):
    with pytest.raises(InvalidArgument, match="metrics address"):
        parse_address(text)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (['PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"', "NAME=Debian"],
         "Debian GNU/Linux 12 (bookworm)"),
        (["# a comment", "NAME='Alpine Linux'"], "Alpine Linux"),
        ([], ""),
    ],
)  # fmt: skip
def test_the_name_of_the_system(lines, expected):
    assert os_name(lines) == expected


def test_the_memory_of_the_machine():
    assert memory_bytes(["MemFree: 1 kB", "MemTotal:       16384 kB"]) == 16 << 20
    assert memory_bytes([]) == 0


@pytest.mark.parametrize(
    ("status", "text"),
    [(0, "ended with exit code 0"), (-9, "was ended by SIGKILL"), (-99, "was ended by signal 99")],
)
def test_how_a_process_ended(status, text):
    assert describe_exit(status) == text
