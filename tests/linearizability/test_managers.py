"""Real managers in trouble, used as people use them: over the sockets of their nodes.

Short forms; the long ones are `make test-linearizability` and `python -m tests.linearizability`.
"""

from __future__ import annotations

import pytest

from tests.linearizability.nemesis import Climate
from tests.linearizability.run import Settings, run

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

BRIEF = Climate(calm_s=(0.5, 1.0), trouble_s=(0.5, 2.5))


@pytest.mark.parametrize(("managers", "duration_s"), [(1, 4.0), (3, 8.0)])
async def test_what_clients_see_of_managers_in_trouble_can_be_explained(managers, duration_s):
    report = await run(Settings(managers=managers, duration_s=duration_s, climate=BRIEF))
    assert report.findings.faults == (), report.summary()
    assert report.findings.operations >= 300, report.summary()
    assert report.findings.kept > 0, report.summary()
    assert report.findings.commits_watched > 0, report.summary()
    assert report.troubles.total() >= 3, report.summary()


@pytest.mark.parametrize("bug", ["local-reads", "lost-event"])
async def test_a_planted_bug_is_found_between_real_clients_and_managers(bug):
    report = await run(Settings(duration_s=1.5, bug=bug, trouble=False))
    assert report.findings.faults, report.summary()
