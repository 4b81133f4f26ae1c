"""Nodes that several tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.engine.daemon import EngineNode
from tests.integration.engine.seeded import seeded_node


@pytest.fixture(scope="module")
def node() -> Iterator[EngineNode]:
    """For tests that only read."""
    made = EngineNode()
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session")
def seeded() -> Iterator[EngineNode]:
    """Has `busybox`; who uses it removes what it has made."""
    made = seeded_node()
    try:
        made.start()
        yield made
    finally:
        made.close()
