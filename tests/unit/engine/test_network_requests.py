"""Bodies of networks: whose they are to be, and what is asked for."""

from __future__ import annotations

import pytest

from engine.http import bodies
from engine.http.errors import Refused
from engine.resources.network_requests import CreateNetwork, is_spanning, spanning
from shoal.errors import InvalidArgument
from shoal.model.specs import NetworkSpec
from shoal.model.types import Annotations, Driver, IpamConfig, IpamOptions


def body(**fields: object) -> CreateNetwork:
    """As a client sends it."""
    return bodies.convert({"Name": "n", "Driver": "overlay", **fields}, CreateNetwork)


@pytest.mark.parametrize(
    ("fields", "spans"),
    [
        ({}, True),
        ({"Driver": "bridge"}, False),
        ({"Driver": ""}, False),
        ({"Driver": "bridge", "Scope": "swarm"}, True),
        ({"Driver": "", "Ingress": True}, True),
    ],
)
def test_whose_a_network_is_to_be(fields, spans):
    assert is_spanning(body(**fields)) is spans


def test_everything_that_is_asked_for_reaches_the_managers():
    pool = {
        "Subnet": "10.1.0.0/24", "IPRange": "10.1.0.128/25", "Gateway": "10.1.0.9",
        "AuxiliaryAddresses": {"router": "10.1.0.3"},
    }  # fmt: skip
    request = body(
        Attachable=True,
        Internal=True,
        EnableIPv6=True,
        Labels={"a": "b"},
        Options={"encrypted": ""},
        IPAM={"Driver": "default", "Options": {"o": "1"}, "Config": [pool]},
        ConfigOnly=True,
        ConfigFrom={"Network": "c"},
        Ingress=True,
    )
    assert spanning(request) == NetworkSpec(
        annotations=Annotations("n", {"a": "b"}),
        driver=Driver("overlay", {"encrypted": ""}),
        ipv6_enabled=True,
        internal=True,
        attachable=True,
        ingress=True,
        ipam=IpamOptions(
            driver=Driver("default", {"o": "1"}),
            configs=(
                IpamConfig("10.1.0.0/24", "10.1.0.128/25", "10.1.0.9", {"router": "10.1.0.3"}),
            ),
        ),
        config_from="c",
        config_only=True,
    )


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ({"Name": ""}, InvalidArgument, "name is empty"),
        ({"Scope": "local"}, InvalidArgument, "invalid scope: local"),
        ({"IPAM": {"Config": [{"Subnet": "bad"}]}}, Refused, "invalid CIDR address: bad"),
        ({"IPAM": {"Config": [{"Subnet": "10.1.0.1/24"}]}}, InvalidArgument, "10.1.0.0/24"),
    ],
)
def test_what_cannot_be_meant_is_refused(fields, error, text):
    with pytest.raises(error, match=text):
        spanning(body(**fields))
