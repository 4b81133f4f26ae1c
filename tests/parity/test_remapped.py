"""What a container with ids of its own sees against one without: equal, or listed, with why."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.engine.daemon import EngineNode
from tests.integration.engine.remapped import RemappedNode
from tests.parity.looking import comparable, differences, look
from tests.parity.site import DOCKER, a_node

pytestmark = pytest.mark.root

DIFFERENCES = {
    "namespaces: user": "that is what is asked for",
    "devices: made: ": "the kernel lets nobody make devices in a user namespace",
    "mounts: /dev/": "so each is one of the node, bound",
    "mounts: /etc/": "shown with the container's ids",
    "writes: /proc/": "EACCES before EROFS: the node's root owns it",
    "writes: /sys/": "EACCES before EROFS: the node's root owns it",
}


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[str, str]]:
    with a_node(EngineNode) as plain, a_node(RemappedNode) as remapped:
        yield plain, remapped


@pytest.mark.parametrize("way", ["default", "bounded"])
def test_a_mapping_changes_nothing_but_what_is_listed(hosts, way):
    plain, remapped = (comparable(look(host, way, DOCKER)) for host in hosts)
    found = differences(remapped, plain)
    assert found["namespaces: user"] == ("own", "host's")
    assert {
        name: both for name, both in found.items() if not name.startswith(tuple(DIFFERENCES))
    } == {}
    ours = {name: text for name, (text, _) in found.items()}
    assert {ours[name] for name in ours if name.startswith("writes: ")} <= {"EACCES"}
    assert {ours[name] for name in ours if name.startswith("devices: made: ")} <= {
        "not made: EPERM"
    }
