"""`up`, `start`, `wait` and `down` as a user has them, with stand-ins for the daemons."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from shoal.errors import AlreadyExists, DeadlineExceeded, SwarmError
from swarmctl import contexts
from swarmctl.lab import nodes, verbs
from tests.integration.lab.conftest import REPOSITORY, standin_command
from tests.integration.lab.test_nodes import left_of

pytestmark = pytest.mark.root


def options(root: str, name: str, *, workers: int = 2, timeout_s: float = 60.0) -> verbs.UpOptions:
    return verbs.UpOptions(
        name=name, root=root, managers=1, workers=workers, subnet="", timeout_s=timeout_s
    )


def swarmctl(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "swarmctl", *words],
        capture_output=True, text=True, check=False, timeout=100, cwd="/",
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip


def test_a_lab_is_raised_troubled_and_taken_down(root, lab_name):
    contexts.save_context("mine", contexts.Context("unix:///elsewhere.sock"))
    contexts.use("mine")
    said: list[str] = []
    made = verbs.up(options(root, lab_name), report=said.append, command=standin_command())
    where = ("--name", lab_name, "--dir", root)
    m1, w1, w2 = made.plan.nodes

    assert said[1:] == [f"init m1 ({m1.address})", "join w1, w2"]
    stored = contexts.load()
    sockets = {n.name: f"unix://{nodes.paths_of(made.plan, n).socket}" for n in (m1, w1, w2)}
    assert stored.current == f"lab-{lab_name}"
    assert stored.contexts[f"lab-{lab_name}"].nodes == sockets
    assert stored.contexts[f"lab-{lab_name}"].host == sockets["m1"]

    assert swarmctl("lab", "ps", "-q", *where).stdout.split() == ["m1", "w1", "w2"]
    assert swarmctl("lab", "ls", "-q", "--dir", root).stdout.split() == [lab_name]
    template = swarmctl("lab", "ps", "--format", "{{.Name}} {{.DockerSocket}}", *where).stdout
    assert template.splitlines()[1] == f"w1 {nodes.paths_of(made.plan, w1).docker_socket}"
    inside = swarmctl("lab", "exec", *where, "w2", "--", "cat", "/proc/net/fib_trie")
    assert f"-- {w2.address}\n" in inside.stdout

    verbs.wait(root, lab_name, (), timeout_s=60)
    nodes.kill(made.plan, w1)
    assert len(nodes.family(made.plan, w1).helpers) == 1
    verbs.start(root, lab_name, "w1", timeout_s=40, command=standin_command())
    assert nodes.status(made.plan, w1) == "running"
    with pytest.raises(AlreadyExists):
        verbs.up(options(root, lab_name), report=said.append, command=standin_command())
    assert nodes.status(made.plan, m1) == "running"

    assert verbs.down(root, lab_name)
    assert left_of(root, lab_name) == []
    assert contexts.load().current == "mine"
    assert list(contexts.load().contexts) == ["mine"]
    assert not verbs.down(root, lab_name)


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        ({"w1": "start"}, r"node w1: swarmd ended .*\n.*\nthe standin will not start"),
        ({"m1": "init"}, r"node m1: told to fail\n.*\nthe standin will not be initialised"),
    ],
)
def test_a_failed_start_shows_the_log_and_leaves_nothing(root, lab_name, breaks, message):
    with pytest.raises(SwarmError, match=message):
        verbs.up(
            options(root, lab_name, workers=1),
            report=lambda _: None,
            command=standin_command(breaks),
        )
    assert left_of(root, lab_name) == []
    assert contexts.load().contexts == {}


def test_a_daemon_that_never_serves_is_given_up_after_the_deadline(root, lab_name):
    with pytest.raises(DeadlineExceeded, match="node m1: swarmd does not serve"):
        verbs.up(
            options(root, lab_name, workers=0, timeout_s=0.2),
            report=lambda _: None,
            command=lambda lab, node: ["sleep", "1000"],
        )
    assert left_of(root, lab_name) == []


def test_refusals_end_with_their_own_exit_code(root):
    assert swarmctl("lab", "ps", "--name", "absent", "--dir", root).returncode == 3
    assert swarmctl("lab", "up", "--name", "Bad", "--dir", root).returncode == 2
    refused = swarmctl("lab", "up", "--managers", "8", "--dir", root)
    assert refused.returncode == 2
    assert "--managers 8: must be between 1 and 7" in refused.stderr


def test_without_root_the_remedy_is_named(root):
    # The interpreter may be readable by root only: give root up once all is imported.
    code = (
        "import os; import swarmctl.lab.commands; from swarmctl.__main__ import main;"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); main()"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, "lab", "up", "--dir", root],
        capture_output=True, text=True, check=False, timeout=100, cwd="/",
        env={"PYTHONPATH": str(REPOSITORY), "HOME": "/nonexistent", "PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert done.returncode == 7
    assert "sudo" in done.stderr
