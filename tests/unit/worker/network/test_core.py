"""The laws of the slot tables and the checks of settings, peers and ports."""

from __future__ import annotations

import ipaddress
from collections import Counter

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shoal.errors import InvalidArgument
from worker.network.api import Endpoint, NetworkSettings, Peer, PublishedPort
from worker.network.core import (
    NARROW_SLOTS,
    WIDE_SLOTS,
    PortTable,
    check_peers,
    check_port,
    check_settings,
    element_changes,
    endpoints_of,
    gateway_of,
    local_view,
    map_name,
    next_table,
    rebalance,
    table_from_slots,
    task_mac,
    vtep_mac,
)

NAMES = st.sets(st.integers(0, 200).map(lambda n: f"10.0.0.{n}"), max_size=90)
SIZES = st.sampled_from([NARROW_SLOTS, WIDE_SLOTS])


@given(st.lists(NAMES, min_size=1, max_size=6), SIZES)
def test_tables_are_full_fair_and_stable_through_any_history(
    history: list[set[str]], size: int
) -> None:
    table: tuple[str, ...] = ()
    for endpoints in history:
        before, table = table, rebalance(table, endpoints, size)
        if not endpoints:
            assert table == ()
            continue
        assert len(table) == size
        held = Counter(table)
        assert set(held) <= endpoints
        counts = [held[name] for name in endpoints]
        assert max(counts) - min(counts) <= 1
        assert rebalance(table, sorted(endpoints, reverse=True), size) == table
        _check_survivors(before, table, endpoints)


WEIGHTS = st.dictionaries(
    st.integers(0, 200).map(lambda n: f"10.0.0.{n}"), st.integers(1, 100), max_size=90
)


@given(st.lists(WEIGHTS, min_size=1, max_size=6), SIZES)
@example([{"10.0.0.0": 5, "10.0.0.1": 59, "10.0.0.2": 32}], NARROW_SLOTS)
def test_weighted_tables_are_full_in_proportion_and_stable_through_any_history(
    history: list[dict[str, int]], size: int
) -> None:
    table: tuple[str, ...] = ()
    for weights in history:
        before, table = table, rebalance(table, weights, size, weights)
        assert len(table) == (size if weights else 0)
        held, total = Counter(table), sum(weights.values())
        for name, weight in weights.items():
            assert abs(held[name] * total - size * weight) < total
        assert set(held) <= weights.keys()
        assert rebalance(table, list(reversed(weights)), size, weights) == table
        kept = Counter(a for a, b in zip(before, table, strict=False) if a == b)
        for name in weights.keys() & set(before):
            assert kept[name] == min(Counter(before)[name], held[name])


def test_the_size_of_a_table_follows_the_weights() -> None:
    port = _port(["10.240.4.2", "10.240.8.2"])
    for weights, size in (
        ({}, NARROW_SLOTS),
        ({"10.240.4.2": 63}, NARROW_SLOTS),
        ({"10.240.4.2": 64}, WIDE_SLOTS),
    ):
        table = next_table(None, msgspec.structs.replace(port, weights=weights))
        assert len(table.slots) == size
        assert "10.240.8.2" in table.slots


def _check_survivors(before: tuple[str, ...], after: tuple[str, ...], endpoints: set[str]) -> None:
    """A slot changes hands only if its owner left or held more than its share."""
    old, new = Counter(before), Counter(after)
    kept = Counter(a for a, b in zip(before, after, strict=False) if a == b)
    for name in endpoints & set(old):
        assert kept[name] == min(old[name], new[name])


@given(NAMES.filter(lambda names: len(names) > 1))
def test_one_endpoint_less_moves_only_its_own_slots(names: set[str]) -> None:
    table = rebalance((), names, NARROW_SLOTS)
    gone = min(names)
    after = rebalance(table, names - {gone}, NARROW_SLOTS)
    moved = sum(a != b for a, b in zip(table, after, strict=True))
    assert moved == Counter(table)[gone]


def test_six_to_five_touches_eleven_slots() -> None:
    six = [f"10.0.0.{n}" for n in range(6)]
    table = rebalance((), six, NARROW_SLOTS)
    after = rebalance(table, six[1:], NARROW_SLOTS)
    assert sum(a != b for a, b in zip(table, after, strict=True)) == 11


