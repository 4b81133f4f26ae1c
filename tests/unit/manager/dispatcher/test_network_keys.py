"""When a new generation of keys begins, and which keys a node may report."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.dispatcher.driver import Dispatcher
from manager.dispatcher.messages import MessageWriter
from manager.dispatcher.network_keys import check_keys, generation_of, with_next_generation
from shoal.errors import FailedPrecondition, InvalidArgument
from shoal.model.defaults import NETWORK_KEY_ROTATION_NS
from shoal.model.enums import NodeState
from shoal.model.objects import Cluster
from shoal.model.specs import ClusterSpec, NetworkConfig
from shoal.model.types import Driver, Meta, NetworkKey, NodeDescription
from tests.support.managing import HandClock, a_store, running, until
from tests.support.planning import START_NS, Cell, a_network, a_node
from tests.unit.manager.dispatcher.test_endpoints import a_peer

PERIOD_NS = NETWORK_KEY_ROTATION_NS


def key(generation, size=32):
    return NetworkKey(generation, bytes(size))


def a_view(*nodes, encrypted=True, generation=0, since_ns=0, period_ns=None):
    plain = a_network("net")
    options = {"encrypted": ""} if encrypted else {}
    network = plain.replaced(spec=plain.spec.replaced(driver=Driver("overlay", options)))
    cluster = Cluster(
        id="c",
        meta=Meta(created_at_ns=START_NS),
        spec=ClusterSpec(network=NetworkConfig(key_rotation_ns=period_ns)),
        encryption_key_lamport_clock=generation,
        network_keys_since_ns=since_ns,
    )
    return Cell([cluster, network, *nodes]).tables


def a_keyed_node(node_id, *generations, state=NodeState.READY):
    node = a_node(node_id, state=state)
    keys = tuple(map(key, generations))
    return node.replaced(description=node.description.replaced(network_keys=keys))


def test_a_generation_lasts_a_period_from_the_first_one_on():
    view = a_view(a_keyed_node("n1", 0), a_node("n2"))
    assert with_next_generation(view, START_NS + PERIOD_NS - 1) is None
    renewed = with_next_generation(view, START_NS + PERIOD_NS)
    assert generation_of(renewed) == 1
    assert renewed.network_keys_since_ns == START_NS + PERIOD_NS
    again = a_view(a_keyed_node("n1", 0, 1), generation=1, since_ns=START_NS + PERIOD_NS)
    assert with_next_generation(again, START_NS + 2 * PERIOD_NS - 1) is None
    assert generation_of(with_next_generation(again, START_NS + 2 * PERIOD_NS)) == 2


def test_the_period_is_the_clusters_setting():
    view = a_view(period_ns=10)
    assert with_next_generation(view, START_NS + 9) is None
    assert with_next_generation(view, START_NS + 10) is not None


def test_without_an_encrypted_network_keys_stay():
    assert with_next_generation(a_view(encrypted=False), START_NS + 9 * PERIOD_NS) is None
    assert generation_of(None) == 0


@pytest.mark.parametrize("state", [NodeState.DOWN, NodeState.READY])
def test_a_node_that_is_behind_is_waited_for_while_it_is_there_and_one_period_long(state):
    view = a_view(a_keyed_node("n1", 0, state=state), generation=1, since_ns=START_NS)
    waits = with_next_generation(view, START_NS + PERIOD_NS) is None
    assert waits == (state is NodeState.READY)
    assert with_next_generation(view, START_NS + 2 * PERIOD_NS) is not None


@given(st.lists(st.integers(0, 3), max_size=4), st.integers(30, 34))
def test_only_what_a_node_can_have_is_accepted(generations, size):
    keys = [key(generation, size) for generation in generations]
    fits = len(keys) <= 2 and len(set(generations)) == len(keys) and (size == 32 or not keys)
    if fits:
        check_keys(keys)
    else:
        with pytest.raises(InvalidArgument, match="network keys"):
            check_keys(keys)


class Rig:
    """A dispatcher whose checks are called by hand, and its service without a network."""

    def __init__(self, *rows):
        self.clock = HandClock()
        self.store, self.proposer = a_store(rows, self.clock)
        self.dispatcher = Dispatcher(self.store, self.clock, manager_id="m1")

    @property
    def generation(self):
        return generation_of(self.store.view.cluster)

    def keys(self):
        keys = self.store.view.nodes.resolve("n1").description.network_keys
        return [one.generation for one in keys]


def some_rows():
    network = a_network("net", driver=Driver("overlay", {"encrypted": ""}))
    return Cluster(id="c", network_keys_since_ns=START_NS), network, a_keyed_node("n1", 0)


async def test_reported_keys_are_in_the_nodes_row_and_told_to_peers():
    cluster, network, _node = some_rows()
    rig = Rig(cluster, network, a_peer("n1", "192.0.2.1"))
    async with running(rig.dispatcher.run):
        with rig.dispatcher.stream("n2") as stream:
            await rig.dispatcher.report_network_keys("n1", (key(4), key(5)))
            assert rig.keys() == [4, 5]
            await until(lambda: rig.dispatcher.table.peers["n1"].network_keys == (key(4), key(5)))
            diff, _ = rig.dispatcher.take(stream)
            (message,) = MessageWriter().messages(diff, version=2, more=False)
            (peer,) = (one.assignment.peer for one in message.changes)
            assert [one.generation for one in peer.network_keys] == [4, 5]
    with pytest.raises(InvalidArgument, match="at most 2"):
        await rig.dispatcher.report_network_keys("n1", (key(4), key(5), key(6)))
    with pytest.raises(FailedPrecondition, match="was removed"):
        await rig.dispatcher.report_network_keys("gone", (key(4),))


async def test_a_sweep_begins_a_generation_when_it_is_due_and_sessions_hear_of_it():
    rig = Rig(*some_rows())
    async with running(rig.dispatcher.run):
        await rig.dispatcher.register("n1", NodeDescription(network_keys=(key(0),)), "192.0.2.1")
        with rig.dispatcher.session_changes("n1") as signal:
            rig.clock.advance(PERIOD_NS / 1e9 - 60)
            await rig.dispatcher.expire()
            assert rig.generation == 0
            rig.clock.advance(61)
            await rig.dispatcher.expire()
            assert rig.generation == 1
            assert await signal.wait(40)
        await rig.dispatcher.expire()
        assert rig.generation == 1
