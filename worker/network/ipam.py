"""Addresses of this node's tasks: who holds which, and which rest before they are reused. Pure.

Invariant: an address is held by at most one task. A released address rests for `QUARANTINE_S`, so
that packets of old connections do not reach a new task; when nothing else is left, the address
that rested longest is given out early, marked `early` so that its connections get flushed first.
State is rebuilt with `adopt` and `rest` after a restart. Refuses addresses outside the subnet.
"""

from __future__ import annotations

import heapq
import ipaddress
from typing import Final

import msgspec

from shoal.errors import AlreadyExists, InvalidArgument, ResourceExhausted

QUARANTINE_S: Final = 120.0


class Grant(msgspec.Struct, frozen=True, gc=False):
    """An address given to a task; `early` if it had not rested long enough."""

    address: str
    early: bool = False


class AddressPool:
    """The host addresses of one subnet but the first, which is the gateway's."""

    def __init__(self, subnet: str) -> None:
        network = ipaddress.IPv4Network(subnet)
        self._first = int(network.network_address) + 2
        self._last = int(network.broadcast_address) - 1
        self._subnet = subnet
        self._holders: dict[int, str] = {}
        self._by_task: dict[str, int] = {}
        self._resting: dict[int, float] = {}
        self._free: list[int] = []
        self._fresh = self._first

    @property
    def held(self) -> dict[str, str]:
        """Address by task."""
        return {task: _text(number) for task, number in self._by_task.items()}

    def address_of(self, task_id: str) -> str | None:
        """The address `task_id` holds, if any."""
        number = self._by_task.get(task_id)
        return None if number is None else _text(number)

    def allocate(self, task_id: str, *, now_s: float) -> Grant:
        """Give `task_id` the lowest rested address; the same again if it holds one.

        Raises: ResourceExhausted when every address is held.
        """
        if (held := self._by_task.get(task_id)) is not None:
            return Grant(_text(held))
        self._wake(now_s)
        number, early = self._pick()
        self._hold(task_id, number)
        return Grant(_text(number), early)

    def adopt(self, task_id: str, address: str) -> None:
        """Record that `task_id` holds `address`, rested or not.

        Raises: InvalidArgument outside the subnet; AlreadyExists if held by another task or if
        the task holds another address.
        """
        number = self._number(address)
        if (holder := self._holders.get(number, task_id)) != task_id:
            raise AlreadyExists(f"address {address} is held by task {holder}")
        if self._by_task.get(task_id, number) != number:
            raise AlreadyExists(f"task {task_id} holds {_text(self._by_task[task_id])} already")
        self._hold(task_id, number)

    def release(self, task_id: str, *, now_s: float) -> str | None:
        """Take the task's address back and let it rest; returns it, None if it held none."""
        number = self._by_task.pop(task_id, None)
        if number is None:
            return None
        del self._holders[number]
        self._resting[number] = now_s + QUARANTINE_S
        return _text(number)

    def rest(self, address: str, *, until_s: float) -> None:
        """Let a free address rest until `until_s` (found in the kernel after a restart)."""
        number = self._number(address)
        if number not in self._holders:
            self._resting[number] = until_s

    def _pick(self) -> tuple[int, bool]:
        while self._free:
            number = heapq.heappop(self._free)
            if self._is_idle(number):
                return number, False
        while self._fresh <= self._last:
            number = self._fresh
            self._fresh += 1
            if self._is_idle(number):
                return number, False
        if not self._resting:
            raise ResourceExhausted(
                f"no free address in {self._subnet}: all {len(self._holders)} are in use; "
                "give the node a larger ingress subnet"
            )
        return min(self._resting, key=lambda number: (self._resting[number], number)), True

    def _is_idle(self, number: int) -> bool:
        return number not in self._holders and number not in self._resting

    def _wake(self, now_s: float) -> None:
        for number in [n for n, until_s in self._resting.items() if until_s <= now_s]:
            del self._resting[number]
            # Below _fresh it would never be offered again; above it, _fresh gets there.
            if number < self._fresh:
                heapq.heappush(self._free, number)

    def _hold(self, task_id: str, number: int) -> None:
        self._resting.pop(number, None)
        self._holders[number] = task_id
        self._by_task[task_id] = number

    def _number(self, address: str) -> int:
        try:
            number = int(ipaddress.IPv4Address(address))
        except ValueError as error:
            raise InvalidArgument(f"address {address!r} is not an IPv4 address") from error
        if not self._first <= number <= self._last:
            raise InvalidArgument(f"address {address} is not a task address of {self._subnet}")
        return number


def _text(number: int) -> str:
    return str(ipaddress.IPv4Address(number))
