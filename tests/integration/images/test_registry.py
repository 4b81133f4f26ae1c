"""Images to and from a real registry, with skopeo as the other reader and writer."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from shoal.api.v1.node_pb2 import ResolveImageRequest
from shoal.errors import InvalidArgument, NotFound, SwarmError, Unauthenticated
from tests.integration.images.conftest import SETTINGS, leftovers
from tests.integration.images.tars import member, tar
from tests.support.registry import MISSING, PASSWORD, REGISTRY, SKOPEO, USER, a_registry, skopeo
from worker.images.registry.api import Credentials, RegistrySettings, Step
from worker.images.server import ImagesServer
from worker.images.store import ImageStore

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not (REGISTRY and SKOPEO), reason=MISSING),
]
KNOWN = Credentials(username=USER, password=PASSWORD)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with a_registry(tmp_path_factory.mktemp("registry")) as address:
        yield address


async def an_image(store, tmp_path, name, content=b"1" * 100_000):
    path = tmp_path / "a.tar"
    path.write_bytes(tar(member("f", content)))
    base = await store.import_rootfs(path, None)
    upper = tmp_path / "upper"
    upper.mkdir(exist_ok=True)
    (upper / "g").write_bytes(content[::-1])
    return await store.commit(str(upper), base, b'{"Cmd":["x"]}', name=name)


def words(steps: list[Step]) -> list[str]:
    """Each status once, in the order they came."""
    return list(dict.fromkeys(step.status for step in steps))


async def test_there_and_back_with_skopeo_looking(store, place, tmp_path):
    name = f"{place}/lib/web:1"
    image = await an_image(store, tmp_path, name)
    steps: list[Step] = []
    (pushed,) = await store.registry.push(name, progress=steps.append)
    assert words(steps) == [
        f"The push refers to repository [{place}/lib/web]", "Preparing", "Pushing", "Pushed",
        f"1: digest: {image.digest} size: {pushed.manifest_bytes}",
    ]  # fmt: skip
    assert store.resolve(name).repo_digests == (f"{place}/lib/web@{image.digest}",)
    seen = json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{name}"))
    assert (seen["Digest"], len(seen["Layers"])) == (pushed.digest, 2)
    steps.clear()
    await store.registry.push(name, progress=steps.append)
    assert "Layer already exists" in words(steps)

    other = await ImageStore.open(tmp_path / "other", settings=SETTINGS)
    steps.clear()
    (pulled,) = await other.registry.pull(name, progress=steps.append)
    assert (pulled.id, pulled.digest, pulled.repo_tags) == (image.id, image.digest, (name,))
    told = words(steps)
    assert told[0] == "Pulling from lib/web"
    assert told[-2:] == [
        f"Digest: {image.digest}", f"Status: Downloaded newer image for {name}",
    ]  # fmt: skip
    for status in ("Pulling fs layer", "Verifying Checksum", "Download complete", "Pull complete"):
        assert sum(step.status == status for step in steps) == 2, status
    steps.clear()
    await other.registry.pull(name, progress=steps.append)
    assert words(steps)[-1] == f"Status: Image is up to date for {name}"
    by_digest = f"{place}/lib/web@{image.digest}"
    await other.registry.pull(by_digest)
    assert other.resolve(by_digest).id == image.id
    removal = await other.remove(name, users={})
    assert removal.untagged == (name, by_digest)
    assert leftovers(tmp_path / "other") == ["images.json"]
    await other.aclose()


async def nobody():
    return {}


async def test_what_skopeo_writes(store, place, tmp_path):
    """A docker manifest list of two architectures, and zstd layers."""
    image = await an_image(store, tmp_path, "local")
    archive = tmp_path / "saved.tar"
    async with store.save(store.to_save(["local"])) as pieces:
        archive.write_bytes(b"".join([piece async for piece in pieces]))
    for kind, to in (("v2s2", "docker"), ("oci", "oci")):
        skopeo(
            "copy", "--dest-tls-verify=false", "--format", kind, "--dest-compress-format", "gzip",
            f"docker-archive:{archive}", f"docker://{place}/skopeo/{to}:1",
        )  # fmt: skip
        (pulled,) = await store.registry.pull(f"{place}/skopeo/{to}:1")
        assert [layer.diff_id for layer in pulled.layers] == [
            layer.diff_id for layer in image.layers
        ]
        described = await store.registry.describe(f"{place}/skopeo/{to}:1")
        assert described.platforms == (("linux", image.architecture, image.variant),)
        assert f"{place}/skopeo/{to}@{described.digest}" in pulled.repo_digests
        request = ResolveImageRequest(image=f"{place}/skopeo/{to}:1")
        answer = await ImagesServer(store, nobody).ResolveImage(request, None)
        assert answer.image == f"{place}/skopeo/{to}:1@{described.digest}"
        assert [one.architecture for one in answer.platforms] == [image.architecture]
    skopeo(
        "copy", "--dest-tls-verify=false", "--format", "oci", "--dest-compress",
        "--dest-compress-format", "zstd", f"oci-archive:{archive}:latest",
        f"docker://{place}/skopeo/zstd:1",
    )  # fmt: skip
    (pulled,) = await store.registry.pull(f"{place}/skopeo/zstd:1")
    assert pulled.id == image.id


async def test_mounts_tags_and_what_is_not_there(store, place, tmp_path):
    names = [f"{place}/m/one:{tag}" for tag in ("a", "b")]
    image = await an_image(store, tmp_path, names[0], content=b"m" * 50_000)
    await store.tag(names[0], names[1])
    pushed = await store.registry.push(f"{place}/m/one", all_tags=True)
    assert [one.tag for one in pushed] == ["a", "b"]
    await store.tag(names[0], f"{place}/m/two:1")
    steps: list[Step] = []
    await store.registry.push(f"{place}/m/two:1", progress=steps.append)
    assert "Mounted from m/one" in words(steps)
    for name in (*names, f"{place}/m/two:1"):
        await store.remove(name, users={})
    pulled = await store.registry.pull(f"{place}/m/one", all_tags=True)
    assert [one.id for one in pulled] == [image.id, image.id]
    missing = f"{place}/m/one:nosuch"
    with pytest.raises(NotFound) as caught:
        await store.registry.pull(missing)
    assert caught.value.message == (
        f"manifest for {missing} not found: manifest unknown: manifest unknown"
    )
    with pytest.raises(NotFound, match=r"^manifest unknown: manifest unknown$"):
        await store.registry.describe(missing)
    with pytest.raises(NotFound, match="An image does not exist locally with the tag"):
        await store.registry.push(missing)


async def test_passwords(store, tmp_path):
    with a_registry(tmp_path / "guarded", guarded=True) as place:
        name = f"{place}/secret/web:1"
        await an_image(store, tmp_path, name)
        with pytest.raises(Unauthenticated, match="no basic auth credentials"):
            await store.registry.push(name)
        with pytest.raises(SwarmError, match="unauthorized: authentication required"):
            await store.registry.push(name, credentials=Credentials(username=USER, password="no"))
        await store.registry.push(name, credentials=KNOWN)
        await store.remove(name, users={})
        with pytest.raises(Unauthenticated, match="no basic auth credentials"):
            await store.registry.pull(name)
        assert await store.registry.pull(name, credentials=KNOWN)


async def test_tls(tmp_path):
    """A certificate is trusted only through the registry's own directory; no way around it."""
    with a_registry(tmp_path / "r", tls=a_certificate(tmp_path)) as place:
        name = f"{place}/web:1"
        strict = RegistrySettings(insecure=(), certificates=str(tmp_path / "certs.d"))
        store = await ImageStore.open(tmp_path / "s", settings=SETTINGS, registries=strict)
        await an_image(store, tmp_path, name)
        with pytest.raises(SwarmError, match=r"(?i)certificate"):
            await store.registry.push(name)
        trusted = tmp_path / "certs.d" / place
        trusted.mkdir(parents=True)
        (trusted / "ca.crt").write_bytes((tmp_path / "cert.pem").read_bytes())
        await store.registry.push(name)
        await store.remove(name, users={})
        assert await store.registry.pull(name)
        await store.aclose()
        loose = await ImageStore.open(tmp_path / "t", settings=SETTINGS)  # 127/8 may show any
        assert await loose.registry.pull(name)
        await loose.aclose()


def a_certificate(base: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "registry")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = base / "cert.pem", base / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths


async def test_pulls_at_once_share_what_they_need(store, place, tmp_path):
    name = f"{place}/shared/web:1"
    image = await an_image(store, tmp_path, name, content=b"s" * 3_000_000)
    await store.registry.push(name)
    await store.remove(name, users={})
    pulled = await asyncio.gather(*(store.registry.pull(name) for _ in range(8)))
    assert {one[0].id for one in pulled} == {image.id}
    with pytest.raises(InvalidArgument, match="unknown operating system or architecture"):
        await store.registry.pull(name, platform="linux/nonsense")
