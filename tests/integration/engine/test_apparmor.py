"""What the docker command line says of AppArmor, where the kernel runs it and where not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.engine.daemon import EngineNode
from tests.integration.engine.seeded import ok, refused

pytestmark = pytest.mark.root
ENABLED = Path("/sys/module/apparmor/parameters/enabled")
HERE = ENABLED.exists() and ENABLED.read_text().startswith("Y")


def test_info_inspect_and_exec(seeded: EngineNode):
    assert ("name=apparmor" in seeded.docker_json("info")["SecurityOptions"]) == HERE
    profile = "shoal-default" if HERE else ""
    name = "confined"
    ok(seeded, "run", "-d", "--name", name, "--network", "none", "busybox", "sleep", "600")
    try:
        assert ok(seeded, "inspect", "-f", "{{.AppArmorProfile}}", name).strip() == profile
        told = ok(seeded, "exec", name, "sh", "-c", "cat /proc/self/attr/current 2>/dev/null; echo")
        assert told.strip("\0\n").startswith(profile)
    finally:
        ok(seeded, "rm", "-f", name)


def test_a_profile_that_nobody_has_runs_nothing(seeded: EngineNode):
    options = ("--rm", "--network", "none", "--security-opt", "apparmor=nobodys")
    ran = refused(seeded, "run", *options, "busybox", "true")
    assert ("it is not loaded" if HERE else "AppArmor is not enabled on this node") in ran
