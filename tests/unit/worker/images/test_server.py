"""The Images service: times of images, streams without content, images in use."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.api.v1 import node_pb2 as pb
from shoal.errors import InvalidArgument
from tests.support.fakes import an_image
from worker.images.model import ImageConfig, Removal, Removed, User
from worker.images.server import ImagesServer, _message, _nanoseconds


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("1970-01-01T00:00:01Z", 1_000_000_000),
        ("2024-05-06T07:08:09.123456789Z", 1_714_979_289_123_456_000),
        ("2024-05-06T07:08:09+02:00", 1_714_972_089_000_000_000),
        ("2024-05-06T07:08:09", 1_714_979_289_000_000_000),
        ("0001-01-01T00:00:00Z", 0),
        ("9999-12-31T23:59:59Z", 2**63 - 1),
        ("", 0),
        ("yesterday", 0),
    ],
)
def test_times_of_images(text, result):
    assert _nanoseconds(text) == result


@given(st.datetimes())
def test_any_time_fits_the_message(moment):
    assert pb.Image(created_at_ns=_nanoseconds(moment.isoformat())).created_at_ns >= 0


def test_an_image_as_a_message():
    config = ImageConfig(env=("A=1",), cmd=("x",), exposed_ports=("80/tcp",), labels={"k": "v"})
    message = _message(an_image(config, "sha256:abc"))
    assert (message.id, message.config.env, message.config.command) == (
        "sha256:abc", ["A=1"], ["x"],
    )  # fmt: skip
    assert message.config.entrypoint == []
    assert dict(message.config.labels) == {"k": "v"}


class Store:
    """Keeps what it is asked to remove."""

    def __init__(self):
        self.removed = []

    async def remove(self, ref, *, users, force):
        self.removed.append((ref, users, force))
        return Removal((Removed(untagged="a"), Removed(deleted="b")))


async def nothing():
    return
    yield


@pytest.mark.parametrize("method", ["ImportImage", "LoadImages"])
async def test_a_stream_without_content_is_refused(method):
    async def in_use():
        return {}

    server = ImagesServer(Store(), in_use)
    with pytest.raises(InvalidArgument, match="nothing was sent"):
        await getattr(server, method)(nothing(), None)


async def test_too_many_changes_are_refused():
    async def requests():
        yield pb.ImportImageRequest(changes=["ENV A=1"] * 257)

    async def in_use():
        return {}

    with pytest.raises(InvalidArgument, match="257, at most 256"):
        await ImagesServer(Store(), in_use).ImportImage(requests(), None)


async def test_a_removal_knows_what_is_in_use():
    async def in_use():
        return {"sha256:old": [User("c")]}

    store = Store()
    request = pb.RemoveImageRequest(image="web", force=True)
    answer = await ImagesServer(store, in_use).RemoveImage(request, None)
    assert store.removed == [("web", {"sha256:old": [User("c")]}, True)]
    assert (answer.untagged, answer.deleted) == (["a"], ["b"])
