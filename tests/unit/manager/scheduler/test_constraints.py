from __future__ import annotations

import pytest

from manager.scheduler.constraints import Constraint, node_matches, parse_constraints
from shoal.errors import InvalidArgument
from shoal.model.enums import NodeRole
from shoal.model.types import EngineDescription
from tests.support.planning import a_node

NODE = a_node("Node1", labels={"zone": "East", "empty": ""}).replaced(role=NodeRole.MANAGER)
NODE = NODE.replaced(
    description=NODE.description.replaced(engine=EngineDescription(labels={"gpu": "a100"}))
)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("node.id==abc", Constraint("node.id", True, "abc")),
        ("  node.labels.a-b.c_d  !=  x y  ", Constraint("node.labels.a-b.c_d", False, "x y")),
        (
            "engine.labels._k == a:*.?()[]+\\^$|/b",
            Constraint("engine.labels._k", True, "a:*.?()[]+\\^$|/b"),
        ),
        ("NODE.ROLE == Manager", Constraint("NODE.ROLE", True, "Manager")),
    ],
)
def test_accepted(text: str, parsed: Constraint) -> None:
    assert parse_constraints([text]) == (parsed,)


@pytest.mark.parametrize(
    "text",
    ["", "node.id", "node.id=abc", "==abc", "1key==a", "ke$y==a", "key==", "key== ", "key==a,b",
     "key==ä", "key<a", "key=~a", "key==a==b", "key==a!=b",
     "node.unknown==a", "node.labels==a", "node.labels.==a", "foo==1"],
)  # fmt: skip
def test_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="constraint"):
        parse_constraints([text])


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("node.id == node1", True),
        ("node.id != node1", False),
        ("node.hostname == HOST-NODE1", True),
        ("node.role == manager", True),
        ("Node.Role == worker", False),
        ("node.platform.os == Linux", True),
        ("node.platform.arch == amd64", True),
        ("node.platform.arch == x86_64", True),
        ("node.platform.arch != aarch64", True),
        ("node.labels.zone == east", True),
        ("node.labels.Zone == east", False),
        ("node.labels.missing != east", True),
        ("node.labels.missing == east", False),
        ("engine.labels.gpu == A100", True),
        ("node.ip == 10.0.0.1", True),
        ("node.ip == 10.0.0.0/24", True),
        ("node.ip != 10.0.0.0/24", False),
        ("node.ip == 10.0.1.0/24", False),
        ("node.ip == nonsense", False),
    ],
)
def test_matching(text: str, holds: bool) -> None:
    assert node_matches(NODE, parse_constraints([text])) is holds


def test_all_must_hold() -> None:
    assert node_matches(NODE, parse_constraints(["node.id==node1", "node.role==manager"]))
    assert not node_matches(NODE, parse_constraints(["node.id==node1", "node.role==worker"]))
