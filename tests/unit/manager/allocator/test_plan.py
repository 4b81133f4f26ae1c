from __future__ import annotations

import pytest

from manager.allocator.ingress import INDEX_MAX
from manager.allocator.plan import plan
from manager.allocator.ports import check_ports
from shoal.errors import InvalidArgument, ResourceExhausted
from shoal.model.defaults import DYNAMIC_PORTS
from shoal.model.enums import EndpointMode, NodeMembership, PortProtocol, TaskState
from shoal.model.objects import AnyObject, Cluster, Node
from shoal.model.types import Endpoint, EndpointSpec, NodeIngress, PortConfig
from tests.support.planning import START_NS, Cell, a_node, a_port, a_service, a_task


def _settle(cell: Cell) -> None:
    names = [service.id for service in cell.tables.services]
    cell.settle(lambda tables: plan(tables, names, now_ns=cell.now_ns, ids=cell.ids))


def _new(service_id: str = "web") -> AnyObject:
    return a_task(f"new-{service_id}", service_id=service_id, state=TaskState.NEW, node_id="")


def _ports(cell: Cell, service_id: str = "web") -> list[int]:
    endpoint = cell.service(service_id).endpoint
    return [] if endpoint is None else [port.published_port for port in endpoint.ports]


def _change_ports(cell: Cell, *ports: PortConfig) -> None:
    service = cell.service()
    cell.put(service.replaced(spec=service.spec.replaced(endpoint=EndpointSpec(ports=ports))))
    _settle(cell)


def test_a_new_task_gets_the_endpoint_and_goes_on_to_the_scheduler() -> None:
    cell = Cell([a_service(ports=(a_port(80, 8080), a_port(81))), _new()])
    _settle(cell)

    (task,) = cell.tasks()
    assert task.status.state is TaskState.PENDING
    assert task.status.message == "pending task scheduling"
    assert task.endpoint == cell.service().endpoint
    assert _ports(cell) == [8080, DYNAMIC_PORTS.start]


def test_dynamic_ports_are_the_lowest_free_ones_of_the_cluster() -> None:
    first = DYNAMIC_PORTS.start
    cell = Cell([a_service("db", ports=(a_port(80, first + 1),))])
    cell.advance(1)
    cell.put(a_service(ports=(a_port(80), a_port(80, protocol=PortProtocol.UDP), a_port(81))))
    _settle(cell)

    assert _ports(cell) == [first, first, first + 2]


def test_a_dynamic_port_stays_across_updates() -> None:
    first = DYNAMIC_PORTS.start
    cell = Cell([a_service(ports=(a_port(80), a_port(81)))])
    _settle(cell)
    _change_ports(cell, a_port(81), a_port(82), a_port(80))

    assert _ports(cell) == [first + 1, first + 2, first]


def test_a_dynamic_port_stays_when_its_options_change() -> None:
    first = DYNAMIC_PORTS.start
    cell = Cell([a_service(ports=(a_port(80), a_port(80).replaced(sticky=True), a_port(81)))])
    _settle(cell)
    assert _ports(cell) == [first, first + 1, first + 2]

    _change_ports(cell, a_port(81).replaced(sticky=True), a_port(80).replaced(sticky=True))
    assert _ports(cell) == [first + 2, first + 1]


def test_a_dynamic_port_gives_way_to_one_asked_for_by_number() -> None:
    first = DYNAMIC_PORTS.start
    cell = Cell([a_service(ports=(a_port(80),))])
    _settle(cell)
    assert _ports(cell) == [first]

    _change_ports(cell, a_port(80), a_port(81, first))
    assert _ports(cell) == [first + 1, first]
    with pytest.raises(InvalidArgument, match=f"port {first}/tcp is already in use by service web"):
        check_ports(cell.tables, a_service("api", ports=(a_port(80, first),)).spec)


def test_a_port_that_is_taken_keeps_the_task_new_and_says_why() -> None:
    cell = Cell([a_service("web", ports=(a_port(80, 8080),))])
    _settle(cell)
    cell.put(a_service("api", ports=(a_port(80, 8080),)), _new("api"))
    _settle(cell)

    (task,) = cell.tasks("api")
    assert task.status.state is TaskState.NEW
    assert task.status.error.startswith("port 8080/tcp is already in use by service web")


def test_a_waiting_task_goes_on_when_the_port_comes_free() -> None:
    cell = Cell([a_service("web", ports=(a_port(80, 8080),))])
    _settle(cell)
    cell.put(a_service("api", ports=(a_port(80, 8080),)), _new("api"))
    _settle(cell)
    cell.put(cell.service("web").replaced(pending_delete=True))
    _settle(cell)

    (task,) = cell.tasks("api")
    assert (task.status.state, task.status.error) == (TaskState.PENDING, "")


def test_the_service_that_was_there_first_has_the_port() -> None:
    cell = Cell([a_service("zebra", ports=(a_port(80, 8080),))])
    cell.advance(1)
    cell.put(a_service("ape", ports=(a_port(80, 8080),)))
    _settle(cell)

    assert (_ports(cell, "zebra"), _ports(cell, "ape")) == ([8080], [])


def _at(address: str = "", *, interface: str = "", host: bool = False) -> PortConfig:
    return a_port(80, 8080, host=host).replaced(address=address, interface=interface)


