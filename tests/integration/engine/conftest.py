"""Nodes that several tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.engine.daemon import EngineNode
from tests.integration.engine.seeded import seeded_node


@pytest.fixture(scope="module")
def node(request: pytest.FixtureRequest) -> Iterator[EngineNode]:
    """The module's own: what its `MAKE_NODE` makes; without one a bare one, to be read only."""
    made: EngineNode = getattr(request.module, "MAKE_NODE", EngineNode)()
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
