"""Progress in Docker's words."""

from __future__ import annotations

import pytest

from engine.images.relay import bar, size, worded
from worker.images.registry.api import Step


@pytest.mark.parametrize(
    ("current", "total", "text"),
    [
        (66048, 6_000_000, "[>" + " " * 50 + "]  66.05kB/6MB"),
        (69213, 6_002_029, "[>" + " " * 50 + "]  69.21kB/6.002MB"),
        (6_002_027, 6_002_027, "[" + "=" * 50 + ">]  6.002MB/6.002MB"),
        (3, 4, "[" + "=" * 37 + ">" + " " * 13 + "]       3B/4B"),
        (5, 4, "[" + "=" * 50 + ">]       5B"),
        (2048, 0, " 2.048kB"),
    ],
)
def test_bars_as_recorded(current, total, text):
    assert bar(current, total) == text


def test_sizes():
    assert [size(one) for one in (0, 999, 1000, 1_985_742)] == ["0B", "999B", "1kB", "1.986MB"]


def test_lines():
    assert worded(Step(status="Pulling from lib/big", id="1", whole=True)) == {
        "status": "Pulling from lib/big", "id": "1",
    }  # fmt: skip
    assert worded(Step(status="Digest: sha256:1")) == {"status": "Digest: sha256:1"}
    assert worded(Step(status="Pull complete", id="8e1392302491")) == {
        "status": "Pull complete", "progressDetail": {}, "id": "8e1392302491",
    }  # fmt: skip
    assert worded(Step(status="Downloading", id="a", current=1, total=2))["progressDetail"] == {
        "current": 1, "total": 2,
    }  # fmt: skip
