"""Shared test configuration."""

from __future__ import annotations

import os

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse to run root tests half-way: without root they are skipped with the reason."""
    if os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="needs root: run `sudo make test`")
    for item in items:
        if "root" in item.keywords:
            item.add_marker(skip)
