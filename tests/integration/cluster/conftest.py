"""One lab for all tests of this folder: raising it takes longer than most of them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.integration.cluster.lab import Lab


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With a failure, what the nodes of the test's lab said last."""
    report = yield
    if report.failed:
        for made in getattr(item, "funcargs", {}).values():
            if isinstance(made, Lab):
                for node, text in made.last_words().items():
                    report.sections.append((f"log of {made.name} {node}", text))
    return report


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """One manager and two workers with the web image; taken down also after a failure."""
    base = Path(tempfile.mkdtemp(prefix="shoal-e2e-"))
    made = Lab(f"e2e{os.getpid()}", base)
    try:
        made.up(workers=2)
        yield made
    finally:
        made.down()
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture
def service(lab: Lab, request: pytest.FixtureRequest) -> Iterator[str]:
    """A name for the test's service, which is removed afterwards."""
    name = request.node.name.replace("_", "-")[:50].strip("-")
    yield name
    lab.swarmctl("service", "rm", name, check=False)
