"""Metrics of the store's content, under Swarm's names: read at the scrape, never counted along."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from typing_extensions import override

from manager.store.store import Store
from shoal.model.enums import NodeState, TaskState


class StoreCollector(Collector):
    """Nodes and tasks by state, how many of each other kind, and how far watches can go back."""

    def __init__(self, store: Store, leads: Callable[[], bool]) -> None:
        self._store = store
        self._leads = leads

    @override
    def collect(self) -> Iterator[GaugeMetricFamily]:
        view = self._store.view
        leads = self._leads()
        yield _number("swarm_manager_leader", "Whether this manager is the leader.", leads)
        # Copies: the scrape runs in a thread while the event loop may apply commits.
        nodes = Counter(node.status.state.name for node in tuple(view.nodes))
        names = [state.name for state in NodeState]
        yield _by_state("swarm_manager_nodes", "Nodes by state.", names, nodes)
        tasks = Counter(task.status.state.name for task in tuple(view.tasks))
        names = [state.name for state in TaskState]
        yield _by_state("swarm_manager_tasks_total", "Tasks by state.", names, tasks)
        for kind, table in (
            ("services", view.services),
            ("networks", view.networks),
            ("secrets", view.secrets),
            ("configs", view.configs),
        ):
            yield _number(f"swarm_manager_{kind}_total", f"Number of {kind}.", len(table))
        history = self._store.history
        what = "that watches can be resumed through"
        yield _number("shoal_store_history_commits", f"Commits {what}.", len(history))
        yield _number("shoal_store_history_bytes", f"Log entries {what}.", history.size_bytes)
        yield _number(
            "shoal_store_history_since_version", "Oldest version to resume from.", history.since
        )


def _number(name: str, documentation: str, value: int) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, documentation)
    family.add_metric([], value)
    return family


def _by_state(
    name: str, documentation: str, states: Sequence[str], numbers: Counter[str]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, documentation, labels=["state"])
    for state in states:
        family.add_metric([state.lower()], numbers[state])
    return family
