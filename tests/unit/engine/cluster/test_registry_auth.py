"""Credentials of services: an update without its own keeps those that it names."""

from __future__ import annotations

import pytest

from engine.cluster.registry_auth import auth_of, with_auth
from engine.cluster.words import of_service, told
from shoal.errors import FailedPrecondition, InvalidArgument, NameConflict, SequenceConflict
from shoal.model.objects import Service
from shoal.model.specs import ServiceSpec

SPEC = ServiceSpec()
SERVICE = Service(id="s1", spec=with_auth(SPEC, "now"), previous_spec=with_auth(SPEC, "then"))


@pytest.mark.parametrize(
    ("source", "auth"), [("", "now"), ("spec", "now"), ("previous-spec", "then")]
)
def test_the_source_is_the_one_that_is_named(source, auth):
    assert auth_of(SERVICE, source) == auth
    assert auth_of(SERVICE.replaced(spec=SPEC, previous_spec=SPEC), source) == ""


def test_no_credentials_are_none():
    assert with_auth(SERVICE.spec, "") == SPEC


def test_another_source_and_a_missing_one_are_refused():
    with pytest.raises(InvalidArgument, match="unsupported registryAuthFrom value 'x'"):
        auth_of(SERVICE, "x")
    with pytest.raises(InvalidArgument, match="service s1 does not have a previous spec"):
        auth_of(SERVICE.replaced(previous_spec=None), "previous-spec")


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (
            NameConflict("service name 'web' is already in use by s1: choose another name"), 409,
            "code = AlreadyExists desc = name conflicts with an existing object: service web"
            " already exists",
        ),
        (
            FailedPrecondition("service web does not have a previous spec"), 400,
            "code = FailedPrecondition desc = service s1 does not have a previous spec",
        ),
        (SequenceConflict("service: now"), 500, "code = Unknown desc = update out of sequence"),
        (InvalidArgument("image: must be given"), 400, "code = InvalidArgument desc = image: must"),
    ],
)  # fmt: skip
def test_what_managers_say_of_services_is_told_as_by_docker(error, status, text):
    refused = told(of_service(error, "web", "s1"))
    assert (refused.status, refused.message[: len(text) + 11]) == (status, f"rpc error: {text}")
