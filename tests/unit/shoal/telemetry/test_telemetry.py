"""Log lines are JSON on standard error; the metrics page has no series that nobody reads."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from prometheus_client import Counter, Histogram

from shoal.api.v1 import node_pb2
from shoal.telemetry.logs import LEVELS
from shoal.telemetry.metrics import REGISTRY, exposition
from shoal.wire.telemetry import TelemetryServer

PROGRAM = """
import logging, sys, structlog
from shoal.telemetry.logs import configure
configure("worker", sys.argv[1])
log = structlog.get_logger()
log.debug("a.debug"); log.info("task.state_changed", task_id="t", state="RUNNING")
try:
    1 / 0
except ZeroDivisionError as error:
    log.error("rpc.failed", exc_info=error)
logging.getLogger("third.party").warning("foreign")
"""


def lines_at(level):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, level], capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_one_json_object_a_line():
    *own, foreign = lines_at("info")
    entries = [json.loads(line) for line in own]
    assert [entry["event"] for entry in entries] == ["task.state_changed", "rpc.failed"]
    assert entries[0]["process"] == "worker"
    assert entries[0]["level"] == "info"
    assert (entries[0]["task_id"], entries[0]["state"]) == ("t", "RUNNING")
    assert entries[0]["time"].endswith("Z")
    assert "ZeroDivisionError" in entries[1]["exception"]
    assert foreign == "third.party: foreign"


@pytest.mark.parametrize(("level", "count"), [("debug", 3), ("warning", 1), ("error", 1)])
def test_levels(level, count):
    assert level in LEVELS
    assert len([line for line in lines_at(level) if line.startswith("{")]) == count


def test_no_created_series():
    counter = Counter("shoal_test_events", "Events of this test.", registry=REGISTRY)
    histogram = Histogram("shoal_test_seconds", "Times of this test.", registry=REGISTRY)
    try:
        counter.inc()
        histogram.observe(0.5)
        page = exposition().decode()
    finally:
        REGISTRY.unregister(counter)
        REGISTRY.unregister(histogram)
    assert "shoal_test_events_total 1.0" in page
    assert "shoal_test_seconds_count 1.0" in page
    assert "_created" not in page


async def test_the_service_tells_metrics_and_readiness():
    reasons = ["no session"]
    server = TelemetryServer(lambda: reasons[0])
    answer = await server.GetReadiness(node_pb2.GetReadinessRequest(), None)
    assert (answer.ready, answer.reason) == (False, "no session")
    reasons[0] = ""
    assert (await server.GetReadiness(node_pb2.GetReadinessRequest(), None)).ready
    page = await server.GetMetrics(node_pb2.GetMetricsRequest(), None)
    assert page.text == exposition()
