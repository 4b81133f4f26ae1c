"""Every path of a node, from its state directory and its run directory.

Nothing else builds paths, so that many nodes can live on one machine.
"""

from __future__ import annotations

from pathlib import Path

import msgspec


class NodePaths(msgspec.Struct, frozen=True):
    """state: what must survive a reboot. run: sockets and what belongs to running processes."""

    state: Path
    run: Path

    @property
    def identity(self) -> Path:
        """Parent of the identity directory, for `shoal.security.identity`."""
        return self.state

    @property
    def node_config(self) -> Path:
        """How this node is part of its cluster (swarmd's; `shoal.settings.node`)."""
        return self.state / "node.json"

    @property
    def lock(self) -> Path:
        """Lock keys of a manager (swarmd's; `shoal.settings.lock`)."""
        return self.state / "lock.json"

    @property
    def bootstrap(self) -> Path:
        """The first log entry of a new cluster: written by init, gone once it is committed."""
        return self.state / "bootstrap.entry"

    @property
    def raft(self) -> Path:
        """Log and snapshots of the manager."""
        return self.state / "raft"

    @property
    def raft_removed(self) -> Path:
        """The log of before, when the others have removed this manager."""
        return self.state / "raft.removed"

    @property
    def raft_restoring(self) -> Path:
        """Log and snapshots while they are made of a backup; it counts for nothing."""
        return self.state / "raft.restoring"

    @property
    def worker(self) -> Path:
        """The agent's own records and the containers."""
        return self.state / "worker"

    @property
    def images(self) -> Path:
        """The image store."""
        return self.state / "images"

    @property
    def engine(self) -> Path:
        """What the Docker API keeps: its id, the containers made through it."""
        return self.state / "engine"

    @property
    def volumes(self) -> Path:
        """Named volumes."""
        return self.state / "volumes"

    @property
    def swarmd_socket(self) -> Path:
        """What swarmctl talks to."""
        return self.run / "swarmd.sock"

    @property
    def manager_socket(self) -> Path:
        """The manager process, for swarmd."""
        return self.run / "manager.sock"

    @property
    def worker_socket(self) -> Path:
        """The worker process, for swarmd."""
        return self.run / "worker.sock"

    @property
    def docker_socket(self) -> Path:
        """The Docker Engine API."""
        return self.run / "docker.sock"
