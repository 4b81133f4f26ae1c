"""Numbers, subnets and addresses: unique, in order, rested, and explained when there is none."""

from __future__ import annotations

from ipaddress import ip_interface, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manager.allocator.networks.subnets import VNI_OPTION, Subnets, vni_of
from manager.allocator.plan import plan
from shoal.errors import ResourceExhausted
from shoal.model.defaults import INGRESS_VNI
from shoal.model.enums import EndpointMode, TaskState
from shoal.model.objects import Cluster, Network, Service
from shoal.model.specs import ContainerSpec, TaskSpec
from shoal.model.types import (
    Driver,
    EndpointSpec,
    IpamConfig,
    IpamOptions,
    NetworkAttachmentConfig,
)
from tests.support.planning import Cell, a_network, a_node, a_port, a_service, a_task


def _settle(cell: Cell) -> None:
    cell.settle(lambda tables: plan(tables, (), now_ns=cell.now_ns, ids=cell.ids))


def _network(cell: Cell, network_id: str = "net") -> Network:
    network = cell.tables.networks.get(network_id)
    assert network is not None
    return network


def _subnets(cell: Cell, network_id: str = "net") -> list[str]:
    return [config.subnet for config in _network(cell, network_id).ipam.configs]


def _spec(*networks: str) -> TaskSpec:
    return TaskSpec(
        runtime=ContainerSpec(image="nginx:1"),
        networks=tuple(NetworkAttachmentConfig(target=one) for one in networks),
    )


def _on(*networks: str, name: str = "web") -> Service:
    return a_service(name, task=_spec(*networks))


def _start(cell: Cell, count: int, *networks: str, service_id: str = "web", first: int = 1) -> None:
    for slot in range(first, first + count):
        new = a_task(
            f"{service_id}-{slot}", slot=slot, service_id=service_id, node_id="",
            state=TaskState.NEW, spec=_spec(*networks),
        )  # fmt: skip
        cell.put(new)
    _settle(cell)


def _addresses(cell: Cell, service_id: str = "web") -> list[str]:
    tasks = sorted(cell.tasks(service_id), key=lambda task: task.slot)
    return [str(ip_interface(one.addresses[0]).ip) for task in tasks for one in task.networks]


def _end(cell: Cell, task_id: str) -> None:
    task = cell.tables.tasks.get(task_id)
    assert task is not None
    cell.put(task.replaced(status=task.status.replaced(state=TaskState.SHUTDOWN)))


def test_networks_get_the_next_number_and_subnet() -> None:
    cell = Cell([Cluster(id="c"), a_node("n1")])  # which has 10.0.0.1 itself
    for name in ("red", "green", "blue"):
        cell.put(a_network(name))
        cell.advance(1)
    _settle(cell)

    names = ("red", "green", "blue")
    assert [vni_of(_network(cell, name)) for name in names] == [4096, 4097, 4098]
    assert [_subnets(cell, name) for name in names] == [
        ["10.0.1.0/24"], ["10.0.2.0/24"], ["10.0.3.0/24"],
    ]  # fmt: skip
    assert _network(cell, "red").ipam.configs[0].gateway == "10.0.1.1"

    cell.remove(_network(cell, "green"))
    cell.put(a_network("gold"))
    _settle(cell)
    assert (vni_of(_network(cell, "gold")), _subnets(cell, "gold")) == (4097, ["10.0.2.0/24"])


def test_no_network_gets_the_number_of_the_mesh() -> None:
    cell = Cell([Cluster(id="c"), a_node("n1")])
    for number in range(4096, INGRESS_VNI):
        driver = Driver(name="overlay", options={VNI_OPTION: str(number)})
        cell.put(a_network(f"n{number}").replaced(driver_state=driver, ipam=IpamOptions()))
    cell.put(a_network("next"))
    _settle(cell)
    assert vni_of(_network(cell, "next")) == INGRESS_VNI + 1


def test_subnets_that_are_asked_for_and_of_ipv6() -> None:
    aside = {"router": "10.9.0.1", "printer": "10.9.0.3"}
    wish = IpamConfig(subnet="10.9.0.0/24", reserved=aside)
    network = a_network("net", ipam=IpamOptions(configs=(wish,)), ipv6_enabled=True)
    cell = Cell([Cluster(id="c"), network, _on("net")])
    _start(cell, 2, "net")

    ipv4, ipv6 = _network(cell).ipam.configs
    assert (ipv4.subnet, ipv4.gateway) == ("10.9.0.0/24", "10.9.0.2")
    assert ip_network(ipv6.subnet).prefixlen == 64
    assert ip_network(ipv6.subnet).is_private
    assert _addresses(cell) == ["10.9.0.5", "10.9.0.6"]  # the service has .4
    held = cell.service().endpoint
    assert held is not None
    assert [one.address.partition("/")[2] for one in held.virtual_ips] == ["24", "64"]
    for task in cell.tasks():
        assert [ip_interface(one).version for one in task.networks[0].addresses] == [4, 6]


