"""What `node doctor` makes of what was seen; and the looking, as far as it needs no cluster."""

from __future__ import annotations

import msgspec
import pytest

from swarmd.doctor import look
from swarmd.doctor.core import Facts, Heard, Level, Reach, findings
from swarmd.doctor.echo import echo

WELL = Facts(
    joined=True,
    has_nft=True,
    settings={
        "ipv4/ip_forward": "1",
        "ipv4/conf/vxi/rp_filter": "2",
        "ipv4/conf/vxi/route_localnet": "1",
        "ipv6/conf/all/disable_ipv6": "0",
        "ipv6/conf/vxi/disable_ipv6": "0",
        "ipv6/conf/all/forwarding": "1",
        "netfilter/nf_conntrack_max": "262144",
        "netfilter/nf_conntrack_count": "17",
    },
    vxlan_mtu=1450,
    data_path_address="192.0.2.1",
    underlay="eth0",
    underlay_mtu=1500,
    clock_synchronized=True,
    peers=(Reach("w1", "192.0.2.2", True, True, True), Reach("w2", "192.0.2.3", True)),
)


def but(**changes) -> Facts:
    return msgspec.structs.replace(WELL, **changes)


def setting(name: str, value: str | None) -> Facts:
    return but(settings={**WELL.settings, name: value})


def peer(*answers) -> Facts:
    return but(peers=(Reach("w1", "192.0.2.2", *answers),))


@pytest.mark.parametrize(
    ("facts", "what"),
    [
        (setting("ipv6/conf/all/disable_ipv6", None), "the kernel has none"),
        (setting("ipv6/conf/vxi/disable_ipv6", "1"), "switched off"),
        (setting("ipv6/conf/vxi/disable_ipv6", None), "switched off"),
    ],
)
def test_a_node_without_ipv6_is_well_and_says_so(facts: Facts, what: str):
    found = findings(facts)
    assert {one.level for one in found} == {Level.OK}
    assert what in next(one.what for one in found if one.check == "ipv6")


def manager(**answer) -> Facts:
    return but(managers=(Heard("192.0.2.9:2377", **answer),))


def test_all_is_well():
    assert {(one.level, one.remedy) for one in findings(WELL)} == {(Level.OK, "")}


ILLS = [
    (but(joined=False), Level.PROBLEM, "cluster", "swarmctl join"),
    (but(not_ready={"worker": "no cgroups"}), Level.PROBLEM, "process worker", "log"),
    (but(has_nft=False), Level.PROBLEM, "nft", "apt-get install nftables"),
    (but(no_encryption="node has no WireGuard (CONFIG_WIREGUARD)"), Level.WARNING, "encryption",
     "modprobe wireguard"),
    (setting("ipv4/ip_forward", "0"), Level.PROBLEM, "sysctl ipv4/ip_forward",
     "sysctl -w net.ipv4.ip_forward=1"),
    (setting("ipv4/conf/vxi/rp_filter", "1"), Level.PROBLEM, "sysctl ipv4/conf/vxi/rp_filter",
     "sysctl -w net.ipv4.conf.vxi.rp_filter=2"),
    (setting("ipv6/conf/all/forwarding", "0"), Level.PROBLEM, "sysctl ipv6/conf/all/forwarding",
     "sysctl -w net.ipv6.conf.all.forwarding=1"),
    (but(vxlan_mtu=None), Level.PROBLEM, "mesh", "worker"),
    (but(data_path_port=4789), Level.WARNING, "data path port", "--data-path-port"),
    (but(reduced=("at most 64 tasks",)), Level.WARNING, "mesh", "upgrade nftables"),
    (but(underlay=""), Level.PROBLEM, "mtu", "--data-path-addr"),
    (but(underlay_mtu=1499), Level.PROBLEM, "mtu", "ip link set dev eth0 mtu 1500"),
    (setting("netfilter/nf_conntrack_max", None), Level.PROBLEM, "conntrack", "modprobe"),
    (setting("netfilter/nf_conntrack_max", "65536"), Level.WARNING, "conntrack", "=1048576"),
    (setting("netfilter/nf_conntrack_count", "250000"), Level.PROBLEM, "conntrack", "=1048576"),
    (but(clock_synchronized=False), Level.WARNING, "clock", "chrony"),
    (peer(False), Level.PROBLEM, "peer w1", "network between"),
    (peer(False, False), Level.PROBLEM, "peer w1", "network between"),
    (peer(True, False), Level.PROBLEM, "peer w1", "7789/udp"),
    (peer(True, True, False), Level.PROBLEM, "peer w1", "MTU of every device"),
    (peer(True, True, True, False), Level.PROBLEM, "peer w1", "filters IPv6"),
    (manager(error="no route"), Level.PROBLEM, "manager 192.0.2.9:2377", "TCP port"),
    (manager(ahead_s=1.3, uncertain_s=0.2), Level.WARNING, "clock of 192.0.2.9:2377", "chrony"),
    (manager(ahead_s=-61.0), Level.PROBLEM, "clock of 192.0.2.9:2377", "chronyc makestep"),
]  # fmt: skip


@pytest.mark.parametrize(("facts", "level", "check", "remedy"), ILLS)
def test_one_ill_is_one_finding_with_its_remedy(facts, level, check, remedy):
    (found,) = [one for one in findings(facts) if one.level is not Level.OK]
    assert (found.check, found.level) == (check, level)
    assert remedy in found.remedy


def test_a_host_that_filters_pings_but_answers_through_the_mesh_is_well():
    assert all(one.level is Level.OK for one in findings(peer(False, True, True)))


@pytest.mark.parametrize("answer", [{}, {"ahead_s": 0.9}, {"ahead_s": -5.0, "uncertain_s": 4.5}])
def test_a_clock_that_is_not_told_or_may_be_right_is_well(answer):
    assert all(one.level is Level.OK for one in findings(manager(**answer)))


def test_looking_finds_the_loopback_device_and_what_is_not_there():
    assert look.device_with("127.0.0.1")[0] == "lo"
    assert look.device_with("192.0.2.1") == ("", 0)
    assert isinstance(look.clock_is_synchronized(), bool)
    assert set(look.settings()) >= {"ipv4/ip_forward", "netfilter/nf_conntrack_max"}


@pytest.mark.root
async def test_an_echo_is_answered_at_any_size_or_given_up():
    for size in (64, 101, 1450):
        assert await echo("127.0.0.1", size=size)
        assert await echo("::1", size=size)
    assert not await echo("127.0.0.1", size=65_530 * 2), "larger than any packet"
    (here, there) = await look.reach(
        [look.Peer("here", "127.0.0.1", "127.0.0.2"), look.Peer("there", "255.255.255.255", "")],
        1450,
    )
    assert here == Reach("here", "127.0.0.1", True, True, True)
    assert there == Reach("there", "255.255.255.255", False)