def test_a_number_at_an_address_comes_free_for_others() -> None:
    cell = Cell([a_service("web", ports=(_at("192.0.2.1"), _at("192.0.2.2")))])
    _settle(cell)
    cell.put(a_service("api", ports=(_at("192.0.2.2"),)), a_service("db", ports=(a_port(80),)))
    _settle(cell)
    assert (_ports(cell), _ports(cell, "api")) == ([8080, 8080], [])

    _change_ports(cell, _at("192.0.2.1"))
    assert (_ports(cell), _ports(cell, "api")) == ([8080], [8080])


def test_a_chosen_number_is_free_where_the_port_answers() -> None:
    first = DYNAMIC_PORTS.start
    there = a_port(80, first).replaced(address="192.0.2.1")
    cell = Cell([a_service("web", ports=(there,))])
    _settle(cell)
    cell.put(a_service("api", ports=(a_port(80), a_port(81).replaced(address="192.0.2.2"))))
    _settle(cell)
    assert _ports(cell, "api") == [first + 1, first]


@pytest.mark.parametrize(
    ("held", "wanted", "refused"),
    [
        (a_port(80, 8080), a_port(80, 8080), True),
        (a_port(80, 8080), a_port(80, 8081), False),
        (a_port(80, 8080), a_port(80, 8080, protocol=PortProtocol.UDP), False),
        (a_port(80, 8080), a_port(80, 8080, host=True), True),
        (a_port(80, 8080, host=True), a_port(80, 8080), True),
        (a_port(80, 8080, host=True), a_port(80, 8080, host=True), False),
        (a_port(80, 8080), a_port(80), False),
        (_at("192.0.2.1"), _at("192.0.2.2"), False),
        (_at("192.0.2.1"), _at("192.0.2.1"), True),
        (_at("192.0.2.1"), a_port(80, 8080), True),
        (a_port(80, 8080), _at("192.0.2.1"), True),
        (_at("192.0.2.1"), a_port(80, 8080, host=True), True),
        (_at("192.0.2.1"), _at("192.0.2.2", host=True), False),
        (_at(interface="eth0"), _at(interface="eth1"), False),
        (_at(interface="eth0"), _at("192.0.2.1"), True),
    ],
)
def test_the_control_api_can_refuse_a_conflict_at_once(
    held: PortConfig, wanted: PortConfig, refused: bool
) -> None:
    cell = Cell([a_service("web", ports=(held,))])
    _settle(cell)
    spec = a_service("api", ports=(wanted,)).spec

    if refused:
        with pytest.raises(InvalidArgument, match=r"8080/tcp is already in use by service web"):
            check_ports(cell.tables, spec)
    else:
        check_ports(cell.tables, spec)
    check_ports(cell.tables, cell.service().spec, service_id="web")


def test_specs_that_contradict_themselves() -> None:
    cell = Cell()
    twice = a_service(ports=(a_port(80, 8080), a_port(81, 8080))).spec
    with pytest.raises(InvalidArgument, match="published twice"):
        check_ports(cell.tables, twice)
    dnsrr = EndpointSpec(mode=EndpointMode.DNSRR, ports=(a_port(80, 8080),))
    with pytest.raises(InvalidArgument, match="dnsrr"):
        check_ports(cell.tables, twice.replaced(endpoint=dnsrr))


def test_when_all_dynamic_ports_are_taken_the_reason_says_so() -> None:
    ports = tuple(a_port(80, number) for number in DYNAMIC_PORTS)
    hog = a_service("hog").replaced(endpoint=Endpoint(ports=ports))
    cell = Cell([hog])

    with pytest.raises(ResourceExhausted, match="30000-32767"):
        check_ports(cell.tables, a_service("web", ports=(a_port(80),)).spec)


def _ingress(cell: Cell) -> dict[str, NodeIngress | None]:
    return {node.id: node.ingress for node in cell.tables.nodes}


def _with_index(node: Node, index: int) -> Node:
    return node.replaced(ingress=NodeIngress(index=index))


def test_nodes_get_the_lowest_free_place_and_a_subnet_by_it() -> None:
    nodes = [_with_index(a_node("n1"), 1), _with_index(a_node("n3"), 3), a_node("n2"), a_node("n4")]
    cell = Cell([Cluster(id="c", ingress_pool="10.240.0.0/12"), *nodes])
    _settle(cell)

    places = _ingress(cell)
    assert places["n2"] == NodeIngress(index=2, subnet="10.240.8.0/22")
    assert places["n4"] == NodeIngress(index=4, subnet="10.240.16.0/22")


def test_a_node_that_is_not_let_in_gets_no_place() -> None:
    node = a_node("n1")
    waiting = node.replaced(spec=node.spec.replaced(membership=NodeMembership.PENDING))
    cell = Cell([waiting])
    _settle(cell)

    assert _ingress(cell) == {"n1": None}


def test_a_full_mesh_is_noted_and_no_place_is_shared() -> None:
    cluster = Cluster(id="c", ingress_pool="10.0.0.0/24", ingress_subnet_mask_length=26)
    cell = Cell([cluster, *(a_node(f"n{number}") for number in range(5))])
    done = plan(cell.tables, [], now_ns=START_NS, ids=cell.ids)
    _settle(cell)

    places = [place for place in _ingress(cell).values() if place is not None]
    assert sorted(place.index for place in places) == [1, 2, 3]
    assert [note.event for note in done.notes] == ["allocator.mesh_full"]
    assert INDEX_MAX == 4095
