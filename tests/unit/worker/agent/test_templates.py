"""Placeholders: the documented ones, and nothing half-expanded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import InvalidArgument
from tests.unit.worker.agent.support import FACTS, a_task, task_id
from worker.agent.templates import expand


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("plain", "plain"),
        ("", ""),
        ("{{.Service.Name}}", "front"),
        ("{{ .Service.ID }}", "service1"),
        ("{{.Node.ID}}/{{.Node.Hostname}}", "node1/alpha"),
        ("{{.Node.Platform.OS}}-{{.Node.Platform.Architecture}}", "linux-amd64"),
        ("{{.Task.ID}}", task_id()),
        ("{{.Task.Name}}", f"front.1.{task_id()}"),
        ("a{{.Task.Slot}}b", "a1b"),
        ('{{index .Service.Labels "tier"}}', "edge"),
        ('{{index .Service.Labels "none"}}', ""),
        ("}} {", "}} {"),
    ],
)
def test_expands(text, result):
    assert expand(text, a_task(), FACTS) == result


def test_a_task_without_a_slot_is_named_by_its_node():
    assert expand("{{.Task.Name}}", a_task().replaced(slot=0), FACTS) == f"front.node1.{task_id()}"


@pytest.mark.parametrize(
    "text", ["{{.Task.Nope}}", "{{}}", "{{.}}", "{{.Service.Labels}}", "{{ if .Task.Slot }}"]
)
def test_an_unknown_placeholder_is_named_with_those_that_exist(text):
    with pytest.raises(InvalidArgument, match=r"is unknown, use one of .*\{\{\.Task\.Slot\}\}"):
        expand(text, a_task(), FACTS)


@pytest.mark.parametrize("text", ["{{.Task.Slot", "x {{", "{{.Task.Slot}} {{.Task.ID"])
def test_an_unclosed_placeholder_is_refused(text):
    with pytest.raises(InvalidArgument, match="without its"):
        expand(text, a_task(), FACTS)


def test_values_are_not_expanded_again():
    task = a_task()
    annotations = task.service_annotations.replaced(labels={"tier": "{{.Task.ID}}"})
    task = task.replaced(service_annotations=annotations)
    assert expand('{{index .Service.Labels "tier"}}', task, FACTS) == "{{.Task.ID}}"


@given(st.text().filter(lambda text: "{{" not in text))
def test_text_without_placeholders_is_left_alone(text):
    assert expand(text, a_task(), FACTS) == text
