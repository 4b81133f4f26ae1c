"""Plain questions get the answer that the long way gives; nothing else is taken for one."""

from __future__ import annotations

import dns.edns
import dns.flags
import dns.message
import dns.name
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.network.local.naming import Client, Place
from worker.resolver import answers, codec
from worker.resolver.index import Index

MANY = 90
labels = st.text("abcXYZ019-_", min_size=1, max_size=63)
known = st.sampled_from(["web", "WEB", "web.net", "tasks.web", "only4", "empty", "Tasks.Web.Net"])
names = st.one_of(known, st.lists(labels, min_size=1, max_size=4).map(".".join))


def an_index() -> Index:
    """web, also of IPv6; tasks.web of many addresses; only4; empty without any."""

    def place(*called: str, ipv4: str = "", ipv6: str = "") -> Place:
        return Place(network="n", network_name="net", names=called, ipv4=ipv4, ipv6=ipv6)

    made = Index()
    others = {
        f"t{n}": place(f"t{n}", "tasks.web", ipv4=f"10.0.1.{n}", ipv6=f"fd00::{n:x}")
        for n in range(1, MANY + 1)
    }
    others["web"] = place("web", ipv4="10.0.0.2", ipv6="fd00:1::2")
    others["only4"] = place("only4", ipv4="10.0.0.3")
    others["empty"] = place("empty")
    made.change_others(others, (), whole=True)
    made.put(Client(container="c", netns_path="/x", places=(place(),)))
    return made


INDEX = an_index()


def same(one: bytes | None, other: bytes | None) -> bool:
    """Whether two answers say the same; the order of addresses is chance."""
    if one is None or other is None:
        return one is other
    first, second = dns.message.from_wire(one), dns.message.from_wire(other)
    sides = [(m.id, m.flags, m.edns, m.ednsflags, m.payload, m.options) for m in (first, second)]
    # The case of a name is the question's in both, which dnspython does not compare.
    questions = [m.question[0].name.labels for m in (first, second)]
    return sides[0] == sides[1] and questions[0] == questions[1] and first == second


@given(
    names, st.sampled_from(["A", "AAAA"]), st.one_of(st.none(), st.integers(0, 65535)),
    st.booleans(), st.booleans(), st.booleans(),
)  # fmt: skip
def test_a_plain_question_is_answered_as_the_long_way_answers_it(
    name: str, kind: str, payload: int | None, udp: bool, recursive: bool, cookie: bool
) -> None:
    query = dns.message.make_query(name, kind)
    if not recursive:
        query.flags &= ~dns.flags.RD
    if payload is not None:
        option = dns.edns.GenericOption(dns.edns.OptionType.COOKIE, b"12345678")
        query.use_edns(0, payload=payload, options=[option] if cookie else None)
    wire = query.to_wire()
    assert codec.read(wire) is not None
    short = answers.answer(INDEX, "c", wire, udp=udp)
    assert same(short, answers.any_answer(INDEX, "c", wire, udp=udp))
    if short is not None:
        assert query.is_response(dns.message.from_wire(short))


@given(st.binary(max_size=80))
def test_nonsense_is_no_plain_question_or_read_the_same(wire: bytes) -> None:
    short = answers.answer(INDEX, "c", wire, udp=True)
    long = answers.any_answer(INDEX, "c", wire, udp=True)
    assert short == long or same(short, long)


@given(names, st.integers(0, 60), st.integers(0, 255))
def test_a_spoiled_question_is_read_the_same(name: str, where: int, octet: int) -> None:
    wire = bytearray(dns.message.make_query(name, "A", use_edns=True).to_wire())
    wire[where % len(wire)] = octet
    short = answers.answer(INDEX, "c", bytes(wire), udp=True)
    long = answers.any_answer(INDEX, "c", bytes(wire), udp=True)
    assert short == long or same(short, long)


@pytest.mark.parametrize("kind", ["PTR", "MX", "ANY", "TXT"])
def test_other_kinds_are_no_plain_questions(kind: str) -> None:
    assert codec.read(dns.message.make_query("web", kind).to_wire()) is None


def test_what_is_not_plain_is_left_to_the_long_way() -> None:
    plain = dns.message.make_query("web", "A").to_wire()
    assert codec.read(plain) is not None
    assert codec.read(plain + b"more") is None
    assert codec.read(dns.message.make_query(dns.name.root, "A").to_wire()) is None
    odd = dns.name.Name((b"a.b", b""))
    assert codec.read(dns.message.make_query(odd, "A").to_wire()) is None
    assert codec.read(dns.message.make_query("web", "A", "CH").to_wire()) is None
    assert codec.read(dns.message.make_response(dns.message.from_wire(plain)).to_wire()) is None
    assert codec.read(plain[:2] + b"\x28" + plain[3:]) is None, "an update"
