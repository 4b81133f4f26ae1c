"""Laws of the plans for overlay networks: elements, tables, remotes, names."""

from __future__ import annotations

import cProfile
import pstats

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import InvalidArgument
from worker.network.core import NARROW_SLOTS, WIDE_SLOTS
from worker.network.overlay import naming, plan
from worker.network.overlay.api import (
    OverlayEndpoint,
    OverlayLink,
    OverlayNetwork,
    OverlayService,
    OverlayState,
    TaskPlace,
)

NET = OverlayNetwork(network_id="n", name="net", vni=4096, subnets=("10.0.0.0/16", "fd00::/64"))
VIPS = ("10.0.0.2", "fd00::2")
NODES = {"n1": "192.0.2.1", "n2": "192.0.2.2"}


def endpoint(number: int, *, node: str = "n2", ready: bool = True) -> OverlayEndpoint:
    return OverlayEndpoint(
        network_id="n",
        task_id=f"t{number}",
        service_id="s",
        node_id=node,
        addresses=(f"10.0.1.{number}", f"fd00::1:{number:x}"),
        names=(f"web.{number}",),
        ready=ready,
    )


def state(*endpoints: OverlayEndpoint, vips: tuple[str, ...] = VIPS) -> OverlayState:
    service = OverlayService(
        network_id="n", service_id="s", name="web", virtual_ips=vips, aliases=("www",)
    )
    return OverlayState(networks=(NET,), services=(service,), endpoints=endpoints, nodes=NODES)


def planned(wish: OverlayState, current: plan.Tables | None = None) -> plan.NetworkPlan:
    return plan.plans(wish, {"n": current or {}}, "192.0.2.1")["n"]


MEMBERS = st.sets(st.integers(1, 90), max_size=90)


@given(st.lists(MEMBERS, min_size=1, max_size=5))
def test_elements_follow_the_ready_tasks_through_any_history(history: list[set[int]]) -> None:
    """What the kernel would hold is always the table, and read back it is the table again."""
    held: dict[tuple[str, bytes], bytes] = {}
    tables: plan.Tables = {}
    for members in history:
        new = planned(state(*(endpoint(n) for n in sorted(members))), tables).tables
        for version in (4, 6):
            change = plan.change(tables, new, version)
            for element in change.deletes:
                assert held.pop((element.set_name, element.key)) == element.value
            for element in change.adds:
                assert (element.set_name, element.key) not in held, "the kernel refuses that"
                held[element.set_name, element.key] = element.value
        tables = new
        assert plan.owners_of(tables) == {
            address for n in members for address in endpoint(n).addresses
        }
        size = NARROW_SLOTS if len(members) <= NARROW_SLOTS else WIDE_SLOTS
        assert {len(table) for table in tables.values()} == {size if members else 0}
        assert plan.parse(*_of_kernel(held)) == tables


def _of_kernel(
    held: dict[tuple[str, bytes], bytes],
) -> tuple[list[bytes], dict[str, dict[bytes, bytes]]]:
    slots: dict[str, dict[bytes, bytes]] = {name: {} for name in plan.SLOTS.values()}
    for (name, key), value in held.items():
        if name in slots:
            slots[name][key] = value
    return [key for name, key in held if name == plan.VIPS], slots


def test_an_unchanged_wish_changes_nothing() -> None:
    first = planned(state(endpoint(1), endpoint(2)))
    again = planned(state(endpoint(2), endpoint(1)), first.tables)
    assert again.tables == first.tables
    assert plan.change(first.tables, again.tables, 4) == plan.Change()


def test_remotes_are_all_endpoints_of_other_known_nodes_ready_or_not() -> None:
    wish = state(
        endpoint(1, node="n1"), endpoint(2), endpoint(3, ready=False), endpoint(4, node="n9")
    )
    remotes = planned(wish).remotes
    macs = {2: b"\x02\x42\x0a\x00\x01\x02", 3: b"\x02\x42\x0a\x00\x01\x03"}
    assert remotes.forwarding == dict.fromkeys(macs.values(), "192.0.2.2")
    assert remotes.neighbours == {
        address: mac for n, mac in macs.items() for address in endpoint(n).addresses
    }


