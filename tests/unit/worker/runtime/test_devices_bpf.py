"""The device program decides as the rules read: the last match wins, no match is no."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.worker.runtime.bpf import run_device_program
from worker.runtime.api import ContainerConfig
from worker.runtime.bundle import resources_of
from worker.runtime.lean.devices_bpf import assemble

KINDS = {"b": 1, "c": 2}
BITS = {"m": 1, "r": 2, "w": 4}


def _decide(rules: list[dict[str, Any]], access: int, kind: int, major: int, minor: int) -> bool:
    for rule in reversed(rules):
        wanted = sum(BITS[x] for x in rule.get("access") or "rwm")
        if rule.get("type", "a") != "a" and (
            KINDS[rule["type"]] != kind
            or rule.get("major") not in (None, major)
            or rule.get("minor") not in (None, minor)
        ):
            continue
        if access & ~wanted:
            continue
        return rule["allow"]
    return False


rules = st.lists(
    st.fixed_dictionaries(
        {
            "allow": st.booleans(),
            "type": st.sampled_from("abc"),
            "major": st.none() | st.integers(0, 3),
            "minor": st.none() | st.integers(0, 3),
            "access": st.sampled_from(["r", "w", "m", "rw", "rm", "rwm"]),
        }
    ),
    max_size=6,
)


@given(rules)
def test_program_equals_the_rules(chosen):
    program = assemble(chosen)
    for access, kind, major, minor in itertools.product((1, 2, 4, 6), (1, 2), (0, 3), (0, 2)):
        got = run_device_program(program, access=access, kind=kind, major=major, minor=minor)
        assert bool(got) == _decide(chosen, access, kind, major, minor)


def test_default_rules_allow_what_docker_allows():
    config = ContainerConfig(id="a", layers=("/x",), args=("x",))
    program = assemble(resources_of(config, ())["devices"])

    def allowed(access: int, kind: int, major: int, minor: int) -> bool:
        return bool(run_device_program(program, access=access, kind=kind, major=major, minor=minor))

    assert allowed(6, 2, 1, 3)
    assert allowed(6, 2, 136, 7)
    assert allowed(1, 1, 8, 0)
    assert not allowed(2, 1, 8, 0)
    assert not allowed(2, 2, 1, 1)
