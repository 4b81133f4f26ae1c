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

from manager.ca.autolock import WantedLock
from shoal.aio.signal import Signal
from shoal.clock import Clock
from shoal.errors import FailedPrecondition, NotFound, PermissionDenied, SwarmError
from shoal.security.identity import NodeIdentity, read_identity, remove_identity, write_identity
from shoal.security.lock import BOOTSTRAP_PLACE, LOCKED_TEXT, LockKeys, NodeLock, protect
from shoal.security.roles import Role
from shoal.security.unlock import Locked, UnlockKey
from shoal.settings.node import NodeConfig, read_node_config, write_durably, write_node_config
from shoal.settings.paths import NodePaths
from swarmd.children import MANAGER
from swarmd.lock import DiskLock


class Membership(msgspec.Struct, frozen=True):
    """identity and config are both there, or both None.

    error: why they cannot be used. locked: they are encrypted, and the unlock key is missing.
    """

    identity: NodeIdentity | None = None
    config: NodeConfig | None = None
    error: str = ""
    locked: bool = False

    @property
    def is_member(self) -> bool:
        """Whether the node is in a cluster, or was and cannot tell any more."""
        return self.identity is not None or self.locked or bool(self.error)

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
        self.lock = DiskLock(paths.lock)
        self.changing = False
        self.changed = Signal()
        self.renewal_problem = ""
        self._clock = clock
        self._writing = Lock()

    def load_blocking(self, unlock_key: UnlockKey | None = None) -> None:
        """Read what is on disk, and remove leftovers.

        unlock_key: for a locked node. Raises: PermissionDenied when it is the wrong one.
        """
        try:
            identity = self._opened(unlock_key)
        except NotFound:
            self.forget_blocking()
            self.membership = Membership()
            return
        except Locked:
            self.membership = Membership(locked=True)
            return
        except PermissionDenied:
            raise
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

    def _opened(self, unlock_key: UnlockKey | None) -> NodeIdentity:
        if self.lock.is_sealed() and unlock_key is None:
            identity = read_identity(self.paths.identity)
            if identity.peer.role is Role.MANAGER:
                raise Locked(LOCKED_TEXT)  # a crash while it was being locked
            self.lock.remove()  # a crash while a worker was made of a manager
            return identity
        self.lock.open(unlock_key)
        return read_identity(self.paths.identity, self.lock.keys)

    def lock_again(self) -> None:
        """Forget what the unlock key has opened."""
        self.lock.close()
        self.membership = Membership(locked=True)

    def become_blocking(
        self,
        identity: NodeIdentity,
        config: NodeConfig,
        *,
        lock: WantedLock | None = None,
        bootstrap: bytes = b"",
        make_log: Callable[[LockKeys], object] | None = None,
    ) -> None:
        """Enter a cluster. The identity is written last: it makes all the rest count.

        lock: what the cluster asks of a manager. bootstrap: the first entry of a new log.
        make_log: makes a log that holds a state already.
        """
        with self._writing:
            self._forget()
            if lock is not None:
                self.lock.change(lock)
            keys = self.lock.keys
            if bootstrap:
                content = protect(bootstrap, BOOTSTRAP_PLACE, keys.current)
                write_durably(self.paths.bootstrap, content)
            if make_log is not None:
                make_log(keys)
            write_node_config(self.paths.node_config, config)
            write_identity(self.paths.identity, identity, keys.current)
            self.membership = Membership(identity, config)

    def renew_blocking(
        self, old: NodeIdentity, new: NodeIdentity, lock: WantedLock | None = None
    ) -> bool:
        """Put another generation of the same node's identity in place of `old`.

        lock: what the cluster asks of a node that becomes a manager. A worker is never locked.
        Result: False, and nothing was done, if `old` is not the node's identity any more.
        """
        with self._writing:
            if self.membership.identity is not old:
                return False
            is_manager = new.peer.role is Role.MANAGER
            if is_manager and lock is not None:
                self.lock.change(lock)
            write_identity(self.paths.identity, new, self.lock.keys.current if is_manager else None)
            if not is_manager:
                self.lock.remove()
            self.membership = Membership(new, self.membership.config)
            return True

    def relock_blocking(self, wanted: WantedLock) -> None:
        """Encrypt the identity as the cluster asks for, on a manager; see `settle_blocking`."""
        with self._writing:
            identity = self.membership.identity
            if identity is None or not self.membership.is_manager:
                return
            if self.lock.change(wanted) or not self.lock.value.is_settled:
                write_identity(self.paths.identity, identity, self.lock.keys.current)

    def settle_blocking(self, lock: NodeLock) -> None:
        """Drop former lock keys: under this lock all has been encrypted anew."""
        with self._writing:
            if self.membership.is_manager and self.lock.value is lock:
                self.lock.settle()

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
        self.lock.remove()
        for path in (self.paths.raft, self.paths.raft_removed, self.paths.raft_restoring):
            if path.exists():
                shutil.rmtree(path)
        self.membership = Membership()

    @property
    def state(self) -> str:
        """`inactive`, `pending`, `active`, `locked` or `error`."""
        if self.changing:
            return "pending"
        if self.membership.locked:
            return "locked"
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
        return LOCKED_TEXT if self.membership.locked else self.membership.error

    def refusal(self, process: str) -> SwarmError | None:
        """Why calls for a process cannot be served on this node, None if they can."""
        if process != MANAGER or self.membership.is_manager:
            return None
        if self.membership.locked:
            return Locked(LOCKED_TEXT)
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
