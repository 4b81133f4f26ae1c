"""Names of those who do not ask here: services and tasks of overlay networks."""

from __future__ import annotations

from worker.network.local.naming import Client, Place
from worker.resolver.index import Found, Index


def place(name: str, ipv4: str = "", *, network: str = "n") -> Place:
    return Place(network=network, network_name=network.upper(), names=(name,), ipv4=ipv4)


def asking(network: str = "n") -> Client:
    here = Place(network=network, network_name=network.upper(), names=())
    return Client(container=f"c-{network}", netns_path="/x", places=(here,))


def test_others_are_known_to_those_on_their_network_only() -> None:
    index = Index()
    index.put(asking("n"))
    index.put(asking("m"))
    index.change_others({"a": place("web", "10.0.0.2")}, (), whole=False)
    assert index.find("c-n", "WEB.") == Found(("10.0.0.2",), ())
    assert index.find("c-n", "web.N") == Found(("10.0.0.2",), ())
    assert index.find("c-m", "web") is None
    assert index.called("c-n", "10.0.0.2") == "web.N"
    assert index.called("c-m", "10.0.0.2") == ""


def test_others_with_one_name_are_answered_together_and_leave_one_by_one() -> None:
    index = Index()
    index.put(asking())
    index.change_others({"a": place("w", "10.0.0.2"), "b": place("w", "10.0.0.3")}, (), whole=False)
    assert index.find("c-n", "w") == Found(("10.0.0.2", "10.0.0.3"), ())
    index.change_others({}, ("a",), whole=False)
    assert index.find("c-n", "w") == Found(("10.0.0.3",), ())
    index.change_others({"b": place("other", "10.0.0.3")}, (), whole=False)
    assert index.find("c-n", "w") is None
    assert index.called("c-n", "10.0.0.3") == "other.N"


def test_a_whole_list_replaces_what_was_known() -> None:
    index = Index()
    index.put(asking())
    index.change_others({"a": place("one", "10.0.0.2")}, (), whole=False)
    index.change_others({"b": place("two", "10.0.0.2")}, (), whole=True)
    assert index.find("c-n", "one") is None
    assert index.called("c-n", "10.0.0.2") == "two.N"


def test_a_name_without_addresses_is_known_all_the_same() -> None:
    index = Index()
    index.put(asking())
    index.change_others({"a": place("empty")}, (), whole=False)
    assert index.find("c-n", "empty") == Found((), ())
