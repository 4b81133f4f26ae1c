"""The overlay networks of this node, blocking: wishes against what is in force, and the difference.

Order: whoever comes is reachable before anybody is sent there; nobody is sent to whoever goes
before he is unreachable. Invariant: after `apply` every task of this node balances over exactly the
ready endpoints of the wish. A network stays for as long as a task is on it, whatever the wish says.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec
import structlog

from shoal.errors import FailedPrecondition, InvalidArgument, NotFound
from worker.network import netns
from worker.network.api import NetworkSettings
from worker.network.conntrack import Match
from worker.network.keys import PrivateKeys
from worker.network.netlink import Message, NetlinkError
from worker.network.overlay import metrics, plan
from worker.network.overlay.api import OverlayNetwork, OverlayState, TaskPlace
from worker.network.overlay.encryption import Encryption
from worker.network.overlay.insides import TaskSpaces, elements, versions_of
from worker.network.overlay.plan import NetworkPlan, Tables
from worker.network.overlay.spaces import NetworkSpaces

_UDP: Final = 17
_NOTHING: Final[Tables] = {}
_log = structlog.get_logger()


class _Messages:
    """Changes of tables as messages: made once for all tasks that need the same one."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, int, int], tuple[Tables, Tables, tuple[Message, ...]]] = {}
        """By the identities of the tables, which live as long as their entry."""

    def of(self, old: Tables, new: Tables, version: int) -> tuple[Message, ...]:
        key = (id(old), id(new), version)
        if key not in self._made:
            self._made[key] = (old, new, elements(plan.change(old, new, version), version))
        return self._made[key][2]

    def keep(self, targets: Iterable[Tables]) -> None:
        """Keep what the next new task needs."""
        current = {id(one) for one in targets}
        self._made = {
            key: made
            for key, made in self._made.items()
            if key[0] == id(_NOTHING) and key[1] in current
        }


