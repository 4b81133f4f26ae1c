"""One lab for all tests of this folder: raising it takes longer than most of them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.integration.cluster.lab import Lab

ON_ETCD = {
    "test_every_node_answers_and_the_client_address_is_true",
    "test_scaling_up_and_down",
    "test_a_killed_container_is_replaced_in_its_slot",
    "test_a_dead_node_s_tasks_run_elsewhere_and_it_comes_back_empty",
}
"""What a service is for: it runs, is reached, is scaled, and heals."""


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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Some tests run on a lab with its state in etcd as well, with SHOAL_ETCD_LAB=all every one."""
    if "lab" not in metafunc.fixturenames or hasattr(metafunc.module, "lab"):
        return  # no lab, or one of the module's own
    stores: list[object] = ["log"]
    name = metafunc.function.__name__
    if name in ON_ETCD or os.environ.get("SHOAL_ETCD_LAB") == "all":
        missing = pytest.mark.skipif(not shutil.which("etcd"), reason="etcd-server is missing")
        stores.append(pytest.param("etcd", marks=[pytest.mark.etcd, missing]))
    metafunc.parametrize("lab", stores, indirect=True, scope="session")


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """One manager and two workers with the web image; taken down also after a failure."""
    base = Path(tempfile.mkdtemp(prefix="shoal-e2e-"))
    made = Lab(f"e2e{os.getpid()}", base)
    try:
        made.up(workers=2, store="etcd" if request.param == "etcd" else "")
        yield made
    finally:
        made.down()
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture
def service(lab: Lab, request: pytest.FixtureRequest) -> Iterator[str]:
    """A name for the test's service, which is removed afterwards."""
    name = request.node.originalname.replace("_", "-")[:50].strip("-")
    yield name
    lab.swarmctl("service", "rm", name, check=False)
