"""The endpoint table: who is in it, which version they left at, and what one node sees."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from manager.dispatcher.endpoints import ADDRESSES6_MAX, EndpointTable, Member, PeerRow
from shoal.model.enums import NodeState, PortProtocol, TaskState
from shoal.model.objects import Task
from shoal.model.types import Endpoint, NodeIngress
from tests.support.planning import START_NS, Cell, a_node, a_port, a_service, a_task


def a_published(service_id: str = "web", *ports):
    service = a_service(service_id, ports=ports or (a_port(80, 8080),))
    return service.replaced(endpoint=Endpoint(ports=service.spec.endpoint.ports))


def a_member(task_id: str, *, address: str = "10.0.0.9", **fields) -> Task:
    task = a_task(task_id, **fields)
    return task.with_status(task.status.replaced(address=address))


def members(table: EndpointTable) -> list[str]:
    return [member.task_id for row in table.ports.values() for member in row.members]


def test_only_wanted_running_tasks_with_an_address_take_traffic():
    cell = Cell([
        a_published(),
        a_member("ready", state=TaskState.READY),
        a_member("ended", state=TaskState.FAILED),
        a_member("unwanted", desired=TaskState.SHUTDOWN),
        a_member("lost", address=""),
        a_member("b"), a_member("a"),
        a_member("other", service_id="db"),
    ])  # fmt: skip
    table = EndpointTable()
    assert table.update_services(cell.tables, ["web", "db"])
    (row,) = table.ports.values()
    assert (row.published_port, row.target_port, row.protocol) == (8080, 80, PortProtocol.TCP)
    assert row.members == (Member("a", "n1", "10.0.0.9"), Member("b", "n1", "10.0.0.9"))


def test_the_version_rises_with_each_change_and_only_then():
    cell = Cell([a_published(), a_member("t1")])
    table = EndpointTable()
    before = table.version
    table.update_services(cell.tables, ["web"])
    assert table.version == before + 1
    assert table.update_services(cell.tables, ["web", "nothing"]) == set()
    assert table.version == before + 1
    cell.report("t1", TaskState.FAILED)
    assert {key.published_port for key in table.update_services(cell.tables, ["web"])} == {8080}
    assert table.version == before + 2
    assert members(table) == []
    cell.remove(cell.service())
    table.update_services(cell.tables, ["web"])
    assert table.ports == {}
    assert table.service_ids() == frozenset()


def test_a_task_leaves_at_the_version_without_it():
    cell = Cell([a_published("web", a_port(80, 8080), a_port(443, 8443)), a_member("t1")])
    table = EndpointTable()
    assert table.left_at("t1") == 0
    table.update_services(cell.tables, ["web"])
    assert table.left_at("t1") == table.version + 1, "it has yet to leave"
    task = cell.tasks()[0]
    cell.put(task.with_desired_state(TaskState.SHUTDOWN))
    table.update_services(cell.tables, ["web"])
    assert table.left_at("t1") == table.version
    left_at = table.version
    cell.put(a_member("t2"))
    table.update_services(cell.tables, ["web"])
    assert table.left_at("t1") == left_at < table.version
    table.forget_task("t1")
    assert table.left_at("t1") == 0


def test_a_host_port_is_served_by_the_nodes_of_its_tasks_alone():
    cell = Cell([
        a_published("web", a_port(80, 8080, host=True), a_port(81, 8081)),
        a_member("t1", node_id="n1"), a_member("t2", node_id="n2"),
    ])  # fmt: skip
    table = EndpointTable()
    table.update_services(cell.tables, ["web"])
    host = next(row for row in table.ports.values() if row.published_port == 8080)
    mesh = next(row for row in table.ports.values() if row.published_port == 8081)
    row = host.for_node("n1")
    assert row is not None
    assert [member.task_id for member in row.members] == ["t1"]
    assert host.for_node("n3") is None
    assert mesh.for_node("n3") == mesh


def test_peers_are_nodes_that_know_their_place():
    place = NodeIngress(index=1, subnet="10.240.4.0/22")
    node = a_node("n1").replaced(ingress=place)
    node = node.replaced(description=node.description.replaced(data_path_address="192.0.2.1"))
    cell = Cell([node, a_node("n2"), a_node("n3").replaced(ingress=place)])
    table = EndpointTable()
    version = table.version
    assert table.update_nodes(cell.tables, ["n1", "n2", "n3", "n4"]) == {"n1"}
    assert table.peers == {"n1": PeerRow("n1", 1, "192.0.2.1", "10.240.4.0/22")}
    assert table.update_nodes(cell.tables, ["n1"]) == set()
    assert table.version == version + 1
    cell.remove(node)
    assert table.update_nodes(cell.tables, ["n1"]) == {"n1"}
    assert table.peers == {}


def test_a_peer_tells_of_its_ipv6_what_is_true_and_no_more_than_others_can_bear():
    named = ("2001:DB8::1", "2001:db8:0::1", "192.0.2.7", "nonsense", "fe80::1%eth0", "2001:db8::2")
    node = a_peer("n1", "192.0.2.1")
    description = node.description.replaced(
        ingress_ipv6=True, ipv6_addresses=(*named, *(f"2001:db8:1::{n}" for n in range(100)))
    )
    cell = Cell([node.replaced(description=description)])
    table = EndpointTable()
    table.update_nodes(cell.tables, ["n1"])
    peer = table.peers["n1"]
    assert peer.ipv6
    assert peer.ipv6_addresses[-2:] == ("2001:db8::1", "2001:db8::2")
    assert len(peer.ipv6_addresses) == 2 + ADDRESSES6_MAX - len(named)
    cell.put(node)
    assert table.update_nodes(cell.tables, ["n1"]) == {"n1"}
    assert not table.peers["n1"].ipv6


def a_peer(node_id: str, address: str, *, state=NodeState.READY, joined=0, index=1):
    node = a_node(node_id, state=state)
    return node.replaced(
        meta=node.meta.replaced(created_at_ns=START_NS + joined),
        description=node.description.replaced(data_path_address=address),
        ingress=NodeIngress(index=index, subnet=f"10.240.{4 * index}.0/22"),
    )


def test_a_machine_that_left_and_joined_again_is_one_peer():
    old = a_peer("n1", "192.0.2.1", index=1)
    cell = Cell([old, a_peer("n2", "192.0.2.2", index=2)])
    table = EndpointTable()
    table.update_nodes(cell.tables, ["n1", "n2"])
    assert set(table.peers) == {"n1", "n2"}

    cell.put(old.replaced(status=old.status.replaced(state=NodeState.DISCONNECTED)))
    assert table.update_nodes(cell.tables, ["n1"]) == set(), "alone it keeps its address"
    cell.put(a_peer("n3", "192.0.2.1", joined=9, index=3))
    assert table.update_nodes(cell.tables, ["n3"]) == {"n1", "n3"}
    assert set(table.peers) == {"n2", "n3"}
    assert table.nodes_at("192.0.2.1") == {"n1", "n3"}

    new = cell.tables.nodes.get("n3")
    cell.put(old.replaced(status=old.status.replaced(state=NodeState.DOWN)))
    cell.put(new.replaced(status=new.status.replaced(state=NodeState.DOWN)))
    assert table.update_nodes(cell.tables, ["n1", "n3"]) == {"n3"}, "while the machine is down too"
    assert table.peers["n3"].lost
    cell.remove(new)
    assert table.update_nodes(cell.tables, ["n3"]) == {"n1", "n3"}
    assert set(table.peers) == {"n1", "n2"}


def test_of_two_nodes_that_are_there_the_first_keeps_the_address():
    cell = Cell([a_peer("n1", "192.0.2.1"), a_peer("n0", "192.0.2.1", joined=5, index=2)])
    table = EndpointTable()
    table.update_nodes(cell.tables, ["n0", "n1"])
    assert set(table.peers) == {"n1"}


PEER_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["n1", "n2", "n3", "n4"]),
        st.sampled_from(["", "192.0.2.1", "192.0.2.2"]),
        st.sampled_from(list(NodeState)),
        st.booleans(),
    ),
    max_size=25,
)


@given(PEER_STEPS)
@settings(deadline=None)
def test_following_each_node_gives_the_peers_of_the_whole_state_and_no_address_twice(steps):
    cell = Cell()
    table = EndpointTable()
    for node_id, address, state, gone in steps:
        index = int(node_id[1:])
        node = a_peer(node_id, address, state=state, joined=-index, index=index)
        if not gone:
            cell.put(node)
        elif cell.tables.nodes.get(node_id) is not None:
            cell.remove(node)
        before, version = dict(table.peers), table.version
        changed = table.update_nodes(cell.tables, [node_id])
        fresh = EndpointTable()
        fresh.update_nodes(cell.tables, [row.id for row in cell.tables.nodes])
        assert table.peers == fresh.peers
        assert table.node_ids() == fresh.node_ids()
        assert changed == {
            key for key in before | table.peers if before.get(key) != table.peers.get(key)
        }
        assert table.version == version + bool(changed)
        addresses = [row.address for row in table.peers.values()]
        assert len(addresses) == len(set(addresses))
        assert set(addresses) == {
            row.description.data_path_address for row in cell.tables.nodes
        } - {""}


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["t1", "t2", "t3"]),
        st.sampled_from(["web", "db"]),
        st.sampled_from([TaskState.STARTING, TaskState.RUNNING, TaskState.FAILED]),
        st.sampled_from([TaskState.RUNNING, TaskState.SHUTDOWN]),
        st.booleans(),
    ),
    max_size=25,
)


@given(STEPS)
@settings(deadline=None)
def test_following_each_change_gives_the_table_of_the_whole_state(steps):
    cell = Cell([a_published("web"), a_published("db", a_port(5432, 5432))])
    table = EndpointTable()
    table.update_services(cell.tables, ["web", "db"])
    for task_id, service_id, state, desired, gone in steps:
        old = cell.tables.tasks.get(task_id)
        if gone and old is not None:
            cell.remove(old)
            table.forget_task(task_id)
            service_id = old.service_id
        else:
            service_id = service_id if old is None else old.service_id
            cell.put(a_member(task_id, service_id=service_id, state=state, desired=desired))
        table.update_services(cell.tables, [service_id])
        fresh = EndpointTable()
        fresh.update_services(cell.tables, ["web", "db"])
        assert table.ports == fresh.ports
        for known in ("t1", "t2", "t3"):
            assert (table.left_at(known) > table.version) == (known in members(table))
