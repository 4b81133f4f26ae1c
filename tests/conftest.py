"""Shared test configuration: what is skipped, and what runs beside what.

`make test` runs files of tests at the same time, since most tests wait more than they compute. The
tests of a file run one after the other in one process: what its fixtures raise is dear, and a test
may build on what the one before left in their lab. Files share nothing: whatever a test makes on
the machine has a name of its own.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest
from hypothesis import settings

settings.register_profile("shoal", deadline=None)  # how long an example takes says nothing here
settings.load_profile("shoal")

LONGEST_FIRST = (
    "tests/conformance/swarm/test_conformance.py",
    "tests/integration/cluster/test_faults.py",
    "tests/integration/cluster/test_membership.py",
    "tests/integration/cluster/test_services.py",
    "tests/integration/swarmd/test_autolock.py",
    "tests/integration/swarmd/test_renewal.py",
    "tests/linearizability/test_managers.py",
    "tests/powercut/test_powercut.py",
    "tests/zeroloss/test_zeroloss.py",
    "tests/names/test_names.py",
    "tests/integration/cluster/test_docker_services.py",
    "tests/integration/cluster/test_managers.py",
    "tests/integration/cluster/test_detection.py",
    "tests/integration/swarmd/test_processes.py",
    "tests/integration/cluster/test_etcd.py",
    "tests/integration/cluster/test_backup.py",
    "tests/integration/cluster/test_stacks.py",
    "tests/integration/cluster/test_scheduling.py",
    "tests/integration/raft/test_processes.py",
    "tests/integration/worker/test_worker.py",
    "tests/integration/swarmd/test_proxy.py",
    "tests/integration/swarmd/test_cluster.py",
    "tests/integration/cluster/test_bad_input.py",
    "tests/integration/swarmd/test_external_ca.py",
)
"""Files that take longest: begun last, they would run on when all others have ended."""


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None]:
    """Skip what needs root without it, and put the longest files first."""
    if os.geteuid() != 0:
        skip = pytest.mark.skip(reason="needs root: run `sudo make test`")
        for item in items:
            if "root" in item.keywords:
                item.add_marker(skip)
    yield  # to pytest, which brings together what shares a fixture
    order = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(item.nodeid.partition("::")[0], len(order)))
