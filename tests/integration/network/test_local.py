"""The kernel's side of local networks, in a namespace of the test's own."""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.clock import SystemClock
from shoal.errors import PermissionDenied, Unavailable
from worker.network import netns
from worker.network.local.api import LocalNetwork
from worker.network.local.kernel import Kernel, machine_subnets
from worker.network.local.nftables import Nft, NftError
from worker.network.local.options import completed, default_bridge
from worker.network.local.service import Networks

pytestmark = pytest.mark.root
BRIDGE = default_bridge("b" * 64, 1, "172.17.0.0/16")
N1 = completed(LocalNetwork(id="1" * 64, name="n1", created_at_ns=1), [BRIDGE], [])


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory, and the thread in a namespace of its own."""
    with tempfile.TemporaryDirectory(prefix="shoal-net-") as directory:
        path = Path(directory) / "node"
        with netns.fresh(path):
            yield Path(directory)
        netns.drop(path)


def test_one_process_has_the_networks_of_a_namespace(place: Path):
    first, second = Kernel(place / "a"), Kernel(place / "b")
    first.open([BRIDGE])
    with pytest.raises(Unavailable, match="another process of Shoal"):
        second.open([BRIDGE])
    first.close()
    second.open([BRIDGE, N1])
    second.close(remove=[BRIDGE, N1])
    netns.unshare_directory(place / "a")
    assert [str(one) for one in machine_subnets()] == []


def subnet_of_bridge(place: Path) -> str:
    """The default bridge's, as a process finds or chooses it."""

    async def ask() -> str:
        networks = await Networks.open(place / "networks.json", place / "run", SystemClock())
        try:
            return networks.resolve("bridge").pools[0].subnet
        finally:
            await networks.close()

    return asyncio.run(ask())


def _shell(line: str) -> None:
    subprocess.run(line.split(), check=True, capture_output=True)


def test_the_default_bridge_avoids_the_machines_routes(place: Path):
    for line in ("link add x type bridge", "addr add 172.17.9.1/24 dev x", "link set x up"):
        _shell(f"ip {line}")
    assert subnet_of_bridge(place) == "172.18.0.0/16"
    _shell("ip addr add 10.9.9.1/24 dev x")
    assert subnet_of_bridge(place) == "172.18.0.0/16"
    _shell("ip route add 172.18.128.0/24 via 10.9.9.2")
    assert subnet_of_bridge(place) == "172.19.0.0/16"
    _shell("ip link add shbr0 type bridge")  # in use: it stays whatever comes
    _shell("ip route add 172.19.0.0/24 via 10.9.9.2")
    assert subnet_of_bridge(place) == "172.19.0.0/16"


def test_opening_again_changes_nothing_and_repairs(place: Path):
    kernel = Kernel(place / "netns")
    kernel.open([BRIDGE])
    kernel.add_network(N1)
    with Nft() as nft:
        before = nft.run("list table inet shoal_local")
        kernel.close()
        kernel.open([BRIDGE, N1])
        assert nft.run("list table inet shoal_local") == before
        assert "172.17.0.0/16" in {str(one) for one in machine_subnets()}
        with pytest.raises(PermissionDenied, match="on this machine already"):
            kernel.add_network(N1)
        kernel.remove_network(N1)
        kernel.remove_network(N1)
        assert "br-1" not in nft.run("list table inet shoal_local")
        kernel.close(remove=[BRIDGE])
        with pytest.raises(NftError, match="No such file"):
            nft.run("list table inet shoal_local")
