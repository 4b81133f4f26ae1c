"""The files of local networks: whole or refused by name, whatever is found."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from shoal.errors import Internal
from worker.network.local.api import ContainerNetworking, IpamPool, LocalNetwork
from worker.network.local.files import Files, Holding, NetworksFile

N1 = LocalNetwork(
    id="1" * 64, name="n1", created_at_ns=1, pools=(IpamPool(subnet="10.1.0.0/24"),),
    labels={"a": "b"},
)  # fmt: skip
HOLDING = Holding(
    wanted=ContainerNetworking(container="c" * 64, name="web", hostname="box", networks=()),
    endpoints=(),
    host_links=(),
)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "engine" / "networks.json", tmp_path / "run")


def test_what_is_written_is_read(files: Files, tmp_path: Path):
    assert files.load_networks() == ()
    files.save_networks((N1,))
    assert files.load_networks() == (N1,)
    assert files.load_holdings() == {}
    files.save_holding(HOLDING)
    assert files.load_holdings() == {"c" * 64: HOLDING}
    files.remove_holding("c" * 64)
    files.remove_holding("c" * 64)
    assert files.load_holdings() == {}
    assert [path.name for path in tmp_path.rglob("*.*")] == ["networks.json"]


def test_format_1_is_read_as_it_was_written(files: Files, tmp_path: Path):
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "networks.json").write_text(
        '{"format":1,"networks":[{"id":"' + "1" * 64 + '","name":"n1","created_at_ns":1,'
        '"driver":"bridge","pools":[{"subnet":"10.1.0.0/24","ip_range":"","gateway":"",'
        '"reserved":{}}],"internal":false,"labels":{"a":"b"},"from_a_later_version":7}]}'
    )
    assert files.load_networks() == (N1,)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"networks": []}', b'{"format": 2}', b'{"format":1,"networks":3}'],
)
def test_damage_is_told_with_the_file(files: Files, tmp_path: Path, content: bytes):
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "networks.json").write_bytes(content)
    with pytest.raises(Internal, match=r"networks\.json.*restore it"):
        files.load_networks()


def test_a_damaged_holding_describes_nothing(files: Files, tmp_path: Path):
    files.load_holdings()
    path = tmp_path / "run" / f"{'d' * 64}.json"
    for content in (b"{", msgspec.json.encode(NetworksFile()), b'{"format": 9}'):
        path.write_bytes(content)
        assert files.load_holdings() == {}
        assert not path.exists()


def test_a_full_disk_leaves_the_old_file(files: Files, tmp_path: Path):
    files.save_networks((N1,))
    (tmp_path / "engine" / "networks.tmp").mkdir()  # nothing can be written there
    with pytest.raises(OSError, match="networks"):
        files.save_networks(())
    assert files.load_networks() == (N1,)
