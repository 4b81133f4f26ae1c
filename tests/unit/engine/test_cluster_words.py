"""What managers refuse, in Docker's words, and bodies of secrets and configs."""

from __future__ import annotations

import pytest

from engine.cluster.file_calls import FileBody
from engine.cluster.words import told
from engine.http import bodies
from engine.http.errors import Refused, status_of
from shoal import errors
from shoal.model.types import Annotations, Driver


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (errors.NotFound("secret x not found"), 404, "secret x not found"),
        (errors.AlreadyExists("a"), 409, "rpc error: code = AlreadyExists desc = a"),
        (errors.NameConflict("a"), 409, "rpc error: code = AlreadyExists desc = a"),
        (errors.InvalidArgument("a"), 400, "rpc error: code = InvalidArgument desc = a"),
        (errors.FailedPrecondition("a"), 400, "rpc error: code = FailedPrecondition desc = a"),
        (
            errors.SequenceConflict("node: update out of sequence (read at version 1)"),
            500,
            "rpc error: code = Unknown desc = update out of sequence",
        ),
        (
            errors.InvalidArgument("task x is ambiguous (3 matches found): give the id"),
            400,
            "task x is ambiguous (3 matches found)",
        ),
        (errors.Unavailable("a"), 503, "rpc error: code = Unavailable desc = a"),
    ],
)
def test_managers_are_quoted_as_docker_quotes_them(error, status, text):
    found = told(error)
    assert (status_of(found), found.message) == (status, text)


def test_a_body_becomes_a_secret_and_a_config():
    body = bodies.convert(
        {"Name": "n", "labels": {"a": "b"}, "Data": "eA==", "Templating": {"Name": "golang"}},
        FileBody,
    )
    assert body.secret().annotations == body.config().annotations == Annotations("n", {"a": "b"})
    assert body.secret().data == body.config().data == b"x"
    assert body.secret().templating == Driver("golang")
    assert bodies.convert({"Labels": None}, FileBody).secret().data == b""


def test_a_body_that_is_no_base64_and_a_driver_are_refused():
    with pytest.raises(errors.InvalidArgument, match="base64"):
        bodies.convert({"Data": "not base64!"}, FileBody).config()
    with pytest.raises(Refused, match='plugin "x" not found'):
        bodies.convert({"Driver": {"Name": "x"}}, FileBody).secret()
