"""Which events `swarmctl events` prints, and how."""

from __future__ import annotations

import pytest

from shoal.docker.events import KINDS, ClusterEvent
from shoal.errors import InvalidArgument
from swarmctl.events import event_json, event_text, parse_wish

SERVICE = ClusterEvent("service", "update", "s1x", {"name": "web", "replicas.old": "1"}, 10**18)
TASK = ClusterEvent(
    "task", "create", "t1x",
    {"name": "web.1.t1x", "service": "web", "serviceID": "s1x", "nodeID": "n1x"}, 10**18,
)  # fmt: skip
SECRET = ClusterEvent("secret", "remove", "k1x", {"name": "web"}, 0)


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        ((), "sts"),
        (("type=task",), "t"),
        (("type=task", "type=secret"), "tk"),
        (("event=update",), "s"),
        (("service=web",), "st"),
        (("service=s1",), "st"),
        (("service=we",), ""),
        (("node=n1x",), "t"),
        (("secret=web",), "k"),
        (("service=web", "event=create"), "t"),
    ],
)
def test_filters(filters, wanted):
    wish = parse_wish(filters)
    events = {"s": SERVICE, "t": TASK, "k": SECRET}
    shown = [name for name, one in events.items() if one.type in wish.kinds and wish.fits(one)]
    assert shown == [name for name in events if name in (wanted if filters else "stk")]


def test_nothing_is_filtered_without_a_wish():
    assert parse_wish(()).kinds == KINDS


@pytest.mark.parametrize("text", ["type", "type=", "nosuch=1", "type=volume", "event=start"])
def test_filters_that_nobody_knows_are_refused(text):
    with pytest.raises(InvalidArgument, match="--filter"):
        parse_wish([text])


def test_an_event_is_a_line_and_an_object():
    row = event_json(7, SERVICE, 0)
    assert event_text(row) == (
        "2001-09-09T01:46:40Z 7 service update s1x (name=web, replicas.old=1)"
    )
    assert row["Attributes"] == {"name": "web", "replicas.old": "1"}
    assert event_json(8, SECRET, 10**18)["Time"] == "2001-09-09T01:46:40Z"
