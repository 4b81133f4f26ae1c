"""unlock, unlock-key and --autolock against the fake daemon."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

from shoal.api.v1 import control_pb2, node_pb2
from shoal.security.unlock import make_unlock_key, parse_unlock_key
from tests.unit.swarmctl.conftest import run

KEY = re.compile(r"SWMKEY-1-\S{43}")


def requests(daemon, kind) -> list:
    return [request for request in daemon.state.requests if isinstance(request, kind)]


def shown_key(text: str) -> str:
    (key,) = KEY.findall(text)
    parse_unlock_key(key)
    return key


@pytest.mark.parametrize("flag", [["--autolock"], ["--autolock=true"]])
def test_autolock_shows_a_key_that_was_made_here(daemon, flag):
    result = run("cluster", "update", *flag, host=daemon.address)
    assert result.exit_code == 0, result.output
    assert result.output.startswith(
        "Swarm updated.\nTo unlock a swarm manager after it restarts, run the `swarmctl unlock`\n"
        "command and provide the following key:\n\n    SWMKEY-1-"
    )
    (request,) = requests(daemon, control_pb2.UpdateClusterRequest)
    assert request.unlock_key == shown_key(result.output)
    assert not request.rotate_unlock_key
    assert daemon.state.cluster.spec.autolock_managers
    again = run("cluster", "update", *flag, host=daemon.address)
    assert again.output == "Swarm updated.\n", "it is on already: the key stays"
    off = run("cluster", "update", "--autolock=false", host=daemon.address)
    assert off.output == "Swarm updated.\n"
    assert not daemon.state.cluster.spec.autolock_managers
    assert "Autolock:\t\toff" in run("cluster", "inspect", "--pretty", host=daemon.address).output


def test_what_is_no_truth_value_is_refused(daemon):
    result = run("cluster", "update", "--autolock=maybe", host=daemon.address)
    assert (result.exit_code, requests(daemon, control_pb2.UpdateClusterRequest)) == (2, [])


def test_when_it_is_not_known_what_came_of_it_the_key_is_shown(daemon):
    """The managers may have locked themselves with it by now."""
    daemon.state.lose_updates = True
    result = run("cluster", "update", "--autolock", host=daemon.address)
    assert result.exit_code == 9
    assert result.stdout == ""
    (request,) = requests(daemon, control_pb2.UpdateClusterRequest)
    assert request.unlock_key == shown_key(result.stderr)
    assert "It is not known whether the change was made" in result.stderr


def test_init_with_autolock_prints_the_key(daemon):
    result = run("init", "--autolock", host=daemon.address)
    assert result.exit_code == 0, result.output
    (request,) = requests(daemon, node_pb2.InitRequest)
    assert request.autolock
    assert shown_key(result.output) == daemon.state.unlock_key
    plain = run("init", host=daemon.address)
    assert "SWMKEY" not in plain.output


def test_the_key_is_shown_and_rotated(daemon):
    none = run("unlock-key", host=daemon.address)
    assert (none.exit_code, none.stdout) == (6, "")
    assert "no unlock key is set" in none.stderr
    run("cluster", "update", "--autolock", host=daemon.address)
    first = daemon.state.unlock_key
    assert run("unlock-key", "-q", host=daemon.address).output == f"{first}\n"
    assert f"    {first}\n" in run("unlock-key", host=daemon.address).output
    rotated = run("unlock-key", "--rotate", host=daemon.address)
    assert rotated.output.startswith("Successfully rotated manager unlock key.\n\nTo unlock")
    second = shown_key(rotated.output)
    assert second == daemon.state.unlock_key != first
    quiet = run("unlock-key", "--rotate", "--quiet", host=daemon.address)
    assert quiet.output == f"{daemon.state.unlock_key}\n"


def test_unlock_reads_a_line_when_there_is_no_terminal(daemon):
    daemon.state.node_state = "locked"
    key = make_unlock_key().render()
    result = run("unlock", host=daemon.address, stdin=f"{key}\nmore\n".encode())
    assert (result.exit_code, result.output) == (0, "")
    assert [request.unlock_key for request in requests(daemon, node_pb2.UnlockRequest)] == [key]


@pytest.mark.parametrize(
    ("state", "text"),
    [("active", "swarm is not locked"), ("inactive", "This node is not part of a cluster")],
)
def test_a_key_is_not_asked_for_where_none_is_needed(daemon, state, text):
    daemon.state.node_state = state
    result = run("unlock", host=daemon.address)
    assert (result.exit_code, requests(daemon, node_pb2.UnlockRequest)) == (6, [])
    assert text in result.stderr


def test_on_a_terminal_the_key_is_not_echoed(daemon):
    daemon.state.node_state = "locked"
    key = make_unlock_key().render()
    main, terminal = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "swarmctl", "--host", daemon.address, "unlock"],
            stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
            preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # it controls it
        )  # fmt: skip
        shown = b""
        while b"Enter unlock key" not in shown:
            shown += os.read(main, 1024)
        os.write(main, f"{key}\n".encode())
        assert process.wait(timeout=40) == 0
        os.set_blocking(main, False)
        shown += os.read(main, 4096)
    finally:
        os.close(main)
        os.close(terminal)
    assert key.encode() not in shown
    assert [request.unlock_key for request in requests(daemon, node_pb2.UnlockRequest)] == [key]


def test_a_locked_node_is_shown_as_locked(daemon):
    daemon.state.node_state = "locked"
    assert "Swarm: locked\n" in run("info", host=daemon.address).output
    wanted = ["--format", "{{.Swarm.LocalNodeState}} {{.Swarm.ControlAvailable}}"]
    assert run("info", *wanted, host=daemon.address).output == "locked false\n"
