"""The node's resolv.conf as containers get it."""

from __future__ import annotations

from worker.network.local.hostdns import HostDns, parse, seen_from_containers


def test_what_counts():
    content = """
# nameserver 192.0.2.1
domain first.example
nameserver 192.0.2.2 ; the nearest
nameserver fe80::1%eth0
nameserver nonsense
nameserver 192.0.2.2
search a.example b.example
options timeout:2
options edns0 trust-ad
"""
    assert parse(content) == HostDns(
        servers=("192.0.2.2", "fe80::1%eth0"),
        search=("a.example", "b.example"),
        options=("timeout:2", "edns0", "trust-ad"),
    )


def test_a_container_has_no_use_for_the_nodes_loopback():
    assert seen_from_containers(("127.0.0.53", "192.0.2.2", "::1")) == ("192.0.2.2",)
    assert seen_from_containers(("127.0.0.53",)) == ("8.8.8.8", "8.8.4.4")
