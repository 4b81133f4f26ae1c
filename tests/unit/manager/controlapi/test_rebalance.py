"""Asking for services to be rebalanced."""

from __future__ import annotations

import pytest

from manager.controlapi import rebalance
from manager.controlapi.rebalance import Wish
from manager.store.tables import Tables
from shoal.api.v1 import control_pb2 as pb
from shoal.errors import FailedPrecondition, InvalidArgument, NotFound
from shoal.model.objects import Service
from shoal.model.specs import GlobalMode
from tests.support.planning import Cell, a_node, a_service, a_task


def cluster() -> Cell:
    """Four tasks of `web` on n1, nothing on n2; `agent` is global."""
    agent = a_service("agent")
    cell = Cell([a_node("n1"), a_node("n2"), a_service(replicas=4)])
    cell.put(agent.replaced(spec=agent.spec.replaced(mode=GlobalMode())))
    version = cell.service().spec_version.index
    cell.put(*(a_task(f"t{slot}", slot=slot, version=version) for slot in range(1, 5)))
    return cell


def marked(tables: Tables, wish: Wish) -> list[str]:
    proposal = rebalance.propose(tables, wish, now_ns=0)
    changed = [change.object for change in rebalance.ask_for(tables, proposal)]
    return [row.id for row in changed if isinstance(row, Service) and row.rebalance_moves]


def test_what_would_be_moved_is_answered_and_asked_for():
    tables = cluster().tables
    for wish in (Wish(references=("web",)), Wish()):
        answer = rebalance.to_answer(rebalance.propose(tables, wish, now_ns=0))
        moves = [(one.service_name, one.from_node_id, one.to_node_id) for one in answer.moves]
        assert moves == [("web", "n1", "n2")] * 2
        assert not answer.more
        assert not answer.unmovable, "global services are no news"
        assert marked(tables, wish) == ["web"]


def test_where_all_is_even_nothing_is_asked_for():
    cell = cluster()
    for slot in (1, 2):
        cell.put(cell.tables.tasks.resolve(f"t{slot}").replaced(node_id="n2"))
    assert marked(cell.tables, Wish()) == []


@pytest.mark.parametrize(
    ("request_", "error", "text"),
    [
        ({"services": ["web"], "all": True}, InvalidArgument, "either name some"),
        ({}, InvalidArgument, "either name some"),
        ({"services": ["agent"]}, FailedPrecondition, "only replicated services are moved"),
        ({"services": ["gone"]}, NotFound, "gone"),
    ],
)
def test_what_is_refused(request_, error, text):
    def ask() -> None:
        wish = rebalance.wish_of(pb.RebalanceServicesRequest(**request_))
        rebalance.propose(cluster().tables, wish, now_ns=0)

    with pytest.raises(error, match=text):
        ask()
