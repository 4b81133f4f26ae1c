"""A registry that breaks off, lies, is busy, or sends us elsewhere; and disks that are full."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import json
import os
import socket

import pytest
import pytest_asyncio
from aiohttp import web

from shoal.errors import (
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    SwarmError,
    Unauthenticated,
)
from tests.integration.images.conftest import SETTINGS, leftovers
from tests.integration.images.tars import config, digest, member, tar
from tests.integration.images.test_store import mounted
from worker.images.registry.api import Credentials, RegistrySettings
from worker.images.registry.metrics import EXCHANGES, RECEIVED
from worker.images.store import ImageStore

pytestmark = pytest.mark.root

LAYER = tar(member("f", bytes(range(256)) * 4000))
BLOB = gzip.compress(LAYER, 1)
CONFIG = config([LAYER], Cmd=["x"])
LOGIN = base64.b64encode(b"u:p").decode()
FAST = RegistrySettings(retry_pause_s=0.01)
TYPE = "application/vnd.oci.image.manifest.v1+json"


def manifest(**changes):
    layer = {
        "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
        "digest": digest(BLOB), "size": len(BLOB), **changes,
    }  # fmt: skip
    return json.dumps({
        "schemaVersion": 2, "mediaType": TYPE,
        "config": {"mediaType": "c", "digest": digest(CONFIG), "size": len(CONFIG)},
        "layers": [layer],
    }).encode()  # fmt: skip


class Registry:
    """Serves one image under any name; a test puts its faults in."""

    def __init__(self):
        self.manifest = manifest()
        self.blob = BLOB
        self.config = CONFIG
        self.requests = []
        self.cuts = 0
        self.cut_after = len(BLOB) // 4
        self.busy = {}
        self.manifest_digest = ""
        self.address = ""
        self.guarded = False
        self.elsewhere = ""
        self.missing = False
        self.realm = ""
        self.index = b""
        self.uses = {}
        self.token_requests = []

    async def __call__(self, request):
        path = request.path
        self.requests.append((request.method, path, dict(request.headers)))
        kind = "manifest" if "/manifests/" in path else "blob" if "/blobs/" in path else "base"
        if self.realm:
            refused = self.judge_token(request)
            if refused is not None:
                return refused
        if self.guarded and "Authorization" not in request.headers:
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="r"'})
        if self.elsewhere and path.endswith(digest(BLOB)):
            return web.Response(status=307, headers={"Location": f"{self.elsewhere}{path}"})
        if self.busy.get(kind, 0):
            self.busy[kind] -= 1
            status = (503, 429, 500)[self.busy[kind] % 3]
            return web.json_response(
                {"errors": [{"code": "TOOMANYREQUESTS", "message": "later"}]},
                status=status, headers={"Retry-After": "0"},
            )  # fmt: skip
        if kind == "manifest" and self.missing:
            error = {"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}
            return web.json_response({"errors": [error]}, status=404)
        if kind == "manifest" and self.index and not path.endswith(digest(self.manifest)):
            return web.Response(body=self.index, headers={"Content-Type": "text/plain"})
        if kind == "manifest":
            return web.Response(
                body=self.manifest,
                headers={
                    "Content-Type": TYPE,
                    "Docker-Content-Digest": self.manifest_digest or digest(self.manifest),
                },
            )
        if kind == "blob":
            return await self.send_blob(request, path.rpartition("/")[2])
        return web.Response()

    def judge_token(self, request):
        """Token authentication: each token is good for two uses, and tells its scope."""
        path = request.path
        if path == "/token":
            self.token_requests.append((request.method, dict(request.query), dict(request.headers)))
            if request.headers.get("Authorization") != f"Basic {LOGIN}":
                return web.json_response({"errors": [{"code": "DENIED"}]}, status=401)
            token = f"t{len(self.token_requests)}"
            self.uses[token] = 2
            return web.json_response({"token": token, "expires_in": 300})
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.uses.get(token, 0):
            self.uses[token] -= 1
            return None
        scope = "" if path == "/v2/" else ',scope="repository:web:pull"'
        challenge = f'Bearer realm="{self.realm}",service="here"{scope}'
        return web.json_response({}, status=401, headers={"WWW-Authenticate": challenge})

    async def send_blob(self, request, wanted):
        if wanted == digest(CONFIG):
            return web.Response(body=self.config)
        start = int(request.headers.get("Range", "bytes=0-")[6:].rstrip("-"))
        content = self.blob[start:]
        answer = web.StreamResponse(
            status=206 if start else 200,
            headers={
                "Content-Length": str(len(content)),
                **({"Content-Range": f"bytes {start}-{len(self.blob) - 1}/*"} if start else {}),
            },
        )
        await answer.prepare(request)
        if self.cuts:
            self.cuts -= 1
            await answer.write(content[: self.cut_after])
            request.transport.close()
            return answer
        await answer.write(content)
        return answer

    def blob_requests(self):
        return [one for one in self.requests if one[1].endswith(f"/blobs/{digest(BLOB)}")]


@contextlib.asynccontextmanager
async def serving():
    served = Registry()
    runner = web.ServerRunner(web.Server(served), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    served.address = f"127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield served
    finally:
        await runner.cleanup()


@pytest_asyncio.fixture
async def registry():
    async with serving() as served:
        yield served


@pytest_asyncio.fixture
async def fast(tmp_path):
    opened = await ImageStore.open(tmp_path / "images", settings=SETTINGS, registries=FAST)
    yield opened
    await opened.aclose()


async def test_a_download_is_taken_up_where_it_broke(registry, fast):
    registry.cuts = 3
    before, received = transfers("done"), RECEIVED._value.get()
    (image,) = await fast.registry.pull(f"{registry.address}/web")
    assert image.config.cmd == ("x",)
    ranges = [headers.get("Range") for _, _, headers in registry.blob_requests()]
    assert ranges[0] is None
    assert ranges[1:] == sorted(ranges[1:], key=lambda text: int(text[6:-1]))
    assert len(ranges) == 4
    assert transfers("done") == before + 1
    assert RECEIVED._value.get() == received + len(BLOB)


async def test_a_pull_goes_on_where_another_was_given_up(registry, fast, tmp_path):
    registry.cuts, registry.cut_after = 1000, 10
    with pytest.raises(SwarmError):
        await fast.registry.pull(f"{registry.address}/web")
    assert len(registry.blob_requests()) == 5
    (partial,) = (tmp_path / "images/content/partial").iterdir()
    assert partial.stat().st_size == 50
    registry.cuts = 0
    registry.requests.clear()
    await fast.registry.pull(f"{registry.address}/web")
    assert registry.blob_requests()[0][2]["Range"] == "bytes=50-"
    assert not list((tmp_path / "images/content/partial").iterdir())


async def test_a_busy_registry_is_asked_again_and_not_for_ever(registry, fast, tmp_path):
    registry.busy = {"manifest": 3, "blob": 4}
    assert await fast.registry.pull(f"{registry.address}/web")
    await fast.remove(f"{registry.address}/web", users={})
    registry.busy = {"manifest": 1000}
    registry.requests.clear()
    with pytest.raises(SwarmError, match="toomanyrequests: later"):
        await fast.registry.pull(f"{registry.address}/web")
    assert sum("/manifests/" in path for _, path, _ in registry.requests) == 5
    assert leftovers(tmp_path / "images") == ["images.json"]


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ({"blob": BLOB[:-9] + b"\1" + BLOB[-8:]}, "filesystem layer verification failed"),
        ({"blob": BLOB + b"more"}, "sends more than the"),
        ({"config": CONFIG + b" "}, "image config verification failed"),
        ({"manifest_digest": "sha256:" + "0" * 64}, "manifest verification failed"),
        ({"manifest": b"{"}, "malformed"),
        ({"manifest": b'{"schemaVersion":1}'}, "schema version 1"),
        ({"manifest": manifest(digest="sha256:../../etc")}, "is not sha256:<64"),
        ({"manifest": manifest(size=-1)}, "has a size of -1 bytes"),
        ({"manifest": manifest(urls=["http://x"])}, "cannot be unpacked here"),
        ({"manifest": b"[" * 5_000_000}, "answers more than"),
    ],
)
async def test_lies_are_refused_and_leave_nothing(registry, fast, tmp_path, fault, text):
    for name, value in fault.items():
        setattr(registry, name, value)
    with pytest.raises(InvalidArgument, match=text):
        await fast.registry.pull(f"{registry.address}/web")
    assert leftovers(tmp_path / "images") == []


async def test_a_right_blob_of_another_tar(registry, fast, tmp_path):
    """The blob's digest is right, but not what the configuration says of its content."""
    other = gzip.compress(tar(member("f", b"other")))
    registry.blob, registry.manifest = other, manifest(digest=digest(other), size=len(other))
    with pytest.raises(InvalidArgument, match="has diffID"):
        await fast.registry.pull(f"{registry.address}/web")
    assert leftovers(tmp_path / "images") == []


