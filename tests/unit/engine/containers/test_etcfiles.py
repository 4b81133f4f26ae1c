"""A running container's files follow its networks; its own lines stay."""

from __future__ import annotations

from engine.containers import etcfiles


def test_hosts_lines_come_and_go():
    before = "127.0.0.1\tlocalhost\n10.0.0.2\tweb\n192.0.2.1\tmine\n"
    after = etcfiles.hosts(before, {"10.0.0.2"}, [("10.1.0.2", "web")])
    assert after == "127.0.0.1\tlocalhost\n192.0.2.1\tmine\n10.1.0.2\tweb\n"
    assert etcfiles.hosts(after, (), ()) == after


def test_servers_are_replaced_and_the_rest_stays():
    before = "search example.org\nnameserver 192.0.2.1\noptions timeout:3\n"
    named = etcfiles.resolver(before, ["127.0.0.11"], named=True)
    assert named == "search example.org\nnameserver 127.0.0.11\noptions timeout:3 ndots:0\n"
    assert etcfiles.resolver(named, ["192.0.2.1"], named=False) == before
    own = etcfiles.resolver("options ndots:2\n", ["127.0.0.11"], named=True)
    assert own == "nameserver 127.0.0.11\noptions ndots:2\n"