def test_more_endpoints_than_slots_leaves_the_surplus_out() -> None:
    names = [f"10.{n >> 8}.0.{n & 255}" for n in range(1100)]
    assert max(Counter(rebalance((), names, WIDE_SLOTS)).values()) == 1


@given(NAMES, NAMES, st.booleans(), st.sampled_from([80, 81]))
def test_element_changes_turn_the_old_map_into_the_new(
    first: set[str], second: set[str], sticky: bool, target: int
) -> None:
    old = next_table(None, _port(first))
    new = next_table(old, _port(second, sticky=sticky, target=target))
    change = element_changes(old, new)
    kernel = _as_kernel(old)
    for gone in change.deletes:
        assert kernel.pop((gone.map_name, gone.slot)) == gone.endpoint
    for added in change.adds:
        assert (added.map_name, added.slot) not in kernel
        kernel[added.map_name, added.slot] = added.endpoint
    assert kernel == _as_kernel(new)
    assert change.endpoints_gone == set(_as_kernel(old).values()) - set(kernel.values())
    assert element_changes(new, new).adds == ()


def test_the_map_follows_the_number_of_endpoints_and_stickiness() -> None:
    few = tuple(f"10.0.0.{n}" for n in range(64))
    assert next_table(None, _port(few)).map_name == "slots"
    assert next_table(None, _port((*few, "10.0.1.1"))).map_name == "slots_wide"
    assert next_table(None, _port(few, sticky=True)).map_name == "sticky"
    at_address = msgspec.structs.replace(_port(few), address="2001:db8::1")
    assert next_table(None, at_address, version=6).map_name == "slots_at6"
    assert map_name(sticky=True, size=WIDE_SLOTS) == "sticky_wide"


@given(NAMES.filter(bool))
def test_what_the_kernel_holds_is_read_back_as_the_same_table(names: set[str]) -> None:
    table = next_table(None, _port(names))
    owners = {slot: endpoint for (_map, slot), endpoint in _as_kernel(table).items()}
    assert table_from_slots(table.map_name, owners) == table


def test_a_table_nobody_writes_is_not_adopted() -> None:
    mixed = {0: Endpoint("10.0.0.1", 80), 1: Endpoint("10.0.0.1", 81)}
    assert table_from_slots("slots", mixed) is None
    assert table_from_slots("slots", {64: Endpoint("10.0.0.1", 80)}) is None
    assert table_from_slots("slots", {}) is None


def test_a_partial_table_is_completed() -> None:
    found = table_from_slots("slots", {3: Endpoint("10.0.0.1", 80)})
    assert found is not None
    table = next_table(found, _port(["10.0.0.1"]))
    assert len(element_changes(found, table).adds) == NARROW_SLOTS - 1
    assert element_changes(found, table).deletes == ()


def test_host_mode_sees_only_the_nodes_own_tasks() -> None:
    subnet = ipaddress.IPv4Network("10.240.4.0/22")
    port = msgspec.structs.replace(_port(["10.240.4.2", "10.240.8.2"]), mode="host")
    assert local_view(port, subnet).endpoints == ("10.240.4.2",)
    assert local_view(_port(["10.240.8.2"]), subnet).endpoints == ("10.240.8.2",)


SUBNETS = [ipaddress.IPv4Network(f"10.240.{4 * n}.0/22") for n in (1, 2, 3)]
PLACES = st.sets(st.tuples(st.sampled_from(SUBNETS), st.integers(2, 60)), max_size=90)


@given(st.lists(PLACES, min_size=1, max_size=6))
def test_a_node_prefers_its_own_and_never_has_an_empty_table_while_anyone_is_ready(
    history: list[set[tuple[ipaddress.IPv4Network, int]]],
) -> None:
    tables: dict[ipaddress.IPv4Network, PortTable | None] = dict.fromkeys(SUBNETS)
    for places in history:
        ready = {str(subnet[number]) for subnet, number in places}
        port = msgspec.structs.replace(_port(ready), prefer="local")
        for subnet in SUBNETS:
            own = {str(where[number]) for where, number in places if where == subnet}
            table = next_table(tables[subnet], local_view(port, subnet))
            assert set(table.slots) == (own or ready)
            again = next_table(table, local_view(port, subnet))
            assert element_changes(table, again) == element_changes(None, None)
            tables[subnet] = table


