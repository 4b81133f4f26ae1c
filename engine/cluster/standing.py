"""What this node is to its cluster, in Docker's words. Pure."""

from __future__ import annotations

from typing import Any

from shoal.model.row import Row

NOT_IN_A_SWARM = "This node is not part of a swarm"
LEAVES_LOCKED = (
    "Swarm is encrypted and locked. Please unlock it first or use `--force` to ignore this message."
)
ALREADY_IN_A_SWARM = (
    'This node is already part of a swarm. Use "docker swarm leave" to leave this swarm and join'
    " another one."
)
NOT_A_MANAGER = (
    'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect'
    " this node to swarm and try again."
)
_WORKER = (
    "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state."
    " Please run this command on a manager node or promote the current node to a manager."
)
_LOCKED = (
    "Swarm is encrypted and needs to be unlocked before it can be used. Please use"
    ' "docker swarm unlock" to unlock it.'
)


class Standing(Row, frozen=True):
    """State, and place in the cluster; state: inactive, pending, active, locked or error."""

    state: str = "inactive"
    error: str = ""
    node_id: str = ""
    address: str = ""
    is_manager: bool = False
    managers: tuple[str, ...] = ()

    @property
    def is_member(self) -> bool:
        """Whether the node is in a cluster, able to work in it or not."""
        return self.state in ("active", "locked", "error")

    @property
    def refusal(self) -> str:
        """Why nothing of the cluster can be seen or changed from here; empty on a manager."""
        if self.state == "locked":
            return _LOCKED
        if self.state == "error":
            return self.error
        if not self.node_id:
            return NOT_A_MANAGER
        return "" if self.is_manager else _WORKER

    @property
    def header(self) -> str:
        """The header `Swarm` of `/_ping`."""
        if self.state != "active":
            return self.state
        return "active/manager" if self.is_manager else "active/worker"


def swarm_info(standing: Standing) -> dict[str, Any]:
    """The node's own half of the section `Swarm` of `/info`."""
    host, _, _ = standing.address.rpartition(":")
    return {
        "NodeID": standing.node_id,
        "NodeAddr": host.strip("[]"),
        "LocalNodeState": standing.state,
        "ControlAvailable": standing.is_manager and standing.state == "active",
        "Error": standing.error,
        "RemoteManagers": [{"NodeID": "", "Addr": address} for address in standing.managers]
        or None,
    }
