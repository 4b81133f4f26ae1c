"""Which peers a node has on encrypted networks, and by which key it speaks to them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.network.overlay import secrecy
from worker.network.overlay.api import OverlayEndpoint, OverlayNetwork, OverlayState
from worker.network.wireguard import KEEPALIVE_S

PORT = 7789
OWN = "192.0.2.1"


def network(name, *, encrypted):
    return OverlayNetwork(
        network_id=name, name=name, vni=4096, subnets=("10.1.0.0/24",), encrypted=encrypted
    )


def endpoint(network_id, number):
    return OverlayEndpoint(
        network_id=network_id, task_id=f"t{network_id}{number}", node_id=f"n{number}",
        addresses=(f"10.1.0.{number}",),
    )  # fmt: skip


def key(number, generation):
    return bytes([number, generation]) * 16


def a_state(keys, *, on=("sealed",)):
    """keys: generations by number of the node; node 1 is this one."""
    return OverlayState(
        networks=(network("sealed", encrypted=True), network("plain", encrypted=False)),
        endpoints=tuple(endpoint(name, number) for name in on for number in keys),
        nodes={f"n{number}": f"192.0.2.{number}" for number in keys},
        keys={
            f"n{number}": {one: key(number, one) for one in generations}
            for number, generations in keys.items()
        },
    )


def test_peers_are_the_nodes_on_encrypted_networks_with_a_key_that_fits():
    state = a_state({1: {4, 5}, 2: {4, 5}, 3: {5}, 4: {3, 4}, 5: {6}, 6: set()})
    found = secrecy.tunnels((4, 5), state, OWN, PORT)
    assert {g: {p.address for p in peers.values()} for g, peers in found.peers.items()} == {
        4: {"192.0.2.2", "192.0.2.4"},
        5: {"192.0.2.2", "192.0.2.3"},
    }
    older, newer = found.peers[4][key(2, 4)], found.peers[5][key(2, 5)]
    assert (older.port, newer.port) == (7790, 7791)
    assert (older.keepalive_s, newer.keepalive_s) == (0, KEEPALIVE_S)
    assert older.endpoint == older.address == "192.0.2.2"


def test_networks_in_the_clear_make_no_peers():
    state = a_state({1: {0}, 2: {0}}, on=("plain",))
    assert secrecy.tunnels((0,), state, OWN, PORT).generations() == {}


def test_the_older_key_is_spoken_until_the_newer_one_is_proved():
    state = a_state({1: {4, 5}, 2: {4, 5}, 3: {5}, 4: {4}})
    wanted = secrecy.tunnels((4, 5), state, OWN, PORT)
    before = secrecy.spoken(wanted, {})
    assert before == {"192.0.2.2": 4, "192.0.2.3": 5, "192.0.2.4": 4}
    assert secrecy.behind(wanted, before) == 1
    after = secrecy.spoken(wanted, {5: frozenset({"192.0.2.2"})})
    assert after == {"192.0.2.2": 5, "192.0.2.3": 5, "192.0.2.4": 4}
    assert secrecy.behind(wanted, after) == 0


generations = st.integers(0, 6).flatmap(
    lambda newest: st.sampled_from([{newest}, {newest, newest + 1}])
)


@given(
    own=generations,
    others=st.dictionaries(st.integers(2, 8), st.one_of(st.just(set()), generations)),
    shaken=st.frozensets(st.integers(2, 8)),
)
def test_two_nodes_speak_by_a_key_that_both_have_or_not_at_all(own, others, shaken):
    wanted = secrecy.tunnels(own, a_state({1: own, **others}), OWN, PORT)
    proved = {max(own): frozenset(f"192.0.2.{number}" for number in shaken)}
    chosen = secrecy.spoken(wanted, proved)
    for number, has in others.items():
        address = f"192.0.2.{number}"
        if not own & has:
            assert address not in chosen
            continue
        assert chosen[address] in own & has
        if len(own & has) == 2 and number not in shaken:
            assert chosen[address] == min(own)
    devices = [secrecy.device_of(generation) for generation in own]
    ports = [secrecy.port_of(generation, PORT) for generation in own]
    assert len(set(devices)) == len(set(ports)) == len(own)
    assert set(ports) <= {7790, 7791}
