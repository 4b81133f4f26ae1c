"""Networks of up to 4000 endpoints: what one change costs does not grow with who is there.

Counted are Python's calls, which are the same on every machine, not seconds.
"""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Callable
from ipaddress import ip_address

from manager.allocator.networks.addresses import Addresses, AddressWish
from manager.allocator.plan import plan
from manager.dispatcher.overlay_sending import OverlaySending
from manager.dispatcher.overlays import OverlayTable
from shoal.model.enums import TaskState
from shoal.model.objects import Task
from shoal.model.specs import ContainerSpec, TaskSpec
from shoal.model.types import NetworkAttachment, NetworkAttachmentConfig
from tests.support.planning import Cell, a_network, a_node, a_service, a_task

SUBNET = "10.8.0.0/19"
MANY, FEW = 4_000, 1_000
SPEC = TaskSpec(runtime=ContainerSpec(image="a"), networks=(NetworkAttachmentConfig(target="net"),))


def calls(work: Callable[[], object]) -> int:
    """How many calls of functions it takes."""
    profile = cProfile.Profile()
    profile.runcall(work)
    return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]


def on_the_network(number: int, state: TaskState = TaskState.RUNNING) -> Task:
    held = NetworkAttachment("net", (f"{ip_address('10.8.0.10') + number}/19",))
    return a_task(
        f"t{number:05}", slot=number + 1, node_id=f"n{number % 2}", spec=SPEC, networks=(held,),
        state=state,
    )  # fmt: skip


def a_cell(count: int) -> Cell:
    rows = [a_node("n0"), a_node("n1"), a_network("net", SUBNET), a_service("web", task=SPEC)]
    cell = Cell(rows)
    cell.settle(lambda tables: plan(tables, (), now_ns=cell.now_ns, ids=cell.ids))
    for number in range(count):
        cell.put(on_the_network(number))
    return cell


def test_a_network_holds_4000_endpoints_each_with_an_address_of_its_own() -> None:
    cell = a_cell(MANY)
    addresses = Addresses(cell.tables)
    held = {address for task in cell.tables.tasks for address in task.networks[0].addresses}
    assert len(held) == MANY
    for number in range(200):
        ((given,),) = addresses.take([AddressWish("net")], on_the_network(MANY + number))
        assert given not in held
        held.add(given)


def test_a_new_address_costs_the_same_in_a_large_network() -> None:
    def cost(count: int) -> int:
        addresses, task = Addresses(a_cell(count).tables), on_the_network(count)
        addresses.take([AddressWish("net")], task)  # the first looks at all
        return calls(lambda: [addresses.take([AddressWish("net")], task) for _ in range(100)])

    assert cost(MANY) < 1.5 * cost(FEW)


def test_a_change_of_one_endpoint_costs_the_same_in_a_large_network() -> None:
    def cost(count: int) -> int:
        cell, table, sending = a_cell(count), OverlayTable(), OverlaySending("n0")
        ids = [task.id for task in cell.tables.tasks]
        table.update(cell.tables, networks=["net"], services=["web"], tasks=ids)
        sending.mark_all(table)
        changed, _ = sending.take(table)
        assert len(changed) == count + 2
        cell.put(on_the_network(0, TaskState.SHUTDOWN))

        def one_ends() -> None:
            changes = table.update(cell.tables, tasks=[ids[0]])
            sending.mark(table, changes)
            assert len(sending.take(table)[1]) == 1

        return calls(one_ends)

    assert cost(MANY) < 1.5 * cost(FEW)


def test_all_of_a_network_costs_in_proportion_to_who_is_there() -> None:
    def cost(count: int) -> int:
        cell = a_cell(count)
        return calls(lambda: Addresses(cell.tables))

    assert cost(MANY) < 5 * cost(FEW)