def test_a_port_may_send_connections_to_all_its_endpoints_whatever_is_preferred() -> None:
    port = msgspec.structs.replace(_port(["10.240.4.2", "10.240.8.2"]), prefer="local")
    assert endpoints_of(port) == {Endpoint("10.240.4.2", 80), Endpoint("10.240.8.2", 80)}
    assert endpoints_of(None) == frozenset()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source": "balancer"}, "client or node, not 'balancer'"),
        ({"prefer": "near"}, "any or local, not 'near'"),
        ({"address": "::ffff:192.0.2.1"}, "must be written 192.0.2.1"),
        ({"weights": {"10.240.4.2": 0}}, "weights must be at least 1"),
        ({"interface": "a/b"}, "cannot be the name"),
        ({"protocol": "dccp"}, "tcp, udp and sctp, not dccp"),
        ({"mode": "vip"}, "ingress or host"),
        ({"published_port": 0}, "0 is not a port"),
        ({"target_port": 65536}, "65536 is not a port"),
        ({}, ""),
    ],
)
def test_ports_are_checked(changes: dict[str, object], words: str) -> None:
    error = check_port(msgspec.structs.replace(_port([]), **changes))
    assert (words in error) if words else error == ""


def test_addresses_and_macs_follow_from_the_subnet() -> None:
    assert gateway_of("10.240.4.0/22") == "10.240.4.1"
    assert vtep_mac("10.240.4.0/22").hex(":") == "02:fe:0a:f0:04:01"
    assert task_mac("10.240.4.2").hex(":") == "02:42:0a:f0:04:02"


SETTINGS = NetworkSettings(
    index=1, subnet="10.240.4.0/22", underlay_address="192.0.2.1", run_dir="/run/nowhere"
)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"index": 0}, "index 0"),
        ({"subnet": "10.240.4.0/30"}, "smaller than /29"),
        ({"subnet": "fd00::/64"}, "settings"),
        ({"underlay_address": "host"}, "host"),
        ({"data_path_port": 70000}, "data_path_port"),
        ({"mtu": 100}, "mtu"),
        ({"mark_shift": 21}, "mark_shift"),
    ],
)
def test_settings_are_checked(changes: dict[str, object], words: str) -> None:
    check_settings(SETTINGS)
    with pytest.raises(InvalidArgument, match=words):
        check_settings(msgspec.structs.replace(SETTINGS, **changes))


@pytest.mark.parametrize(
    ("peer", "words"),
    [
        (Peer("b", 1, "192.0.2.2", "10.240.8.0/22"), "1 already belongs to this node"),
        (Peer("b", 3, "192.0.2.9", "10.240.8.0/22"), "192.0.2.9 already belongs to peer a"),
        (Peer("b", 3, "192.0.2.3", "10.240.4.0/23"), "overlaps"),
        (Peer("b", 3, "192.0.2.3", "10.240.12.0/23"), "overlaps"),
        (Peer("b", 3, "192.0.2.3", "10.240.9.0/22"), "host bits"),
    ],
)
def test_contradicting_peers_are_refused(peer: Peer, words: str) -> None:
    first = Peer("a", 2, "192.0.2.9", "10.240.12.0/22")
    check_peers([first], SETTINGS)
    with pytest.raises(InvalidArgument, match=words):
        check_peers([first, peer], SETTINGS)


def _port(endpoints: object, *, sticky: bool = False, target: int = 80) -> PublishedPort:
    assert isinstance(endpoints, (set, list, tuple))
    return PublishedPort(
        protocol="tcp",
        published_port=8080,
        target_port=target,
        endpoints=tuple(endpoints),
        sticky=sticky,
    )


def _as_kernel(table: PortTable) -> dict[tuple[str, int], Endpoint]:
    return {
        (table.map_name, slot): Endpoint(owner, table.target_port)
        for slot, owner in enumerate(table.slots)
        if owner
    }