class OverlayKernel:
    """All of it; belongs to one thread of the node's network namespace."""

    def __init__(self, settings: NetworkSettings) -> None:
        self._own_address = settings.underlay_address
        self._spaces = NetworkSpaces(settings)
        self._tasks = TaskSpaces()
        self._plans: dict[str, NetworkPlan] = {}
        self._refused: dict[str, str] = {}
        self._unsealed = ""
        """Why no encrypted network can be built here; empty while they can."""
        self._places: dict[str, TaskPlace] = {}
        self._tables: dict[str, Tables] = {}
        """What is in force in each task's namespace."""
        self._targets: dict[tuple[str, ...], Tables] = {}
        self._messages = _Messages()

    def open(self) -> None:
        """Raises: Unimplemented naming what the kernel lacks."""
        self._spaces.open()

    def close(self, *, remove: bool) -> None:
        """Let go; with `remove`, take every network off this node."""
        self._tasks.close()
        self._spaces.close(remove=remove)

    # Versions ---------------------------------------------------------------------------------

    def apply(self, state: OverlayState) -> Mapping[str, str]:
        """Bring the kernel in step. Result: reason by id of networks this node cannot build.

        Raises: NetlinkError, OSError; to be called again then.
        """
        try:
            return self._apply(state)
        except OSError:
            metrics.note_failure()
            raise
        finally:
            self._show()

    def _apply(self, state: OverlayState) -> Mapping[str, str]:
        wanted = plan.plans(state, self._current(state), self._own_address)
        before, self._refused = self._plans, {}
        self._drop_unused(wanted)  # first: a new network may have the number of one that is gone
        self._prepare_encryption(state)
        for network_id, one in list(wanted.items()):
            with self._fresh_on_error(network_id):
                try:
                    plan.check_network(one.network, self._unsealed)
                except InvalidArgument as error:
                    self._refused[network_id] = error.message
                    del wanted[network_id]
                    continue
                self._spaces.ensure(one.network)
                self._spaces.put_remotes(network_id, one.remotes)
        self._plans = wanted
        self._balance()
        for network_id, one in wanted.items():
            with self._fresh_on_error(network_id):
                self._spaces.drop_remotes(network_id, one.remotes)
        self._forget(before)
        self._drop_unused(wanted)
        self._finish_encryption()
        return self._refused

    # Encryption -------------------------------------------------------------------------------

    def use_keys(self, keys: PrivateKeys) -> None:
        """Keys of encrypted networks from now on. Raises: FailedPrecondition, NetlinkError."""
        with self._fresh_encryption_on_error() as encryption:
            encryption.use_keys(keys)

    @property
    def is_settled(self) -> bool:
        """Whether every peer is spoken to by its newest key."""
        return self._spaces.encryption.behind == 0

    def settle(self) -> bool:
        """Speak to peers by newer keys where they have them. Result: whether all do."""
        with self._fresh_encryption_on_error() as encryption:
            encryption.settle()
        return encryption.behind == 0

    def _prepare_encryption(self, state: OverlayState) -> None:
        mtus = [self._spaces.mtu(one) for one in state.networks if one.encrypted]
        with self._fresh_encryption_on_error() as encryption:
            self._unsealed = encryption.prepare(state, mtus)

    def _finish_encryption(self) -> None:
        """A network that the managers tell nothing of may be an encrypted one with tasks on it."""
        ids = self._spaces.ids()
        is_used = any(one not in self._plans or self._plans[one].network.encrypted for one in ids)
        with self._fresh_encryption_on_error() as encryption:
            encryption.finish(is_used=is_used)

    @contextlib.contextmanager
    def _fresh_encryption_on_error(self) -> Iterator[Encryption]:
        """As for networks: after a refusal the next try looks at what is there."""
        encryption = self._spaces.encryption
        try:
            yield encryption
        except OSError:
            encryption.forget()
            raise
        finally:
            metrics.show(encryption)

    def networks(self) -> Mapping[str, OverlayNetwork]:
        """Those that are in force, by id."""
        return {network_id: one.network for network_id, one in self._plans.items()}

    # Tasks ------------------------------------------------------------------------------------

    def attach(self, place: TaskPlace) -> None:
        """Put a task, whose namespace is there, on its networks. Idempotent.

        Raises: FailedPrecondition (this node cannot build the network), NotFound, OSError.
        """
        networks = self._networks_of(place)
        path = Path(place.netns_path)
        inside = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for link, network in zip(place.links, networks, strict=True):
                with self._fresh_on_error(network.network_id):
                    self._spaces.ensure(network)
                    self._spaces.plug(network, place.task_id, link, inside)
        finally:
            os.close(inside)
        with netns.entered(path):
            for link in place.links:
                self._tasks.configure(link)
            if place.task_id not in self._places:  # later its own settings may say otherwise
                self._tasks.find_out_sizes()
            if plan.is_shut_in(place, self.networks()):
                self._tasks.shut_in(place)
        known = self._places.get(place.task_id)
        if known is not None and len(known.links) < len(place.links):
            self._retable(known, place)  # it runs: nothing of before may be interrupted
            return
        key = _networks(place)
        tables = self._targets[key] = self._target(key)
        for version in versions_of(place):
            self._tasks.load(place, version)
            self._tasks.change(place, version, self._messages.of(_NOTHING, tables, version))
        self._places[place.task_id], self._tables[place.task_id] = place, tables
        self._show()

    def leave(self, task_id: str, network_id: str) -> None:
        """Take a container that runs on off one of its networks. Idempotent. Raises: OSError."""
        place = self._places.get(task_id)
        if place is not None:
            links = tuple(one for one in place.links if one.network_id != network_id)
            self._retable(place, msgspec.structs.replace(place, links=links))
        self._spaces.pull(network_id, task_id)
        self._drop_unused(self._plans)

    def adopt(self, place: TaskPlace) -> None:
        """Take over a task after a restart. Raises: NotFound when an interface is gone."""
        for link in place.links:
            if not self._spaces.has_port(link.network_id, place.task_id):
                raise NotFound(
                    f"task {place.task_id}: its interface {link.interface} on network "
                    f"{link.network_id} is gone; the task must be replaced"
                )
        self._places[place.task_id] = place
        self._tables[place.task_id] = self._tasks.tables(place)

    def detach(self, task_id: str) -> None:
        """Let go of a task whose namespace is about to be dropped. Idempotent."""
        self._tasks.release(task_id)
        self._tables.pop(task_id, None)
        place = self._places.pop(task_id, None)
        if place is not None:
            for link in place.links:
                self._spaces.unplug(task_id, link)
            self._drop_unused(self._plans)
            self._show()

    def redirect_names(self, task_id: str, ports: tuple[int, int]) -> None:
        """Lead a task's queries to where the resolver listens. Raises: NftError, OSError."""
        place = self._places.get(task_id)
        if place is not None:
            self._tasks.redirect_names(place, ports)

    # ------------------------------------------------------------------------------------------

    def _retable(self, before: TaskPlace, after: TaskPlace) -> None:
        """Give a task that runs the virtual addresses of the networks that it now is on."""
        old, key = self._tables[before.task_id], _networks(after)
        new = self._targets[key] = self._target(key)
        had = versions_of(before)
        for version in versions_of(after):
            if version not in had:
                self._tasks.load(after, version)
        for version in {*had, *versions_of(after)}:
            self._change(after, version, old if version in had else _NOTHING, new)
        self._places[after.task_id], self._tables[after.task_id] = after, new

    def _show(self) -> None:
        metrics.show_networks(
            self._plans.values(), refused=len(self._refused), places=len(self._places)
        )

    def _networks_of(self, place: TaskPlace) -> list[OverlayNetwork]:
        for link in place.links:
            if link.network_id in self._refused:
                raise FailedPrecondition(self._refused[link.network_id])
            if link.network_id not in self._plans:
                raise NotFound(f"network {link.network_id} is not on this node")
        return [self._plans[link.network_id].network for link in place.links]

    def _current(self, state: OverlayState) -> dict[str, Tables]:
        """The tables to build on; after a restart those that a task's namespace holds."""
        current: dict[str, Tables] = {
            network_id: one.tables for network_id, one in self._plans.items()
        }
        for network in state.networks:
            if network.network_id not in current:
                current[network.network_id] = plan.merged(
                    self._tables[place.task_id] for place in self._places_on(network.network_id)
                )
        return current

    def _places_on(self, network_id: str) -> Iterator[TaskPlace]:
        for place in self._places.values():
            if any(link.network_id == network_id for link in place.links):
                yield place

    def _balance(self) -> None:
        """Change the tables of every task; tasks on the same networks get the same messages."""
        self._targets = {
            key: self._target(key) for key in {_networks(one) for one in self._places.values()}
        }
        for task_id, place in self._places.items():
            old, new = self._tables[task_id], self._targets[_networks(place)]
            if old is not new:
                for version in versions_of(place):
                    self._change(place, version, old, new)
                self._tables[task_id] = new
        self._messages.keep(self._targets.values())

    def _target(self, networks: tuple[str, ...]) -> Tables:
        """The tables of tasks on these networks: the same object for as long as they are equal."""
        new = plan.merged(self._plans[one].tables for one in networks if one in self._plans)
        known = self._targets.get(networks)
        return known if known == new else new

    def _change(self, place: TaskPlace, version: int, old: Tables, new: Tables) -> None:
        """One task; if somebody has changed its tables, what is there is compared and mended."""
        try:
            self._tasks.change(place, version, self._messages.of(old, new, version))
        except NetlinkError as error:
            _log.warning("overlay.tables_differ", task_id=place.task_id, reason=str(error))
            found = self._tasks.tables(place)
            self._tasks.change(place, version, elements(plan.change(found, new, version), version))

    def _forget(self, before: Mapping[str, NetworkPlan]) -> None:
        """Forget connections to whoever is gone or lost, and datagrams' to who is not ready.

        Without it a client of a lost node would repeat itself for a quarter of an hour.
        """
        for network_id, old in before.items():
            new = self._plans.get(network_id)
            if new is None:
                continue
            gone = (old.addresses - new.addresses) | (new.lost - old.lost)
            unready = plan.owners_of(old.tables) - plan.owners_of(new.tables) - gone
            matches = [
                *(Match(address=address) for address in sorted(gone)),
                *(Match(address=address, protocol=_UDP) for address in sorted(unready)),
            ]
            for place in self._places_on(network_id) if matches else ():
                self._tasks.forget(place, _of_families(matches, versions_of(place)))

    def _drop_unused(self, wanted: Collection[str]) -> None:
        used = {link.network_id for place in self._places.values() for link in place.links}
        for network_id in self._spaces.ids():
            if network_id not in wanted and network_id not in used:
                _log.info("overlay.network_dropped", network_id=network_id)
                self._spaces.drop(network_id)

    @contextlib.contextmanager
    def _fresh_on_error(self, network_id: str) -> Iterator[None]:
        """After a refusal the next try looks at what is there."""
        try:
            yield
        except OSError:
            self._spaces.forget(network_id)
            raise


def _networks(place: TaskPlace) -> tuple[str, ...]:
    return tuple(link.network_id for link in place.links)


def _of_families(matches: Iterable[Match], versions: Iterable[int]) -> list[Match]:
    known = set(versions)
    return [match for match in matches if plan.version_of(match.address) in known]
