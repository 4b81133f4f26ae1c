"""What a container is given here against what dockerd gave: equal, or listed with its reason.

dockerd's side is recorded, once with control groups of version 1 and once with those of version 2,
so what depends on the machine is left to `python -m tests.parity`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.integration.engine.remapped import RemappedNode
from tests.parity.__main__ import RECORD
from tests.parity.differences import DIFFERENCES, OF_A_MAPPING
from tests.parity.looking import WAYS, comparable, differences, look
from tests.parity.site import DOCKER, a_node
from tests.support.groups import V2

pytestmark = pytest.mark.root

_OF_THE_MACHINE = (
    "calls: ", "limits: ", "control groups: ", "proc", "sys", "status: Cpus_", "status: Mems_",
    "status: Speculation", "status: THP", "identity: environment",
    "identity: nice",
)  # fmt: skip
if V2:  # one tree, no group but the container's own: its files are alike everywhere
    _OF_THE_MACHINE = tuple(name for name in _OF_THE_MACHINE if name != "control groups: ")
_REFUSED = {"EPERM", "ENOSYS"}


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    with a_node() as host:
        yield host


@pytest.mark.parametrize("way", WAYS)
def test_what_is_seen_is_what_docker_shows(host, way):
    theirs = json.loads(RECORD.read_text())[way]
    ours = comparable(look(host, way, DOCKER))
    unexplained = {
        name: both
        for name, both in differences(ours, theirs).items()
        if name not in DIFFERENCES and not name.startswith(_OF_THE_MACHINE)
    }
    assert unexplained == {}
    refused = {name for name, text in theirs.items() if name[:7] == "calls: " and text == "EPERM"}
    assert len(refused) > 10
    allowed = {name: ours[name] for name in refused if ours[name] not in _REFUSED}
    assert allowed == {}, "calls that Docker refuses"


def test_a_mapping_of_ids_changes_nothing_but_what_is_listed(host):
    """Both are ours: a container with ids of its own against one without."""
    plain = comparable(look(host, "default", DOCKER))
    with a_node(RemappedNode) as remapped:
        found = differences(comparable(look(remapped, "default", DOCKER)), plain)
    assert found["namespaces: user"] == ("own", "host's")
    listed = tuple(OF_A_MAPPING)
    assert {name: both for name, both in found.items() if not name.startswith(listed)} == {}
    ours = {name: text for name, (text, _) in found.items()}
    assert {ours[name] for name in ours if name.startswith("writes: ")} <= {"EACCES"}
    made = {ours[name] for name in ours if name.startswith("devices: made: ")}
    assert made <= {"not made: EPERM"}
