"""Variables in Compose files."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import InvalidArgument
from swarmctl.compose.interpolate import substitute
from tests.unit.swarmctl.compose.site import Site, load, service_of

ENVIRON = {"A": "a", "EMPTY": "", "N": "3"}


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("$A", "a"), ("${A}x", "ax"), ("$$A", "$A"), ("$A$$$A", "a$a"), ("${NO}", ""),
        ("${NO:-d}", "d"), ("${EMPTY:-d}", "d"), ("${EMPTY-d}", ""), ("${NO-d}", "d"),
        ("${A:-d}", "a"), ("${A:+w}", "w"), ("${EMPTY:+w}", ""), ("${EMPTY+w}", "w"),
        ("${NO+w}", ""), ("${NO:-${A}}", "a"), ("${NO:-${NO2-x}y}", "xy"), ("${A:?e}", "a"),
        ("${NO:-a b:c}", "a b:c"), ("plain", "plain"), ("${NO:-$$}", "$"),
    ],
)  # fmt: skip
def test_every_form(text, result):
    assert substitute(text, ENVIRON) == result


@pytest.mark.parametrize("text", ["$", "${", "${A", "${}", "${A!}", "$1", "${A:-${B}", "$ A"])
def test_what_is_no_form_is_refused(text):
    with pytest.raises(InvalidArgument, match="invalid interpolation format"):
        substitute(text, ENVIRON)


@pytest.mark.parametrize("text", ["${NO:?give it}", "${NO?give it}", "${EMPTY:?give it}"])
def test_required_variables(text):
    with pytest.raises(InvalidArgument, match="missing a value: give it"):
        substitute(text, ENVIRON)


def test_nesting_is_bounded():
    with pytest.raises(InvalidArgument, match="nested more than"):
        substitute("${X:-" * 1000 + "}" * 1000, {})


@given(st.text("${}:-?+A ", max_size=60))
def test_any_text_is_filled_or_refused(text):
    with contextlib.suppress(InvalidArgument):
        assert isinstance(substitute(text, ENVIRON), str)


def test_values_become_what_their_place_wants():
    site = Site(environ={"N": "3", "T": "yes", "O": "0440"})
    spec = service_of(
        "tty: $T\ndeploy: {replicas: $N}\nconfigs: [{source: c, mode: $O}]",
        site=site,
        rest="configs: {c: {content: x}}",
    )
    assert spec.mode.replicas == 3
    assert spec.task.runtime.tty
    assert spec.task.runtime.configs[0].mode == 0o440


def test_a_variable_that_is_not_set_is_told_once():
    project = load("services: {a: {image: 'x:$V', hostname: $V, user: '${W-w}'}}")
    assert project.warnings == ("The 'V' variable is not set. Defaulting to a blank string.",)


def test_keys_and_extensions_are_left_alone():
    project = load("x-a: $V\nservices: {a: {image: x, labels: {$V: b}}}")
    assert project.document.value["services"]["a"]["labels"] == {"$V": "b"}
    assert project.document.value["x-a"] == "$V"
    assert project.warnings == ()