async def test_an_image_of_no_platform_of_ours(registry, fast):
    registry.manifest = json.dumps({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": TYPE, "digest": "sha256:" + "0" * 64, "size": 1,
            "platform": {"os": "linux", "architecture": "s390x"},
        }],
    }).encode()  # fmt: skip
    with pytest.raises(
        NotFound, match=r"no matching manifest for linux/\w+ in .* it has linux/s390x"
    ):
        await fast.registry.pull(f"{registry.address}/web")


@pytest.mark.parametrize(
    "kind",
    [
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    ],
)
async def test_the_image_for_a_platform(registry, fast, kind):
    """Of an index or a manifest list; the name is known by the index's digest from then on."""

    def entry(architecture, system="linux", named=None, **more):
        return {
            "mediaType": TYPE, "digest": named or "sha256:" + "0" * 64, "size": 1,
            "platform": {"os": system, "architecture": architecture, **more},
        }  # fmt: skip

    ours = digest(registry.manifest)
    registry.index = json.dumps({
        "schemaVersion": 2, "mediaType": kind,
        "manifests": [
            entry("unknown", "unknown"), entry("s390x"), entry("amd64", "windows"),
            entry("amd64", variant="v3"), entry("amd64", named=ours), entry("arm64", variant="v8"),
        ],
    }).encode()  # fmt: skip
    name = f"{registry.address}/web"
    (image,) = await fast.registry.pull(name, platform="linux/amd64")
    assert image.digest == ours
    assert image.repo_digests == (f"{name}@{digest(registry.index)}",)
    assert fast.resolve(f"{name}@{digest(registry.index)}").id == image.id
    described = await fast.registry.describe(name)
    assert (described.media_type, described.digest) == (kind, digest(registry.index))
    assert ("linux", "arm64", "v8") in described.platforms
    assert len(described.platforms) == 5
    with pytest.raises(InvalidArgument, match="manifest verification failed"):
        await fast.registry.pull(name, platform="linux/arm64")  # its digest is another's


