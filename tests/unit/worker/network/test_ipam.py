"""Addresses: one holder each, rest before reuse, rebuilt after a restart."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shoal.errors import AlreadyExists, InvalidArgument, ResourceExhausted
from worker.network.ipam import QUARANTINE_S, AddressPool

SUBNET = "10.240.4.0/28"
CAPACITY = 13


def test_the_lowest_address_after_the_gateway_comes_first() -> None:
    pool = AddressPool(SUBNET)
    assert [pool.allocate(t, now_s=0).address for t in "abca"] == [
        "10.240.4.2",
        "10.240.4.3",
        "10.240.4.4",
        "10.240.4.2",
    ]


def test_a_released_address_rests_and_then_is_the_lowest_again() -> None:
    pool = AddressPool(SUBNET)
    pool.allocate("a", now_s=0)
    assert pool.release("a", now_s=10) == "10.240.4.2"
    assert pool.release("a", now_s=10) is None
    assert pool.allocate("b", now_s=10 + QUARANTINE_S - 1).address == "10.240.4.3"
    grant = pool.allocate("c", now_s=10 + QUARANTINE_S)
    assert (grant.address, grant.early) == ("10.240.4.2", False)


def test_the_longest_rested_address_is_given_early_when_nothing_else_is_left() -> None:
    pool = AddressPool(SUBNET)
    for number in range(CAPACITY):
        pool.allocate(f"t{number}", now_s=0)
    with pytest.raises(ResourceExhausted, match="larger ingress subnet"):
        pool.allocate("more", now_s=0)
    pool.release("t5", now_s=1)
    pool.release("t2", now_s=2)
    grant = pool.allocate("more", now_s=3)
    assert (grant.address, grant.early) == ("10.240.4.7", True)


def test_adoption_rebuilds_the_state_and_contradictions_are_refused() -> None:
    pool = AddressPool(SUBNET)
    pool.adopt("a", "10.240.4.2")
    pool.adopt("a", "10.240.4.2")
    with pytest.raises(AlreadyExists, match="held by task a"):
        pool.adopt("b", "10.240.4.2")
    with pytest.raises(AlreadyExists, match="holds"):
        pool.adopt("a", "10.240.4.3")
    for address in ("10.240.4.1", "10.240.4.15", "10.240.5.2", "nonsense"):
        with pytest.raises(InvalidArgument):
            pool.adopt("b", address)
    pool.rest("10.240.4.3", until_s=50)
    assert pool.allocate("b", now_s=1).address == "10.240.4.4"
    assert pool.allocate("c", now_s=50).address == "10.240.4.3"


class PoolMachine(RuleBasedStateMachine):
    """Any sequence of operations, against a plain model."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = AddressPool(SUBNET)
        self.held: dict[str, str] = {}
        self.until: dict[str, float] = {}
        self.now = 0.0

    @rule(task=st.integers(0, 20).map(str))
    def allocate(self, task: str) -> None:
        if task in self.held:
            assert self.pool.allocate(task, now_s=self.now).address == self.held[task]
        elif len(self.held) == CAPACITY:
            with pytest.raises(ResourceExhausted):
                self.pool.allocate(task, now_s=self.now)
        else:
            grant = self.pool.allocate(task, now_s=self.now)
            resting = self.until.get(grant.address, 0) > self.now
            assert grant.early == resting
            assert grant.address not in self.held.values()
            if resting:
                blocked = {a for a, until in self.until.items() if until > self.now}
                assert len(blocked | set(self.held.values())) == CAPACITY
            self.held[task] = grant.address
            self.until.pop(grant.address, None)

    @precondition(lambda self: self.held)
    @rule(choice=st.integers(0, 100))
    def release(self, choice: int) -> None:
        task = sorted(self.held)[choice % len(self.held)]
        address = self.held.pop(task)
        assert self.pool.release(task, now_s=self.now) == address
        self.until[address] = self.now + QUARANTINE_S

    @rule(seconds=st.sampled_from([1.0, 60.0, 130.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def same_holders(self) -> None:
        assert self.pool.held == self.held
        network = ipaddress.IPv4Network(SUBNET)
        assert all(ipaddress.IPv4Address(a) in network for a in self.held.values())


TestPool = PoolMachine.TestCase