def test_the_cluster_chooses_its_pools() -> None:
    pools = ("10.1.0.0/30", "192.168.0.0/23")
    cell = Cell([Cluster(id="c", default_address_pools=pools, default_address_pool_mask_length=24)])
    for name in ("a", "b", "c"):
        cell.put(a_network(name))
        cell.advance(1)
    _settle(cell)

    assert [_subnets(cell, name) for name in ("a", "b", "c")] == [
        ["192.168.0.0/24"], ["192.168.1.0/24"], [],
    ]  # fmt: skip
    with pytest.raises(ResourceExhausted, match=r"no subnet of /24 is free in 10\.1\.0\.0/30"):
        Subnets(cell.tables).allocated(_network(cell, "c"))


def test_a_task_waits_for_its_network_and_says_why() -> None:
    cell = Cell([a_network("red", "10.1.0.0/24"), _on("blue")])
    _settle(cell)
    _start(cell, 1, "blue")
    assert "network blue was removed: take it out" in cell.tasks()[0].status.error

    cell.put(a_network("blue", "10.1.0.0/25"))
    _settle(cell)
    error = cell.tasks()[0].status.error
    assert error.startswith("network blue: subnet: 10.1.0.0/25 overlaps 10.1.0.0/24 of network red")

    cell.remove(_network(cell, "red"))
    _settle(cell)
    assert cell.tasks()[0].status.state is TaskState.PENDING


def test_a_full_network_says_how_many_addresses_it_has() -> None:
    cell = Cell([a_network("net", "10.1.0.0/29"), _on("net")])
    _start(cell, 5, "net")

    waiting = next(task for task in cell.tasks() if task.status.state is TaskState.NEW)
    assert _addresses(cell) == [f"10.1.0.{number}" for number in (3, 4, 5, 6)]  # .2 is virtual
    assert waiting.status.error.startswith("network net: all 5 addresses of 10.1.0.0/29 are in use")
    _end(cell, "web-2")
    _settle(cell)
    assert cell.tables.tasks.get(waiting.id).networks[0].addresses == ("10.1.0.4/29",)


def test_an_address_rests_although_nobody_remembers_who_had_it() -> None:
    cell = Cell([a_network("net", "10.1.0.0/24"), _on("net")])
    _start(cell, 2, "net")
    for task in list(cell.tasks()):
        cell.remove(task)
    _start(cell, 2, "net", first=3)

    assert _addresses(cell) == ["10.1.0.5", "10.1.0.6"]


def test_the_range_bounds_what_is_given_not_the_gateway() -> None:
    wish = IpamConfig(subnet="10.1.0.0/24", ip_range="10.1.0.248/29")
    cell = Cell([a_network("net", ipam=IpamOptions(configs=(wish,))), _on("net")])
    _start(cell, 9, "net")

    assert _network(cell).ipam.configs[0].gateway == "10.1.0.1"
    assert _addresses(cell) == [f"10.1.0.{number}" for number in range(249, 255)]


def test_a_service_keeps_its_virtual_address_and_gives_it_back() -> None:
    cell = Cell([a_network("red", "10.1.0.0/24"), a_network("blue", "10.2.0.0/24"), _on("red")])
    _settle(cell)
    before = cell.service().endpoint
    assert before is not None
    assert [one.address for one in before.virtual_ips] == ["10.1.0.2/24"]

    def change(**fields: object) -> list[str]:
        service = cell.service()
        cell.put(service.replaced(spec=service.spec.replaced(**fields)))
        _settle(cell)
        endpoint = cell.service().endpoint
        return [one.address for one in endpoint.virtual_ips] if endpoint is not None else []

    assert change(task=_spec("blue", "red")) == ["10.2.0.2/24", "10.1.0.2/24"]
    assert change(endpoint=EndpointSpec(ports=(a_port(80),))) == ["10.2.0.2/24", "10.1.0.2/24"]
    assert change(task=_spec("blue")) == ["10.2.0.2/24"]
    assert change(endpoint=EndpointSpec(mode=EndpointMode.DNSRR)) == []
    assert change(endpoint=EndpointSpec()) == ["10.2.0.3/24"]


@settings(max_examples=60, deadline=None)
@given(
    subnet=st.sampled_from(["10.1.0.0/29", "10.1.0.0/28", "10.1.0.128/25"]),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 20)), max_size=60),
)
def test_no_address_is_given_twice_and_none_is_lost(
    subnet: str, steps: list[tuple[bool, int]]
) -> None:
    """Against a model: as many live tasks have an address as the subnet has room for."""
    cell = Cell([a_network("net", subnet), _on("net")])
    capacity = ip_network(subnet).num_addresses - 4  # network, broadcast, gateway, virtual
    live: list[str] = []
    for number, (starts, which) in enumerate(steps, start=1):
        if starts:
            _start(cell, 1, "net", first=number)
            live.append(f"web-{number}")
        elif live:
            _end(cell, live.pop(which % len(live)))
            _settle(cell)
        rows = [cell.tables.tasks.get(task_id) for task_id in live]
        given = [task.networks[0].addresses[0] for task in rows if task.networks]
        assert len(given) == len(set(given)) == min(len(live), capacity)
        assert all(ip_interface(one).ip in ip_network(subnet) for one in given)


