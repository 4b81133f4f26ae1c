"""Certificates from a CFSSL server that signs with a real key, and all it may get wrong."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from manager.ca import external
from manager.ca.cfssl import DEFAULT_PATH, sign_url
from manager.ca.core import Authority, JoinTokens
from manager.ca.external import ANSWER_BYTES_MAX, ExternalAuthorities
from manager.ca.metrics import EXTERNAL_REQUESTS
from manager.ca.signing import STORED_KEYS, Signer
from shoal.clock import SystemClock
from shoal.errors import FailedPrecondition, InvalidArgument
from shoal.model.types import ExternalCa
from shoal.security.identity import make_identity
from shoal.security.keys import make_csr, make_key
from shoal.security.roles import PeerIdentity, Role
from shoal.security.root import RootCA, key_usage
from shoal.security.trust import load_certificate
from tests.support.cfssl import DAY, Cfssl
from tests.support.managing import CLUSTER, ROOT, an_identity

KEY = make_key()
CSR = make_csr(KEY)
NODE = PeerIdentity(node_id="n" * 25, role=Role.WORKER, cluster_id=CLUSTER)


class Own:
    """The manager's identity, by the cluster's root."""

    def __init__(self) -> None:
        self.identity = an_identity("m", Role.MANAGER)
        self.root_pem = ROOT.certificate_pem


class Rig:
    def __init__(self, cfssl: Cfssl) -> None:
        self.cfssl = cfssl
        self.external = ExternalAuthorities(Own(), SystemClock())
        self.signer = Signer(self.external)

    def authority(self, *urls: str) -> Authority:
        cas = [ExternalCa(protocol="cfssl", url=url) for url in urls or (self.cfssl.url,)]
        return Authority(
            cluster_id=CLUSTER,
            root_pem=ROOT.certificate_pem,
            root=None,
            tokens=JoinTokens(worker="w", manager="m"),
            external=tuple(cas),
        )

    async def sign(self, *urls: str, node: PeerIdentity = NODE):
        return await self.signer.sign(self.authority(*urls), CSR, node, now_ns=time.time_ns())

    async def why_not(self, *urls: str) -> str:
        with pytest.raises(FailedPrecondition) as caught:
            await self.sign(*urls)
        assert self.signer.problem == caught.value.message
        return caught.value.message


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    cfssl = Cfssl(tmp_path, ROOT)
    await cfssl.start()
    yield Rig(cfssl)
    await cfssl.stop()


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[Cfssl]:
    (tmp_path / "other").mkdir()
    cfssl = Cfssl(tmp_path / "other", ROOT)
    await cfssl.start()
    yield cfssl
    await cfssl.stop()


@pytest.mark.parametrize("role", [Role.WORKER, Role.MANAGER])
async def test_a_node_is_certified_with_the_names_of_the_cluster(rig: Rig, role: Role):
    node = msgspec.structs.replace(NODE, role=role)
    issued = await rig.sign(node=node)
    identity = make_identity(issued.certificate_pem, KEY, ROOT.certificate_pem)
    assert (identity.peer, issued.identity) == (node, node)
    assert rig.cfssl.clients == ["swarm-manager"]  # the manager showed its own certificate
    (asked,) = rig.cfssl.asked
    assert asked["certificate_request"].encode() == CSR
    assert asked["hosts"] == [node.node_id, role.unit]
    assert asked["subject"] == {
        "CN": node.node_id,
        "names": [{"OU": role.unit, "O": CLUSTER}],
    }


async def hang(cfssl: Cfssl, request: web.Request) -> web.Response:
    await cfssl.never.wait()
    return web.Response()


async def break_down(cfssl: Cfssl, request: web.Request) -> web.Response:
    return web.Response(status=500, text="disk\nfull")


async def talk_on(cfssl: Cfssl, request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(ANSWER_BYTES_MAX // 1024 + 1):
        await response.write(b" " * 1024)
    return response


async def hang_up(cfssl: Cfssl, request: web.Request) -> web.Response:
    request.transport.abort()
    return web.Response()


async def hang_up_in_the_middle(cfssl: Cfssl, request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"success"')
    request.transport.abort()
    return response


async def refuse(cfssl: Cfssl, request: web.Request) -> web.Response:
    errors = [{"code": 1200, "message": "no such profile"}]
    return web.json_response({"success": False, "result": None, "errors": errors})


async def say_nothing_of_use(cfssl: Cfssl, request: web.Request) -> web.Response:
    return web.Response(text="<html>")


async def send_elsewhere(cfssl: Cfssl, request: web.Request) -> web.Response:
    return web.Response(status=307, headers={"Location": "https://localhost/"})


async def send_two(cfssl: Cfssl, request: web.Request) -> web.Response:
    wish = await request.json()
    return cfssl.answer(cfssl.sign(wish) + cfssl.root.certificate_pem)


async def send_junk(cfssl: Cfssl, request: web.Request) -> web.Response:
    return cfssl.answer(b"-----BEGIN CERTIFICATE-----\njunk\n-----END CERTIFICATE-----\n")


async def send_another_key(cfssl: Cfssl, request: web.Request) -> web.Response:
    wish = await request.json() | {"certificate_request": make_csr(make_key()).decode()}
    return cfssl.answer(cfssl.sign(wish))


@pytest.mark.parametrize(
    ("fail", "text"),
    [
        (hang, "no answer within"),
        (break_down, "status 500: disk full"),
        (talk_on, "longer than 256 KiB"),
        (hang_up, "Server disconnected"),
        (hang_up_in_the_middle, "not completed"),
        (refuse, "refused to sign: no such profile"),
        (say_nothing_of_use, "not CFSSL's"),
        (send_elsewhere, "status 307"),
        (send_two, "exactly one PEM certificate"),
        (send_junk, "not a readable PEM certificate"),
        (send_another_key, "for another key"),
    ],
)
async def test_an_authority_that_fails_is_named_and_the_next_one_asked(
    rig: Rig, other: Cfssl, monkeypatch, fail, text
):
    if fail is hang:
        monkeypatch.setattr(external, "ANSWER_TIMEOUT_S", 0.3)
    rig.cfssl.fail = lambda request: fail(rig.cfssl, request)
    before = signed()
    said = await rig.why_not()
    assert rig.cfssl.url in said
    assert text in said
    issued = await rig.sign(rig.cfssl.url, other.url)
    assert make_identity(issued.certificate_pem, KEY, ROOT.certificate_pem).peer == NODE
    assert (len(other.asked), rig.signer.problem) == (1, "")
    assert signed() == before + 1


def signed() -> float:
    (family,) = EXTERNAL_REQUESTS.labels(outcome="signed").collect()
    return next(one.value for one in family.samples if one.name.endswith("_total"))


def change(**subject: str):
    def apply(wish: dict) -> None:
        wish["subject"]["CN"] = subject.get("CN", wish["subject"]["CN"])
        wish["subject"]["names"][0] |= {k: v for k, v in subject.items() if k != "CN"}

    return apply


def no_certificate_of_the_cluster(cfssl: Cfssl) -> None:
    cfssl.signing_root = RootCA.create(now_ns=time.time_ns())


def issued_by_somebody_else(cfssl: Cfssl) -> None:
    cfssl.root = cfssl.signing_root = RootCA.create(now_ns=time.time_ns())


def as_manager(cfssl: Cfssl) -> None:
    cfssl.change = change(OU="swarm-manager")


def as_another_node(cfssl: Cfssl) -> None:
    cfssl.change = change(CN="x" * 25)


def of_another_cluster(cfssl: Cfssl) -> None:
    cfssl.change = change(O="d" * 25)


def with_a_name_too_many(cfssl: Cfssl) -> None:
    cfssl.change = lambda wish: wish["hosts"].append("swarm-manager")


def without_names(cfssl: Cfssl) -> None:
    cfssl.change = lambda wish: wish.update(hosts=[])


def as_authority(cfssl: Cfssl) -> None:
    cfssl.change = lambda wish: wish.update(profile="CA")


def that_may_sign(cfssl: Cfssl) -> None:
    cfssl.usage = key_usage(signs_certificates=True)


def for_clients_only(cfssl: Cfssl) -> None:
    cfssl.purposes = [ExtendedKeyUsageOID.CLIENT_AUTH]


def that_does_not_say_by_whom(cfssl: Cfssl) -> None:
    cfssl.names_issuer = False


def that_has_ended(cfssl: Cfssl) -> None:
    cfssl.validity = (-2 * DAY, -DAY)


def of_tomorrow(cfssl: Cfssl) -> None:
    cfssl.validity = (DAY, 2 * DAY)


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (no_certificate_of_the_cluster, "not signed by the cluster's root itself"),
        (issued_by_somebody_else, "not signed by the cluster's root itself"),
        (as_manager, "OU=swarm-manager"),
        (as_another_node, "CN=xxxx"),
        (of_another_cluster, "O=dddd"),
        (with_a_name_too_many, "is for the names"),
        (without_names, "is for the names []"),
        (as_authority, "one of an authority"),
        (that_may_sign, "key usage must be given"),
        (for_clients_only, "for servers and for clients"),
        (that_does_not_say_by_whom, "authority key id"),
        (that_has_ended, "has expired already"),
        (of_tomorrow, "not valid yet"),
    ],
)
async def test_a_certificate_that_is_not_the_wished_one_is_refused(rig: Rig, spoil, text):
    spoil(rig.cfssl)
    assert text in await rig.why_not()
    assert len(rig.cfssl.asked) == 1, "it was reached, and judged by what it answered"


async def test_who_does_not_believe_the_manager_and_whom_it_does_not_believe(tmp_path: Path):
    stranger = RootCA.create(now_ns=time.time_ns())
    for root, client_root, text in (
        (ROOT, stranger, ("alert", "disconnected", "reset")),
        (stranger, ROOT, ("certificate verify failed",)),
    ):
        cfssl = Cfssl(tmp_path, root)
        await cfssl.start(client_root.certificate_pem)
        try:
            said = (await Rig(cfssl).why_not()).lower()
            assert any(one in said for one in text), said
            assert cfssl.asked == []
        finally:
            await cfssl.stop()


async def test_its_own_root_is_believed_where_it_is_named(tmp_path: Path):
    """For the rotation to it: the managers still have certificates of the old root."""
    new = RootCA.create(now_ns=time.time_ns())
    cfssl = Cfssl(tmp_path, new)
    await cfssl.start(ROOT.certificate_pem)
    try:
        rig = Rig(cfssl)
        named = ExternalCa(protocol="cfssl", url=cfssl.url, ca_certificate=new.certificate_pem)
        authority = msgspec.structs.replace(
            rig.authority(), root_pem=new.certificate_pem, external=(named,)
        )
        issued = await rig.signer.sign(authority, CSR, NODE, now_ns=time.time_ns())
        assert make_identity(issued.certificate_pem, KEY, new.certificate_pem).peer == NODE
    finally:
        await cfssl.stop()


async def test_a_certificate_may_be_dated_later_than_its_request(rig: Rig):
    rig.cfssl.validity = (0 * DAY, DAY)

    async def in_the_next_second(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(1)
        return rig.cfssl.answer(rig.cfssl.sign(await request.json()))

    rig.cfssl.fail = in_the_next_second
    asked_s = int(time.time())
    issued = await rig.sign()
    dated_s = load_certificate(issued.certificate_pem).not_valid_before_utc.timestamp()
    assert dated_s > asked_s


async def test_nobody_listens(rig: Rig, tmp_path: Path):
    await rig.cfssl.stop()
    assert "Cannot connect" in await rig.why_not()


async def test_a_bad_request_is_not_passed_on(rig: Rig):
    with pytest.raises(InvalidArgument, match="csr: "):
        await rig.signer.sign(rig.authority(), b"junk", NODE, now_ns=time.time_ns())
    assert rig.cfssl.asked == []


async def test_a_root_without_a_key_needs_an_authority():
    bare = Authority(
        cluster_id=CLUSTER,
        root_pem=ROOT.certificate_pem,
        root=None,
        tokens=JoinTokens(worker="w", manager="m"),
    )
    with pytest.raises(FailedPrecondition, match="swarmctl cluster update --external-ca"):
        await STORED_KEYS.sign(bare, CSR, NODE, now_ns=time.time_ns())


async def test_an_authority_comes_before_the_key_that_is_here(rig: Rig):
    both = msgspec.structs.replace(rig.authority(), root=ROOT)
    await rig.signer.sign(both, CSR, NODE, now_ns=time.time_ns())
    assert len(rig.cfssl.asked) == 1


async def test_the_root_that_is_replaced_certifies_the_next_one(rig: Rig):
    new = RootCA.create(now_ns=time.time_ns())
    pem = await rig.signer.cross_sign(
        rig.authority(), new.certificate_pem, new, now_ns=time.time_ns()
    )
    cross = load_certificate(pem)
    cross.verify_directly_issued_by(load_certificate(ROOT.certificate_pem))
    assert cross.public_key() == load_certificate(new.certificate_pem).public_key()
    (asked,) = rig.cfssl.asked
    assert asked["profile"] == "CA"
    constraints = x509.BasicConstraints(ca=True, path_length=0).public_bytes().hex()
    assert asked["extensions"] == [{"id": "2.5.29.19", "critical": True, "value": constraints}]
    rig.cfssl.change = lambda wish: wish.pop("profile")
    with pytest.raises(FailedPrecondition, match="CA:TRUE is missing"):
        await rig.signer.cross_sign(
            rig.authority(), new.certificate_pem, new, now_ns=time.time_ns()
        )


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://ca:8888", f"https://ca:8888{DEFAULT_PATH}"),
        ("https://ca/", f"https://ca{DEFAULT_PATH}"),
        ("https://ca/sign?label=a", "https://ca/sign?label=a"),
    ],
)
def test_the_usual_endpoint_need_not_be_written(url: str, expected: str):
    assert sign_url(url) == expected
