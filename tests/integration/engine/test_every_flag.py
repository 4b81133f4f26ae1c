"""Each of the flags of `docker run` does what it says, seen from inside; or is refused by name.

Those that a program finds are in `flags.cases`; the others have functions in `flags.life` and
`flags.means`. What people may read of each flag is in `flags.table`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.integration.engine.flags import life, means, table
from tests.integration.engine.flags.cases import SEEN, V1, WORLDS
from tests.integration.engine.flags.worlds import CHECKS, Worlds
from tests.integration.engine.networked import NetworkedNode
from tests.integration.engine.seeded import ok

pytestmark = pytest.mark.root
assert life, means  # they fill `CHECKS`


@pytest.fixture(scope="module")
def node() -> Iterator[NetworkedNode]:
    made = NetworkedNode()
    try:
        made.start()
        ok(made, "network", "create", "--subnet", "10.77.0.0/16", "--gateway", "10.77.0.1",
           "--ipv6", "--subnet", "fd77::/64", "flags")  # fmt: skip
        yield made
        ok(made, "rm", "-fv", *ok(made, "ps", "-aq").split())
    finally:
        made.close()


@pytest.fixture(scope="module")
def worlds(node: NetworkedNode) -> Worlds:
    return Worlds(node, SEEN, WORLDS)


@pytest.mark.parametrize("flag", sorted(table.VERDICTS))
def test_flag(node: NetworkedNode, worlds: Worlds, flag: str):
    if flag in CHECKS:
        CHECKS[flag](node)
        return
    case = SEEN[flag]
    if case.world == "limits" and not V1:
        pytest.skip("file names of cgroup v1; the other is tested with the runtime")
    assert worlds.said(flag, case) == case.shown.strip()


def test_the_table_has_every_flag_of_the_command_line():
    docker = shutil.which("docker")
    assert docker is not None
    run = table.flags_of(docker, "run")
    assert run == set(table.VERDICTS) == {*SEEN, *CHECKS}
    assert not SEEN.keys() & CHECKS.keys()
    assert run - table.flags_of(docker, "create") == {"--detach", "--detach-keys", "--sig-proxy"}
