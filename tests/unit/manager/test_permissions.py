"""Every method of every service the manager serves is in the table, and nothing else is."""

from __future__ import annotations

import inspect
import re

import pytest

from manager import app
from manager.backends import raft
from manager.permissions import permissions
from shoal.api.v1 import (
    ca_pb2,
    control_pb2,
    dispatcher_pb2,
    logs_pb2,
    node_pb2,
    raft_pb2,
    stacks_pb2,
    watch_pb2,
)
from shoal.errors import PermissionDenied
from shoal.ids import ClusterId, NodeId
from shoal.security.roles import PeerIdentity, Role

SERVED = {
    "Control": control_pb2, "Stacks": stacks_pb2, "Watch": watch_pb2, "Logs": logs_pb2,
    "LogBroker": logs_pb2,
    "Dispatcher": dispatcher_pb2, "Ca": ca_pb2, "Telemetry": node_pb2,
    "ManagerControl": node_pb2, "Raft": raft_pb2, "RaftMembership": raft_pb2,
}  # fmt: skip
ALLOWED = {
    "Control": {Role.MANAGER, Role.LOCAL},
    "Stacks": {Role.MANAGER, Role.LOCAL},
    "Watch": {Role.MANAGER, Role.LOCAL},
    "Logs": {Role.MANAGER, Role.LOCAL},
    "LogBroker": {Role.MANAGER, Role.WORKER},
    "Dispatcher": {Role.MANAGER, Role.WORKER},
    "Ca": set(Role),
    "Telemetry": {Role.LOCAL},
    "ManagerControl": {Role.LOCAL},
    "Raft": {Role.MANAGER},
    "RaftMembership": {Role.MANAGER},
}
EXCEPTIONS = {
    "Ca/ConfirmNodeCertificate": {Role.MANAGER, Role.WORKER},
    "Control/RemoveNode": {Role.MANAGER, Role.LOCAL, Role.WORKER},  # a worker: itself only
}
METHODS = [
    (name, method.name)
    for name, module in SERVED.items()
    for method in module.DESCRIPTOR.services_by_name[name].methods
]


@pytest.mark.parametrize(("service", "method"), METHODS)
def test_each_method_is_open_to_exactly_its_roles(service, method):
    table = permissions()
    for role in Role:
        peer = PeerIdentity(node_id=NodeId("n"), role=role, cluster_id=ClusterId("c"))
        path = f"/shoal.api.v1.{service}/{method}"
        if role in EXCEPTIONS.get(f"{service}/{method}", ALLOWED[service]):
            table.check(path, peer)
        else:
            with pytest.raises(PermissionDenied, match="is not open to the role"):
                table.check(path, peer)


def test_these_are_the_services_that_the_manager_serves():
    sources = "".join(map(inspect.getsource, (app, raft)))
    added = re.findall(r"\.add_(\w+)Servicer_to_server", sources)
    assert sorted(added) == sorted(SERVED)


def test_the_table_names_no_method_that_is_not_served():
    known = {f"/shoal.api.v1.{service}/{method}" for service, method in METHODS}
    assert set(permissions()._allowed) == known