async def test_a_digest_that_cannot_be_verified_is_not_asked_for(registry, fast):
    with pytest.raises(InvalidArgument, match="is not sha256:"):
        await fast.registry.pull(f"{registry.address}/web@sha512:{'0' * 128}")
    assert not [path for _, path, _ in registry.requests if "/manifests/" in path]


async def test_nobody_there(fast):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        with pytest.raises(
            SwarmError,
            match=r'/v2/": dial tcp 127.0.0.1:\d+: connect: connection refused',
        ):
            await fast.registry.pull(f"127.0.0.1:{found.getsockname()[1]}/web")


async def test_credentials_do_not_follow_to_where_blobs_are_kept(registry, fast):
    async with serving() as elsewhere:
        registry.guarded, registry.elsewhere = True, f"http://{elsewhere.address}"
        known = Credentials(username="u", password="p")
        assert await fast.registry.pull(f"{registry.address}/web", credentials=known)
    assert "Authorization" in registry.blob_requests()[0][2]
    assert "Authorization" not in elsewhere.blob_requests()[0][2]


@pytest.mark.parametrize("blob", [BLOB, os.urandom(2_000_000)], ids=["unpacked", "downloaded"])
async def test_a_full_disk(registry, tmp_path, blob):
    """Either the blob or what is unpacked of it is too much: nothing is left of it."""
    registry.blob, registry.manifest = blob, manifest(digest=digest(blob), size=len(blob))
    with mounted("tmpfs", tmp_path / "small", "size=700k"):
        store = await ImageStore.open(tmp_path / "small/s", settings=SETTINGS, registries=FAST)
        with pytest.raises(ResourceExhausted, match="remove images or enlarge the disk"):
            await store.registry.pull(f"{registry.address}/web")
        assert leftovers(tmp_path / "small/s") == []
        await store.aclose()


def transfers(outcome):
    return EXCHANGES.labels("pull", outcome)._value.get()


async def test_a_pull_that_is_given_up(registry, fast, tmp_path):
    before = transfers("given_up")
    held = asyncio.Event()

    async def never(request, wanted):
        held.set()
        await asyncio.sleep(3600)

    registry.send_blob = never
    work = asyncio.create_task(fast.registry.pull(f"{registry.address}/web"))
    await asyncio.wait_for(held.wait(), 40)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert transfers("given_up") == before + 1
    assert leftovers(tmp_path / "images") == []


async def test_a_mirror_stands_in_for_docker_io(registry, tmp_path):
    """The first mirror is not there, the second does not know the image; the third has it."""
    async with serving() as ignorant:
        ignorant.missing = True
        mirrors = ("http://127.0.0.1:1", f"http://{ignorant.address}", f"http://{registry.address}")
        settings = RegistrySettings(retry_pause_s=0.01, mirrors=mirrors)
        store = await ImageStore.open(tmp_path / "s", settings=SETTINGS, registries=settings)
        (image,) = await store.registry.pull("web")
        assert image.repo_tags == ("web:latest",)
        assert (await store.fetch("web")).id == image.id  # it is here: nobody is asked
        asked = len(registry.requests)
        assert await store.fetch("library/other:2") != image
        assert len(registry.requests) > asked
        await store.aclose()


async def test_tokens_are_asked_for_by_scope_and_anew_when_they_end(registry, fast):
    registry.realm = f"http://{registry.address}/token"
    registry.cuts = 2
    name = f"{registry.address}/web"
    assert await fast.registry.pull(name, credentials=Credentials(username="u", password="p"))
    asked = [query for _, query, _ in registry.token_requests]
    assert len(asked) == 3  # manifest, configuration, and the layer in three parts: five uses
    assert all(query["scope"] == "repository:web:pull" for query in asked)
    assert all((query["service"], query["account"]) == ("here", "u") for query in asked)
    await fast.remove(name, users={})
    with pytest.raises(Unauthenticated, match="unauthorized: denied"):
        await fast.registry.pull(name, credentials=Credentials(username="u", password="no"))
