"""One node for the tests that only read."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.engine.daemon import EngineNode


@pytest.fixture(scope="module")
def node() -> Iterator[EngineNode]:
    made = EngineNode()
    try:
        made.start()
        yield made
    finally:
        made.close()