def test_the_hardware_address_follows_from_the_first_address() -> None:
    assert plan.hardware_address(["10.1.2.3/24", "fd00::9/64"]) == b"\x02\x42\x0a\x01\x02\x03"
    assert plan.hardware_address(["fd00::a:b"]) == b"\x02\x42\x00\x0a\x00\x0b"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"vni": 0}, "VXLAN number 0"),
        ({"vni": 1 << 24}, "VXLAN number"),
        ({"vni": 5377}, "ingress network's"),
        ({"subnets": ()}, "one subnet per address family"),
        ({"subnets": ("10.0.0.0/24", "10.1.0.0/24")}, "one subnet per address family"),
        ({"mtu": 1279}, "mtu 1279 is not in 1280"),
        ({"mtu": 70_000}, "mtu 70000"),
        ({"mtu": 500, "subnets": ("10.0.0.0/24",)}, "mtu 500 is not in 576"),
    ],
)
def test_networks_that_cannot_be_built_are_refused(changes: dict[str, object], reason: str) -> None:
    plan.check_network(NET)
    with pytest.raises(InvalidArgument, match=reason):
        plan.check_network(msgspec.structs.replace(NET, **changes))


def test_a_task_is_shut_in_where_all_its_networks_are_internal() -> None:
    inner = msgspec.structs.replace(NET, network_id="i", internal=True)
    networks = {"n": NET, "i": inner}

    def place(*ids: str, publishes: bool = False) -> TaskPlace:
        links = tuple(
            OverlayLink(network_id=one, interface="eth1", addresses=("10.0.0.9/16",)) for one in ids
        )
        return TaskPlace(
            task_id="t", netns_path="/x", uplink="eth0", links=links, publishes=publishes
        )

    assert plan.is_shut_in(place("i"), networks)
    assert not plan.is_shut_in(place("i", publishes=True), networks)
    assert not plan.is_shut_in(place("i", "n"), networks)


def test_names_of_services_and_ready_tasks() -> None:
    found = naming.known_names(state(endpoint(1), endpoint(2, ready=False)))
    assert set(found) == {"n/s", "n/s/tasks", "n/t1"}
    assert (found["n/s"].names, found["n/s"].ipv4, found["n/s"].ipv6) == (("web", "www"), *VIPS)
    assert (found["n/s/tasks"].names, found["n/s/tasks"].ipv4) == (("tasks.web", "tasks.www"), "")
    assert found["n/t1"].names == ("web.1", "t1", "tasks.web", "tasks.www")
    assert (found["n/t1"].ipv4, found["n/t1"].ipv6) == ("10.0.1.1", "fd00::1:1")


def test_without_virtual_addresses_a_service_is_its_tasks() -> None:
    found = naming.known_names(state(endpoint(1), vips=()))
    assert found["n/s"].ipv4 == ""
    assert found["n/t1"].names == ("web.1", "t1", "tasks.web", "tasks.www", "web", "www")


def crowd(count: int, *, but: int = -1) -> OverlayState:
    """A network with services of 50 tasks; one of the tasks is not ready."""
    services = [
        OverlayService(network_id="n", service_id=f"s{one}", name=f"s{one}", virtual_ips=(vip,))
        for one, vip in enumerate(f"10.0.0.{number + 2}" for number in range(count // 50))
    ]
    endpoints = [
        OverlayEndpoint(
            network_id="n", task_id=f"t{number}", service_id=f"s{number // 50}", node_id="n2",
            addresses=(f"10.0.{1 + number // 250}.{1 + number % 250}",), ready=number != but,
        )
        for number in range(count)
    ]  # fmt: skip
    return OverlayState(
        networks=(NET,), services=tuple(services), endpoints=tuple(endpoints), nodes=NODES
    )


def test_a_network_of_4000_endpoints_costs_in_proportion_and_one_change_is_small() -> None:
    """Counted are Python's calls, which are the same on every machine."""

    def cost(count: int) -> int:
        wish, profile = crowd(count), cProfile.Profile()
        profile.runcall(planned, wish)
        return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]

    assert cost(4000) < 5 * cost(1000)
    whole = planned(crowd(4000))
    assert len(whole.remotes.neighbours) == 4000
    assert len(whole.tables) == 80
    after = planned(crowd(4000, but=7), dict(whole.tables))
    changed = plan.change(whole.tables, after.tables, 4)
    assert 0 < len(changed.adds) <= len(changed.deletes) <= 2
