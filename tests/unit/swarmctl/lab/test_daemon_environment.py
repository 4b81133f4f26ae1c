"""A proxy of the user must not come between the nodes of a lab."""

from __future__ import annotations

import ipaddress

from swarmctl.lab.nodes import daemon_environment
from swarmctl.lab.plan import plan_lab


def test_addresses_of_the_lab_bypass_any_proxy():
    subnet = ipaddress.IPv4Network("10.89.3.0/24")
    lab = plan_lab("x", managers=1, workers=1, subnet=subnet, directory="/labs")

    made = daemon_environment({"PATH": "/bin", "http_proxy": "p", "no_proxy": "a.b,::1"}, lab)

    assert made["PATH"] == "/bin"
    assert made["http_proxy"] == "p"
    assert made["no_proxy"] == made["NO_PROXY"]
    assert made["no_proxy"].split(",") == [
        "a.b", "::1", "localhost", "127.0.0.1", "10.89.3.1", "10.89.3.2", "10.89.3.3",
    ]  # fmt: skip
