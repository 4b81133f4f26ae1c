"""What this node is: in a cluster or not, and as what. One owner, read by everyone in swarmd.

On disk the identity is the commit point: with it the node is in a cluster, without it every other
file of a cluster is a leftover of an interrupted init, join or leave, and is removed.
Functions named `..._blocking` touch files: call them off the loop.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from threading import Lock

import msgspec

from shoal.aio.signal import Signal
from shoal.clock import Clock
from shoal.errors import FailedPrecondition, NotFound, SwarmError
from shoal.security.identity import NodeIdentity, read_identity, remove_identity, write_identity
from shoal.security.roles import Role
from shoal.settings.node import NodeConfig, read_node_config, write_durably, write_node_config
from shoal.settings.paths import NodePaths
from swarmd.children import MANAGER


class Membership(msgspec.Struct, frozen=True):
    """identity and config are both there, or both None. error: why they cannot be used."""

    identity: NodeIdentity | None = None
    config: NodeConfig | None = None
    error: str = ""

    @property
    def is_member(self) -> bool:
        """Whether the node is in a cluster, or was and cannot tell any more."""
        return self.identity is not None or bool(self.error)

    @property
    def is_manager(self) -> bool:
        """Whether the node must run a manager."""
        return self.identity is not None and self.identity.peer.role is Role.MANAGER

    @property
    def managers(self) -> tuple[str, ...]:
        """Addresses of managers this node knows of."""
        if self.config is None:
            return ()
        own = (self.config.advertise_address,) if self.is_manager else ()
        return tuple(dict.fromkeys(own + self.config.managers))


class LocalNode:
    """The membership now, and whether it is being changed.

    changed: set on the event loop after every init, join and leave, for the one who renews.
    renewal_problem: why the last renewal failed, empty if it did not.
    """

    def __init__(self, paths: NodePaths, clock: Clock) -> None:
        self.paths = paths
        self.membership = Membership()
        self.changing = False
        self.changed = Signal()
        self.renewal_problem = ""
        self._clock = clock
        self._writing = Lock()

    def load_blocking(self) -> None:
        """Read what is on disk, and remove leftovers."""
        try:
            identity = read_identity(self.paths.identity)
        except NotFound:
            self.forget_blocking()
            self.membership = Membership()
            return
        except SwarmError as error:
            self.membership = Membership(error=error.message)
            return
        try:
            config = read_node_config(self.paths.node_config)
        except SwarmError as error:
            self.membership = Membership(error=error.message)
            return
        if config is None:
            path = self.paths.node_config
            self.membership = Membership(
                error=f"{path} is missing: restore it, or `swarmctl leave --force` and join again"
            )
            return
        self.membership = Membership(identity, config)

    def become_blocking(
        self,
        identity: NodeIdentity,
        config: NodeConfig,
        *,
        bootstrap: bytes = b"",
        make_log: Callable[[], object] | None = None,
    ) -> None:
        """Enter a cluster. The identity is written last: it makes all the rest count.

        bootstrap: the first entry of a new log. make_log: makes a log that holds a state already.
        """
        with self._writing:
            self._forget()
            if bootstrap:
                write_durably(self.paths.bootstrap, bootstrap)
            if make_log is not None:
                make_log()
            write_node_config(self.paths.node_config, config)
            write_identity(self.paths.identity, identity)
            self.membership = Membership(identity, config)

    def renew_blocking(self, old: NodeIdentity, new: NodeIdentity) -> bool:
        """Put another generation of the same node's identity in place of `old`.

        Result: False, and nothing was done, if `old` is not the node's identity any more.
        """
        with self._writing:
            if self.membership.identity is not old:
                return False
            write_identity(self.paths.identity, new)
            self.membership = Membership(new, self.membership.config)
            return True

    def learn_managers_blocking(self, managers: tuple[str, ...]) -> None:
        """Remember where managers are, for the day when no session can be opened."""
        with self._writing:
            identity, config = self.membership.identity, self.membership.config
            if identity is None or config is None or config.managers == managers:
                return
            config = msgspec.structs.replace(config, managers=managers)
            write_node_config(self.paths.node_config, config)
            self.membership = Membership(identity, config)

    def use_store_blocking(self, url: str) -> None:
        """Remember where a manager on this node finds the cluster's state."""
        with self._writing:
            identity, config = self.membership.identity, self.membership.config
            if identity is None or config is None:
                return
            config = msgspec.structs.replace(config, store=url)
            write_node_config(self.paths.node_config, config)
            self.membership = Membership(identity, config)

    def forget_blocking(self) -> None:
        """Leave the cluster: the identity goes first, then what counts no more without it."""
        with self._writing:
            self._forget()

    def _forget(self) -> None:
        remove_identity(self.paths.identity)
        self.paths.node_config.unlink(missing_ok=True)
        self.paths.bootstrap.unlink(missing_ok=True)
        for path in (self.paths.raft, self.paths.raft_removed, self.paths.raft_restoring):
            if path.exists():
                shutil.rmtree(path)
        self.membership = Membership()

    @property
    def state(self) -> str:
        """`inactive`, `pending`, `active` or `error`."""
        if self.changing:
            return "pending"
        if self.error:
            return "error"
        return "active" if self.membership.is_member else "inactive"

    @property
    def error(self) -> str:
        """Why the node cannot take part in its cluster, empty if it can."""
        identity = self.membership.identity
        if identity is not None and identity.not_after_ns <= self._clock.now_ns():
            problem = self.renewal_problem or "no manager was reached yet"
            return f"the node's certificate has expired and is being renewed: {problem}"
        return self.membership.error

    def refusal(self, process: str) -> SwarmError | None:
        """Why calls for a process cannot be served on this node, None if they can."""
        if process != MANAGER or self.membership.is_manager:
            return None
        if self.membership.error:
            return FailedPrecondition(self.membership.error)
        if not self.membership.is_member:
            return FailedPrecondition(
                'This node is not part of a cluster. Use "swarmctl init" or "swarmctl join" to '
                "connect it to one and try again."
            )
        managers = ", ".join(self.membership.managers) or "none"
        return FailedPrecondition(
            "This node is not a manager. Worker nodes cannot be used to view or change cluster "
            f"state. Run this command on a manager (known managers: {managers}) or use -H."
        )
