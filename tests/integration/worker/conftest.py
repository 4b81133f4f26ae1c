"""A worker of its own per test."""

from __future__ import annotations

import pytest

from tests.integration.worker.place import Place


@pytest.fixture
async def place():
    place = Place()
    try:
        await place.open()
        yield place
    finally:
        await place.destroy()
