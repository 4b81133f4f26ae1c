from __future__ import annotations

import pytest

from manager.scheduler.constraints import (
    VALUES_MAX,
    Constraint,
    Operator,
    node_matches,
    parse_constraints,
)
from shoal.errors import InvalidArgument
from shoal.model.enums import NodeRole
from shoal.model.types import EngineDescription
from tests.support.planning import a_node

LABELS = {"zone": "East", "empty": "", "cores": "16", "load": "-0.50"}
NODE = a_node("Node1", labels=LABELS).replaced(role=NodeRole.MANAGER)
NODE = NODE.replaced(
    description=NODE.description.replaced(engine=EngineDescription(labels={"gpu": "a100"}))
)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("node.id==abc", Constraint("node.id", Operator.EQUAL, ("abc",))),
        (
            "  node.labels.a-b.c_d  !=  x y  ",
            Constraint("node.labels.a-b.c_d", Operator.UNEQUAL, ("x y",)),
        ),
        (
            "engine.labels._k == a:*.?()[]+\\^$|/b",
            Constraint("engine.labels._k", Operator.EQUAL, ("a:*.?()[]+\\^$|/b",)),
        ),
        ("NODE.ROLE == Manager", Constraint("NODE.ROLE", Operator.EQUAL, ("Manager",))),
        ("node.labels.cores>=16", Constraint("node.labels.cores", Operator.AT_LEAST, ("16",))),
        ("node.labels.cores < -2.5", Constraint("node.labels.cores", Operator.BELOW, ("-2.5",))),
        ("node.labels.a in (x y,z)", Constraint("node.labels.a", Operator.IN, ("x y", "z"))),
        (" node.id  notin( a )  ", Constraint("node.id", Operator.NOT_IN, ("a",))),
        ("node.hostname ~= db-*", Constraint("node.hostname", Operator.LIKE, ("db-*",))),
        ("node.labels.a exists", Constraint("node.labels.a", Operator.EXISTS)),
        ("node.labels.in in (in)", Constraint("node.labels.in", Operator.IN, ("in",))),
    ],
)
def test_accepted(text: str, parsed: Constraint) -> None:
    assert parse_constraints([text]) == (parsed,)


@pytest.mark.parametrize(
    "text",
    ["", "node.id", "node.id=abc", "==abc", "1key==a", "ke$y==a", "key==", "key== ", "key==a,b",
     "key==ä", "key<a", "key=~a", "key==a==b", "key==a!=b",
     "node.labels.a in x", "node.labels.a in ()", "node.labels.a in (a,,b)",
     "node.labels.a in (a;b)",
     "node.labels.ain (a)", "node.labels.a IN (a)", "node.labels.a exists (b)", "exists", " exists",
     "node.unknown exists", "node.labels. exists", "node.labels.a notin", "node.labels.a~=",
     "node.labels.a<", "node.labels.a<b", "node.labels.a<1e9", "node.labels.a<1.",
     "node.labels.a<>1",
     "node.labels.a=<1", "node.hostname<1", "node.ip>=10", "node.labels.a<" + "9" * 19,
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
        ("node.ip != nonsense", False),
        ("node.ip in (10.0.1.0/24, 10.0.0.0/30)", True),
        ("node.ip notin (10.0.1.0/24, 10.0.0.0/30)", False),
        ("node.ip notin (10.0.1.0/24, 192.0.2.1)", True),
        ("node.ip ~= 10.0.*", True),
        ("node.ip exists", True),
        ("node.labels.zone in (west, EAST)", True),
        ("node.labels.zone in (west, north)", False),
        ("node.labels.zone notin (west, north)", True),
        ("node.labels.zone notin (east)", False),
        ("node.labels.missing in (east)", False),
        ("node.labels.missing notin (east)", True),
        ("node.platform.arch in (arm64, x86_64)", True),
        ("node.labels.zone exists", True),
        ("node.labels.empty exists", True),
        ("node.labels.missing exists", False),
        ("node.labels.Zone exists", False),
        ("NODE.LABELS.zone exists", True),
        ("engine.labels.gpu exists", True),
        ("engine.labels.zone exists", False),
        ("node.hostname exists", True),
        ("node.hostname ~= host-*", True),
        ("node.hostname ~= HOST-node?", True),
        ("node.hostname ~= host", False),
        ("node.labels.zone ~= [ef]ast", True),
        ("node.labels.missing ~= *", True),
        ("node.labels.cores >= 16", True),
        ("node.labels.cores > 16", False),
        ("node.labels.cores > 9", True),
        ("node.labels.cores < 16.5", True),
        ("node.labels.cores <= 15.999999999", False),
        ("node.labels.load < 0", True),
        ("node.labels.load >= -0.5", True),
        ("node.labels.zone > 0", False),
        ("node.labels.zone <= 0", False),
        ("node.labels.missing < 1", False),
    ],
)
def test_matching(text: str, holds: bool) -> None:
    assert node_matches(NODE, parse_constraints([text])) is holds


def test_all_must_hold() -> None:
    assert node_matches(NODE, parse_constraints(["node.id==node1", "node.role==manager"]))
    assert not node_matches(NODE, parse_constraints(["node.id==node1", "node.role==worker"]))


def test_a_list_has_an_end() -> None:
    listed = ",".join(["a"] * VALUES_MAX)
    parse_constraints([f"node.id in ({listed})"])
    with pytest.raises(InvalidArgument, match="65 values, at most 64"):
        parse_constraints([f"node.id in ({listed},a)"])


def test_no_pattern_takes_long() -> None:
    """Each star would double the time of a matcher that goes back; this one ends at once."""
    node = a_node("n1", labels={"long": "a" * 5000})
    pattern = "*a" * 100 + "*b"
    assert not node_matches(node, parse_constraints([f"node.labels.long ~= {pattern}"]))
