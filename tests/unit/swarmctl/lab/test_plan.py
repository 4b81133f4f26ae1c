"""The layout of a lab: distinct addresses, names the kernel accepts, clear refusals."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import InvalidArgument, NotFound, ResourceExhausted
from swarmctl.lab import plan

NAMES = st.from_regex(r"[a-z0-9](?:[a-z0-9-]{0,18}[a-z0-9])?", fullmatch=True)
SUBNET = ipaddress.IPv4Network("10.89.3.0/24")


def a_lab(name: str = "default", workers: int = 2) -> plan.LabPlan:
    return plan.plan_lab(name, managers=1, workers=workers, subnet=SUBNET, directory="/labs")


def test_layout_of_a_small_lab():
    lab = a_lab()

    assert lab.gateway == "10.89.3.1"
    assert [(n.name, n.role, n.address) for n in lab.nodes] == [
        ("m1", "manager", "10.89.3.2"),
        ("w1", "worker", "10.89.3.3"),
        ("w2", "worker", "10.89.3.4"),
    ]
    assert lab.node("w2").address == "10.89.3.4"


@given(name=NAMES, workers=st.integers(0, plan.WORKERS_MAX))
def test_names_fit_the_kernel_and_addresses_are_distinct(name, workers):
    lab = a_lab(name, workers)

    interfaces = [lab.bridge, *(node.veth for node in lab.nodes)]
    assert all(len(each) <= 15 for each in interfaces)
    assert len(set(interfaces)) == len(interfaces)
    addresses = [lab.gateway, *(node.address for node in lab.nodes)]
    assert len(set(addresses)) == len(addresses)
    assert all(ipaddress.IPv4Address(each) in SUBNET for each in addresses)
    assert str(SUBNET.broadcast_address) not in addresses
    six = ipaddress.IPv6Network((plan.address6(str(SUBNET.network_address)), lab.prefix_length6))
    assert all(ipaddress.IPv6Address(plan.address6(each)) in six for each in addresses)
    assert len({plan.address6(each) for each in addresses}) == len(addresses)


@given(lab=NAMES, node=st.sampled_from(["m1", "w1", "w17", "w100"]), other=NAMES)
def test_a_namespace_belongs_to_one_lab_only(lab, node, other):
    names = [plan.netns_name(lab, node)]

    assert plan.nodes_of_netns(lab, names) == [node]
    assert other == lab or plan.nodes_of_netns(other, names) == []


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a" * 21, "a/b", "..", "a b", "a\n"])
def test_bad_names_are_refused(name):
    with pytest.raises(InvalidArgument, match="lab name"):
        a_lab(name)


@pytest.mark.parametrize(
    ("managers", "workers"),
    [(0, 2), (plan.MANAGERS_MAX + 1, 2), (1, -1), (1, plan.WORKERS_MAX + 1)],
)
def test_impossible_counts_are_refused(managers, workers):
    with pytest.raises(InvalidArgument):
        plan.check_counts(managers, workers)


def test_a_subnet_must_hold_all_nodes_and_the_host():
    small = ipaddress.IPv4Network("10.1.0.0/29")  # 8 addresses: network, host, 5 nodes, broadcast
    lab = plan.plan_lab("x", managers=1, workers=4, subnet=small, directory="/labs")
    assert lab.nodes[-1].address == "10.1.0.6"

    with pytest.raises(InvalidArgument, match="too small for 6 nodes"):
        plan.plan_lab("x", managers=1, workers=5, subnet=small, directory="/labs")


def test_a_directory_too_deep_for_a_socket_is_refused():
    with pytest.raises(InvalidArgument, match="unix socket"):
        plan.plan_lab("x", managers=1, workers=1, subnet=SUBNET, directory="/" + "d" * 90)


def test_the_first_free_subnet_is_chosen():
    taken = ["10.89.0.0/24", "10.89.1.7/32", "192.168.0.0/16", "fe80::/64"]

    assert str(plan.choose_subnet(taken)) == "10.89.2.0/24"


def test_no_free_subnet_is_an_error_that_names_the_flag():
    with pytest.raises(ResourceExhausted, match="--subnet"):
        plan.choose_subnet(["10.0.0.0/8"])


def test_overlap_names_what_overlaps():
    assert plan.first_overlap(SUBNET, ["10.89.2.0/24", "10.89.3.9/32"]) == "10.89.3.9/32"
    assert plan.first_overlap(SUBNET, ["10.89.2.0/24", "::/0"]) == ""


def test_bad_subnet_names_the_flag():
    with pytest.raises(InvalidArgument, match=r"--subnet 10.1.2.3/24"):
        plan.parse_subnet("10.1.2.3/24")


def test_unknown_node_is_answered_with_the_known_ones():
    with pytest.raises(NotFound, match="m1, w1, w2"):
        a_lab().node("w3")


def test_an_etcd_of_the_lab_s_own_is_a_node_beside_the_others():
    lab = plan.plan_lab(
        "x", managers=1, workers=1, subnet=SUBNET, directory="/labs", store=plan.ETCD
    )
    (store,) = lab.stores
    assert [node.name for node in lab.nodes] == ["m1", "w1"]
    assert [node.name for node in lab.everyone] == ["e1", "m1", "w1"]
    assert lab.node("e1") is store
    assert len({node.address for node in lab.everyone}) == 3
    words = plan.daemon_command(lab, lab.node("m1"), python="/py")
    assert words[words.index("--store") + 1] == f"etcd://{store.address}:2379/shoal"
    etcd = plan.daemon_command(lab, store, python="/py")
    assert f"http://{store.address}:2379" in etcd
    assert "/labs/x/e1/state/etcd" in etcd
    lab = plan.plan_lab(
        "x", managers=1, workers=1, subnet=SUBNET, directory="/labs", store="etcd?lease_ttl_s=3"
    )
    assert lab.store.endswith(":2379/shoal?lease_ttl_s=3")
    assert plan.nodes_of_netns("x", [plan.netns_name("x", "e1")]) == ["e1"]


def test_somebody_else_s_etcd_is_passed_on_as_it_is():
    url = "etcd://192.0.2.1/p"
    lab = plan.plan_lab("x", managers=1, workers=1, subnet=SUBNET, directory="/labs", store=url)
    assert not lab.stores
    assert url in plan.daemon_command(lab, lab.node("w1"), python="/py")
    with pytest.raises(InvalidArgument, match="--store redis: must be etcd"):
        plan.check_store("redis")


def test_the_daemon_is_told_its_own_paths_and_address():
    lab = a_lab()
    words = plan.daemon_command(lab, lab.node("w1"), python="/py")

    assert words[:4] == ["/py", "-P", "-m", "swarmd"]
    flags = dict(zip(words[4::2], words[5::2], strict=True))
    assert flags == {
        "--state-dir": "/labs/default/w1/state",
        "--run-dir": "/labs/default/w1/run",
        "--hostname": "w1",
        "--cgroup-parent": "/shoal-lab/default/w1",
        "--metrics-addr": "10.89.3.3:9323",
        "--log-level": "info",
    }
