"""What is answered to which question, byte for byte as another implementation reads it."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.reversename
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.network.local.naming import Client, Place
from worker.resolver import answers
from worker.resolver.forward import _answers
from worker.resolver.index import Index

N1 = "1" * 64


def client(name: str, ipv4: str, *aliases: str, ipv6: str = "", **fields: object) -> Client:
    links = fields.pop("links", ())
    place = Place(
        network=N1, network_name="n1", names=(name, *aliases), ipv4=ipv4, ipv6=ipv6,
        links=links,  # type: ignore[arg-type]
    )  # fmt: skip
    return Client(container=name, netns_path="/ns", places=(place,))


@pytest.fixture
def index() -> Index:
    made = Index()
    made.put(client("web", "10.0.0.2", "al", ipv6="fd00::2"))
    made.put(client("api", "10.0.0.3", "al", links=(("data", "db"),)))
    made.put(client("db", "10.0.0.4"))
    far = Place(network="2" * 64, network_name="n2", names=("far",), ipv4="10.1.0.2")
    made.put(Client(container="far", netns_path="/ns", places=(far,)))
    return made


def asked(index: Index, who: str, name: str, kind: str = "A") -> dns.message.Message | None:
    query = dns.message.make_query(name, kind)
    wire = answers.answer(index, who, query.to_wire(), udp=True)
    if wire is None:
        return None
    reply = dns.message.from_wire(wire)
    assert query.is_response(reply)
    return reply


def texts(reply: dns.message.Message | None) -> set[str]:
    assert reply is not None
    assert reply.rcode() == dns.rcode.NOERROR
    return {record.to_text() for rrset in reply.answer for record in rrset}


def test_names_of_its_own_networks(index: Index):
    assert texts(asked(index, "api", "web")) == {"10.0.0.2"}
    assert texts(asked(index, "api", "WEB.")) == {"10.0.0.2"}
    assert texts(asked(index, "api", "web.n1")) == {"10.0.0.2"}
    assert texts(asked(index, "api", "al")) == {"10.0.0.2", "10.0.0.3"}
    assert texts(asked(index, "api", "web", "AAAA")) == {"fd00::2"}
    assert texts(asked(index, "api", "db", "AAAA")) == set()
    assert texts(asked(index, "api", "db", "MX")) == set()
    assert texts(asked(index, "api", "data")) == {"10.0.0.4"}


def test_names_of_others_are_not_known(index: Index):
    for who, name in (("far", "web"), ("web", "far"), ("web", "data")):
        reply = asked(index, who, name)
        assert reply is not None
        assert reply.rcode() == dns.rcode.NXDOMAIN
    assert asked(index, "far", "web.n1") is None
    assert asked(index, "web", "www.example.org") is None


def test_addresses_have_names(index: Index):
    for address, name in (("10.0.0.2", "web.n1."), ("fd00::2", "web.n1.")):
        reverse = dns.reversename.from_address(address).to_text()
        assert texts(asked(index, "api", reverse, "PTR")) == {name}
    assert asked(index, "far", dns.reversename.from_address("10.0.0.2").to_text(), "PTR") is None


def test_what_has_gone_is_forgotten(index: Index):
    index.drop("web")
    index.put(client("api", "10.0.0.9"))
    assert texts(asked(index, "db", "api")) == {"10.0.0.9"}
    for name in ("web", "al"):
        reply = asked(index, "db", name)
        assert reply is not None
        assert reply.rcode() == dns.rcode.NXDOMAIN
    for name in index.containers:
        index.drop(name)
    assert not index._by_name
    assert not index._by_address


def test_what_does_not_fit_is_cut_off():
    index = Index()
    for number in range(100):
        index.put(client(f"c{number}", f"10.0.0.{number + 1}", "all"))
    plain = dns.message.make_query("all", "A", use_edns=False).to_wire()
    cut = dns.message.from_wire(answers.answer(index, "c1", plain, udp=True) or b"")
    assert cut.flags & dns.flags.TC
    assert not cut.answer
    whole = dns.message.from_wire(answers.answer(index, "c1", plain, udp=False) or b"")
    assert len(whole.answer[0]) == 100
    large = dns.message.make_query("all", "A", payload=4096).to_wire()
    assert len(texts(dns.message.from_wire(answers.answer(index, "c1", large, udp=True) or b""))) \
        == 100  # fmt: skip


def test_no_server_of_everything(index: Index):
    update = dns.message.make_query("web", "A")
    update.set_opcode(dns.opcode.NOTIFY)
    reply = dns.message.from_wire(answers.answer(index, "api", update.to_wire(), udp=True) or b"")
    assert reply.rcode() == dns.rcode.NOTIMP
    failed = dns.message.from_wire(answers.failure(dns.message.make_query("a.b", "A").to_wire()))
    assert failed.rcode() == dns.rcode.SERVFAIL


@given(st.binary(max_size=100))
def test_nonsense_is_answered_as_such_or_not_at_all(wire: bytes):
    index = Index()
    index.put(client("web", "10.0.0.2"))
    found = answers.answer(index, "web", wire, udp=True)
    assert found is None or found == b"" or found[:2] == wire[:2]
    answers.failure(wire)


def test_only_answers_to_the_question_count():
    query = dns.message.make_query("a.example", "A")
    sent = query.to_wire()
    good = dns.message.make_response(query).to_wire()
    assert _answers(good, sent)
    assert not _answers(bytes([good[0] ^ 1]) + good[1:], sent)
    assert not _answers(sent, sent)
    other = dns.message.make_query("b.example", "A", id=query.id)
    assert not _answers(dns.message.make_response(other).to_wire(), sent)
    assert not _answers(good[:8], sent)