def _fixed(*addresses: str) -> TaskSpec:
    wishes = (NetworkAttachmentConfig(target="net", addresses=addresses),)
    return TaskSpec(runtime=ContainerSpec(image="nginx:1"), networks=wishes)


def _put(cell: Cell, task_id: str, slot: int, spec: TaskSpec) -> None:
    cell.put(a_task(task_id, slot=slot, node_id="", state=TaskState.NEW, spec=spec))


def _address(cell: Cell, task_id: str) -> str:
    task = cell.tables.tasks.get(task_id)
    assert task is not None
    return task.networks[0].addresses[0] if task.networks else task.status.error


def test_each_replica_has_the_address_that_was_chosen_for_it() -> None:
    spec = _fixed("10.1.0.3", "10.1.0.9", "10.1.0.2")
    cell = Cell([a_network("net", "10.1.0.0/28"), a_service("web", task=spec)])
    for slot in (3, 1, 2):
        _put(cell, f"t{slot}", slot, spec)
    _settle(cell)
    cell.put(_on("net", name="other"))
    _start(cell, 8, "net", service_id="other")
    assert [_address(cell, f"t{slot}") for slot in (1, 2, 3)] == [
        "10.1.0.3/28", "10.1.0.9/28", "10.1.0.2/28",
    ]  # fmt: skip
    # The virtual addresses are .4 and .5: nobody is given what a service asks for.
    assert _addresses(cell, "other") == [f"10.1.0.{n}" for n in (6, 7, 8, 10, 11, 12, 13, 14)]


def test_a_successor_waits_for_the_address_of_the_one_it_replaces() -> None:
    spec = _fixed("10.1.0.8", "10.1.0.9")
    cell = Cell([a_network("net", "10.1.0.0/28"), a_service("web", task=spec)])
    _put(cell, "old", 1, spec)
    _settle(cell)
    _put(cell, "new", 1, spec)
    _settle(cell)
    assert _address(cell, "new") == (
        "network net: address 10.1.0.8 is in use by task old: the task waits until it is free"
    )
    _end(cell, "old")
    _settle(cell)
    assert _address(cell, "new") == "10.1.0.8/28"


def test_a_replica_beyond_the_list_takes_what_is_free_of_it() -> None:
    """After scaling down and up the numbers of replicas have gaps."""
    spec = _fixed("10.1.0.8", "10.1.0.9")
    cell = Cell([a_network("net", "10.1.0.0/28"), a_service("web", task=spec)])
    for slot in (3, 5):  # both would be the first's
        _put(cell, f"t{slot}", slot, spec)
    _settle(cell)
    assert {_address(cell, "t3"), _address(cell, "t5")} == {"10.1.0.8/28", "10.1.0.9/28"}


def test_an_address_outside_of_the_range_and_of_one_family_alone() -> None:
    wish = IpamConfig(subnet="10.1.0.0/24", ip_range="10.1.0.128/25")
    network = a_network("net", ipam=IpamOptions(configs=(wish,)), ipv6_enabled=True)
    spec = _fixed("10.1.0.5")
    cell = Cell([Cluster(id="c"), network, a_service("web", task=spec)])
    _put(cell, "t1", 1, spec)
    _settle(cell)
    task = cell.tables.tasks.get("t1")
    assert task is not None
    ipv4, ipv6 = task.networks[0].addresses
    assert ipv4 == "10.1.0.5/24"
    assert ip_interface(ipv6).version == 6


def test_an_address_that_another_task_has_already_is_named() -> None:
    cell = Cell([a_network("net", "10.1.0.0/28"), _on("net", name="other")])
    _start(cell, 1, "net", service_id="other")
    spec = _fixed(_addresses(cell, "other")[0])
    cell.put(a_service("web", task=spec))
    _put(cell, "t1", 1, spec)
    _settle(cell)
    assert "is in use by task other-1" in _address(cell, "t1")
    _end(cell, "other-1")
    _settle(cell)
    assert _address(cell, "t1") == "10.1.0.3/28"


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 4),
    steps=st.lists(st.tuples(st.booleans(), st.integers(1, 6)), max_size=40),
)
def test_fixed_addresses_are_held_once_and_never_lost(
    count: int, steps: list[tuple[bool, int]]
) -> None:
    """Against a model: while there are no more replicas than addresses, each has one."""
    names = tuple(f"10.1.0.{8 + number}" for number in range(count))
    spec = _fixed(*names)
    cell = Cell([a_network("net", "10.1.0.0/28"), a_service("web", task=spec)])
    live: dict[int, str] = {}
    for number, (starts, slot) in enumerate(steps):
        if slot in live and not starts:
            _end(cell, live.pop(slot))
        elif slot not in live and starts and len(live) < count:
            live[slot] = f"t{number}"
            _put(cell, f"t{number}", slot, spec)
        _settle(cell)
        given = [_address(cell, task_id) for task_id in live.values()]
        assert len(set(given)) == len(given)
        assert {one.partition("/")[0] for one in given} <= set(names)
