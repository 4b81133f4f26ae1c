"""A lab's context is selected while it is up, and the one from before afterwards."""

from __future__ import annotations

import ipaddress

import pytest

from swarmctl import contexts
from swarmctl.lab import verbs
from swarmctl.lab.plan import plan_lab

LAB = plan_lab(
    "x", managers=1, workers=1, subnet=ipaddress.IPv4Network("10.89.3.0/24"), directory="/labs"
)


@pytest.fixture(autouse=True)
def own_file(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOAL_CONFIG_DIR", str(tmp_path))
    for name in ("mine", "other"):
        contexts.save_context(name, contexts.Context(f"unix:///{name}.sock"))


def test_every_node_has_its_socket_in_the_context():
    verbs.save_context(LAB)

    assert contexts.load().current == "lab-x"
    saved = contexts.load().contexts["lab-x"]
    assert saved.host == "unix:///labs/x/m1/run/swarmd.sock"
    assert saved.nodes == {
        "m1": "unix:///labs/x/m1/run/swarmd.sock",
        "w1": "unix:///labs/x/w1/run/swarmd.sock",
    }


@pytest.mark.parametrize(
    ("previous", "then"),
    [("mine", "mine"), ("", ""), ("gone", ""), ("lab-x", "")],
)
def test_the_previous_context_is_selected_again(previous, then):
    verbs.save_context(LAB)
    verbs.forget_context("x", previous)

    assert contexts.load().current == then
    assert sorted(contexts.load().contexts) == ["mine", "other"]


def test_a_choice_made_meanwhile_is_respected():
    verbs.save_context(LAB)
    contexts.use("other")
    verbs.forget_context("x", "mine")

    assert contexts.load().current == "other"


def test_forgetting_twice_is_no_error():
    contexts.use("mine")
    verbs.forget_context("x", "other")

    assert contexts.load().current == "mine"
