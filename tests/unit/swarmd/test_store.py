"""Where the node's manager keeps its state: named on the command line, kept in node.json."""

from __future__ import annotations

import msgspec
import pytest

from shoal.errors import FailedPrecondition, InvalidArgument
from shoal.settings.node import read_node_config
from swarmd.core import InitWish
from swarmd.forcing import force_new_cluster_blocking
from swarmd.store import ManagerStore
from tests.unit.swarmd.test_node import CONFIG, MANAGER_IDENTITY, WORKER_IDENTITY, a_local_node

URL = "etcd://192.0.2.7:2379/one"
OTHER_URL = "etcd://192.0.2.8:2379/one"


@pytest.mark.parametrize(
    "url", ["http://h", "etcd://h?nonsense=1", "etcd://user:word@h/p", "etcd://h?cacert=ca.pem"]
)
def test_a_bad_url_is_refused_at_the_start(url):
    with pytest.raises(InvalidArgument, match="store"):
        ManagerStore(url)


def test_a_node_in_no_cluster_has_nothing_to_settle(tmp_path):
    node = a_local_node(tmp_path)
    ManagerStore(URL).settle_blocking(node)
    assert not node.paths.node_config.exists()


def test_it_is_remembered_and_may_move(tmp_path):
    node = a_local_node(tmp_path)
    node.become_blocking(MANAGER_IDENTITY, msgspec.structs.replace(CONFIG, store=URL))
    ManagerStore("").settle_blocking(node)
    assert node.membership.config.store == URL
    ManagerStore(OTHER_URL).settle_blocking(node)
    assert read_node_config(node.paths.node_config).store == OTHER_URL
    assert node.membership.config.store == OTHER_URL


def test_a_worker_takes_it_for_the_day_it_is_promoted(tmp_path):
    node = a_local_node(tmp_path)
    node.become_blocking(WORKER_IDENTITY, CONFIG)
    ManagerStore(URL).settle_blocking(node)
    assert a_local_node(tmp_path).membership.config.store == URL


def test_a_manager_with_a_log_is_not_moved(tmp_path):
    node = a_local_node(tmp_path)
    node.become_blocking(MANAGER_IDENTITY, CONFIG)
    with pytest.raises(FailedPrecondition, match=r"in a log of its own: leave out --store"):
        ManagerStore(URL).settle_blocking(node)
    assert node.membership.config.store == ""


async def test_what_is_about_a_log_is_refused(tmp_path):
    node = a_local_node(tmp_path)
    node.become_blocking(MANAGER_IDENTITY, msgspec.structs.replace(CONFIG, store=URL))
    with pytest.raises(FailedPrecondition, match=r"--force-new-cluster: .* in etcd"):
        force_new_cluster_blocking(node.paths, node.membership)
    with pytest.raises(FailedPrecondition, match=r"restore: .* in etcd"):
        ManagerStore(URL).require_log("restore")
    with pytest.raises(InvalidArgument, match="snapshot interval"):
        await ManagerStore(URL).check_init(InitWish(snapshot_interval=100))
    ManagerStore("").require_log("restore")
    await ManagerStore("").check_init(InitWish(snapshot_interval=100))
