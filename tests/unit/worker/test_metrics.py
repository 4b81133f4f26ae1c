"""What a scrape shows of the containers."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from shoal.errors import FailedPrecondition
from shoal.model.enums import TaskState as S
from tests.unit.worker.agent.support import FakeNode, a_task, task_id, until
from worker import metrics
from worker.metrics import ContainerCollector


class Links:
    """A data plane that knows one task's link."""

    async def link_bytes(self, task):
        return (10, 20) if task == task_id(1) else None


@pytest.fixture
async def node(tmp_path):
    async with FakeNode(tmp_path) as node:
        for number in (1, 2):
            node.tasks.assign(a_task(number))
            await node.reach(S.RUNNING, number)
        yield node


def page(collector):
    registry = CollectorRegistry()
    registry.register(collector)
    return generate_latest(registry).decode()


async def test_running_containers_are_shown(node):
    collector = ContainerCollector()
    assert "shoal/" not in page(collector)
    await collector.refresh(node.tasks, Links())
    text = page(collector)
    name = f"front.1.{task_id(1)}"
    labels = (
        f'container_label_com_docker_swarm_service_name="front",'
        f'container_label_com_docker_swarm_task_name="{name}",'
    )
    assert f'container_cpu_usage_seconds_total{{{labels}cpu="total",' in text
    assert text.count("container_memory_usage_bytes{") == 2
    assert text.count("container_network_receive_bytes_total{") == 1
    assert f'id="/shoal/{task_id(1)}"' in text
    collector.clear()
    assert "shoal/" not in page(collector)


async def test_what_ends_in_between_is_left_out(node):
    node.runtime.board.fail("stats", FailedPrecondition("not running"))
    collector = ContainerCollector()
    await collector.refresh(node.tasks, Links())
    assert page(collector).count("container_processes{") == 1


async def test_a_runtime_without_answer_does_not_hold_up_the_scrape(node, monkeypatch):
    monkeypatch.setattr(metrics, "REFRESH_TIMEOUT_S", 0.02)
    node.runtime.board.gate("stats")
    collector = ContainerCollector()
    await collector.refresh(node.tasks, Links())
    assert "shoal/" not in page(collector)
    await until(lambda: node.runtime.board.count("stats") == 2)
