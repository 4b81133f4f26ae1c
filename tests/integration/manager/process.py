"""A real manager process on directories as init leaves them."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from manager.ca.core import ClusterSecrets, new_cluster_secrets
from shoal.api.v1 import control_pb2 as pb
from shoal.api.v1.control_pb2_grpc import ControlStub
from shoal.ids import ClusterId, NodeId, new_id
from shoal.security.grpc_tls import local_channel
from shoal.security.identity import make_identity, write_identity
from shoal.security.keys import make_csr, make_key
from shoal.security.roles import PeerIdentity, Role
from shoal.security.root import RootCA
from shoal.settings.node import NodeConfig, write_durably, write_node_config
from shoal.settings.paths import NodePaths
from shoal.wire.objects import entry_to_bytes
from swarmd.addresses import HostPort, NodeAddresses
from swarmd.core import InitWish, NewNode, first_entry, plan_init
from tests.support.ports import free_port

DEADLINE_S = 60.0


class ManagerProcess:
    """Start it, kill it, start it again."""

    def __init__(self, directory: Path) -> None:
        self.paths = NodePaths(state=directory / "state", run=directory / "run")
        self.paths.run.mkdir(parents=True)
        self.address = f"127.0.0.1:{free_port()}"
        self.secrets: ClusterSecrets = new_cluster_secrets(now_ns=time.time_ns())
        self.cluster_id, self.node_id = ClusterId(new_id()), NodeId(new_id())
        self.process: subprocess.Popen[bytes] | None = None
        self._log = (directory / "manager.log").open("ab")
        self._initialise()

    def _initialise(self) -> None:
        root = RootCA(self.secrets.root_certificate_pem, self.secrets.root_key_pem)
        key = make_key()
        peer = PeerIdentity(self.node_id, Role.MANAGER, self.cluster_id)
        certificate = root.sign(make_csr(key), peer, now_ns=time.time_ns())
        host, port = self.address.split(":")
        endpoint = HostPort(ipaddress.ip_address(host), int(port))
        addresses = NodeAddresses(listen=endpoint, advertise=endpoint, data_path=endpoint.host)
        who = NewNode(self.node_id, self.cluster_id, "host-m1")
        entry = first_entry(
            plan_init(InitWish(), addresses), who, self.secrets, now_ns=time.time_ns()
        )
        write_durably(self.paths.bootstrap, entry_to_bytes(entry))
        config = NodeConfig(
            advertise_address=self.address,
            listen_address=self.address,
            data_path_address="127.0.0.1",
            managers=(self.address,),
        )
        write_node_config(self.paths.node_config, config)
        write_identity(self.paths.identity, make_identity(certificate, key, root.certificate_pem))

    @property
    def log(self) -> str:
        return Path(self._log.name).read_text(encoding="utf-8")

    def start(self, module: str = "manager", *, before: tuple[str, ...] = ()) -> None:
        """module: what is run in the manager's place, and `before`: its own arguments."""
        command = [
            sys.executable, "-P", "-m", module, *before,
            "--state-dir", str(self.paths.state), "--run-dir", str(self.paths.run),
            "--parent-pid", str(os.getpid()),
        ]  # fmt: skip
        root = str(Path(__file__).parents[3])
        self.process = subprocess.Popen(
            command, stdout=self._log, stderr=self._log, env={**os.environ, "PYTHONPATH": root}
        )

    async def start_serving(self) -> None:
        """Start, and wait until it answers."""
        self.start()
        async with asyncio.timeout(DEADLINE_S), local_channel(self.paths.manager_socket) as channel:
            request = pb.GetClusterRequest()
            await ControlStub(channel).GetCluster(request, wait_for_ready=True)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(timeout=DEADLINE_S)

    def stop(self) -> int:
        """SIGTERM. Result: the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=DEADLINE_S)

    def close(self) -> None:
        self.kill()
        self._log.close()


@contextlib.contextmanager
def a_manager(directory: Path) -> Iterator[ManagerProcess]:
    manager = ManagerProcess(directory)
    try:
        yield manager
    finally:
        manager.close()
