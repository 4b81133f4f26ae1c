"""Flags that name a container, decide on its life, its streams and its health."""

from __future__ import annotations

import json
import signal
import subprocess
import time

from tests.integration.engine.daemon import DEADLINE_S
from tests.integration.engine.flags.worlds import NONE, begin, of, run
from tests.integration.engine.networked import NetworkedNode
from tests.integration.engine.seeded import ask, ok, refused, state_of, until
from tests.integration.engine.test_streams import Terminal, command


@of("--name")
def _name(node: NetworkedNode):
    begin(node, "--name", "a.name", *NONE)
    assert ok(node, "exec", "a.name", "echo", "here") == "here"
    assert "Conflict" in refused(node, "run", "--name", "a.name", "busybox")


@of("--label")
def _label(node: NetworkedNode):
    made = begin(node, "--label", "colour=blue", *NONE)
    assert ok(node, "ps", "-q", "--no-trunc", "--filter", "label=colour=blue") == made


@of("--label-file")
def _label_file(node: NetworkedNode):
    file = node.base / "labels"
    file.write_text("shape=round\n")
    made = begin(node, "--label-file", str(file), *NONE)
    assert ok(node, "ps", "-q", "--no-trunc", "--filter", "label=shape=round") == made


@of("--annotation")
def _annotation(node: NetworkedNode):
    """They are for the runtime: its configuration has them."""
    made = begin(node, "--annotation", "note=here", *NONE)
    bundle = node.state / "worker/containers" / made / "config.json"
    assert json.loads(bundle.read_text())["annotations"]["note"] == "here"


@of("--cidfile")
def _cidfile(node: NetworkedNode):
    file = node.base / "cid"
    assert begin(node, "--cidfile", str(file), *NONE) == file.read_text()


@of("--env-file")
def _env_file(node: NetworkedNode):
    file = node.base / "env"
    file.write_text("FILED=yes\n")
    assert run(node, "--env-file", str(file), script="echo $FILED") == "yes"


@of("--entrypoint")
def _entrypoint(node: NetworkedNode):
    assert ok(node, "run", "--rm", *NONE, "--entrypoint", "/bin/echo", "busybox", "sh") == "sh"


@of("--init")
def _init(node: NetworkedNode):
    ran = node.docker("run", "--rm", *NONE, "--init", "busybox", "cat", "/proc/1/comm")
    if ran.code == 0:
        assert ran.out == "docker-init\n"
    else:
        assert "this node has no static init program" in ran.err


# Its life


@of("--rm")
def _rm(node: NetworkedNode):
    before = ok(node, "volume", "ls", "-q")
    made = begin(node, "--rm", "-v", "/anonymous", *NONE)
    assert ok(node, "volume", "ls", "-q") != before
    ok(node, "kill", made)
    until(lambda: ask(node, "GET", f"/containers/{made}/json")[0] == 404)
    assert ok(node, "volume", "ls", "-q") == before


@of("--restart")
def _restart(node: NetworkedNode):
    made = begin(node, "--restart", "on-failure:2", *NONE, script="echo again; exit 3")
    until(lambda: ok(node, "logs", made) == "again\nagain\nagain")
    until(lambda: state_of(node, made)["Status"] == "exited")


@of("--stop-signal")
def _stop_signal(node: NetworkedNode):
    script = "trap 'exit 5' USR1; echo ready; while :; do sleep 0.1; done"
    made = begin(node, "--stop-signal", "USR1", *NONE, script=script)
    until(lambda: ok(node, "logs", made) == "ready")
    ok(node, "stop", made)
    assert state_of(node, made)["ExitCode"] == 5


@of("--stop-timeout")
def _stop_timeout(node: NetworkedNode):
    """The program wants eight seconds to end. Without the flag it would have ten."""
    script = "trap 'sleep 8; exit 5' TERM; echo ready; while :; do sleep 0.1; done"
    made = begin(node, "--stop-timeout", "1", *NONE, script=script)
    until(lambda: ok(node, "logs", made) == "ready")
    ok(node, "stop", made)
    assert state_of(node, made)["ExitCode"] == 137


@of("--detach")
def _detach(node: NetworkedNode):
    assert state_of(node, begin(node, *NONE))["Running"]


@of("--pull")
def _pull(node: NetworkedNode):
    assert refused(node, "run", "--pull", "never", "nosuch") == "No such image: nosuch:latest"
    for words in (("--pull", "always", "busybox"), ("--pull", "missing", "nosuch")):
        assert "registry-1.docker.io" in refused(node, "run", *words)
    run(node, "--pull", "missing")


@of("--quiet")
def _quiet(node: NetworkedNode):
    assert "Unable to find image" in node.docker("run", "nosuch").err
    assert "Unable to find image" not in node.docker("run", "--quiet", "nosuch").err


@of("--platform")
def _platform(node: NetworkedNode):
    machine = ok(node, "image", "inspect", "--format", "{{.Os}}/{{.Architecture}}", "busybox")
    run(node, "--platform", machine)
    reason = refused(node, "run", "--pull", "never", "--platform", "linux/s390x", "busybox")
    assert reason.endswith(f"wanted linux/s390x, actual: {machine}")


@of("--disable-content-trust")
def _content_trust(node: NetworkedNode):
    run(node, "--disable-content-trust")
    ran = node.docker("run", "--rm", *NONE, "--disable-content-trust=false", "busybox", "true")
    assert "notary" in ran.err


@of("--use-api-socket")
def _api_socket(node: NetworkedNode):
    script = "stat -c %i /var/run/docker.sock"
    assert run(node, "--use-api-socket", script=script) == str(node.socket.stat().st_ino)


# Its streams


@of("--attach")
def _attach(node: NetworkedNode):
    words = (
        "run",
        "--rm",
        *NONE,
        "--attach",
        "stderr",
        "busybox",
        "sh",
        "-c",
        "echo o; echo e >&2",
    )
    ran = node.docker(*words)
    assert (ran.out, ran.err) == ("", "e\n")


@of("--interactive")
def _interactive(node: NetworkedNode):
    words = command(node, "run", "--rm", *NONE, "--interactive", "busybox", "cat")
    done = subprocess.run(
        words, input=b"given", capture_output=True, check=True, timeout=DEADLINE_S
    )
    assert done.stdout == b"given"


@of("--tty")
def _tty(node: NetworkedNode):
    assert run(node, "--tty", script="test -t 0 && test -t 1 && tty") == "/dev/pts/0"


@of("--detach-keys")
def _detach_keys(node: NetworkedNode):
    words = ("run", "-it", "--name", "left", *NONE, "--detach-keys", "ctrl-x,y", "busybox", "sh")
    terminal = Terminal(node, *words)
    terminal.see("# ")
    terminal.type("\x18y")
    terminal.end()
    assert state_of(node, "left")["Running"]


@of("--sig-proxy")
def _sig_proxy(node: NetworkedNode):
    script = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done"
    for proxied, code in (("true", 9), ("false", 137)):
        words = (f"--sig-proxy={proxied}", "--name", proxied, *NONE, "busybox", "sh", "-c", script)
        client = subprocess.Popen(command(node, "run", *words), stdout=subprocess.PIPE)
        try:
            assert client.stdout is not None
            assert client.stdout.readline() == b"ready\n"
            client.send_signal(signal.SIGTERM)
            if proxied == "false":
                ok(node, "kill", proxied)
            assert client.wait(DEADLINE_S) == code
        finally:
            client.kill()
            client.communicate()


@of("--log-driver")
def _log_driver(node: NetworkedNode):
    made = begin(node, "--log-driver", "none", *NONE)
    assert refused(node, "logs", made) == "configured logging driver does not support reading"
    reason = refused(node, "run", "--log-driver", "pigeon", "busybox")
    assert reason == "logger: no log driver named 'pigeon' is registered"


@of("--log-opt")
def _log_opt(node: NetworkedNode):
    options = ("--log-opt", "max-size=10k", "--log-opt", "max-file=2")
    made = begin(node, *options, *NONE, script="seq 1 3000")
    ok(node, "wait", made)
    lines = ok(node, "logs", made).splitlines()
    assert lines[-1] == "3000"
    assert len(lines) < 1000
    assert "unknown log opt 'x'" in refused(node, "run", "--log-opt", "x=1", "busybox")


# Its health


def _checks(node: NetworkedNode, container: str) -> list[dict[str, str]]:
    return state_of(node, container)["Health"]["Log"] or []


def _becomes(node: NetworkedNode, container: str, status: str) -> None:
    until(lambda: state_of(node, container)["Health"]["Status"] == status)


@of("--health-cmd")
def _health_cmd(node: NetworkedNode):
    options = ("--health-cmd", "test -f /ok", "--health-interval", "200ms")
    made = begin(node, *options, *NONE)
    _becomes(node, made, "unhealthy")
    ok(node, "exec", made, "touch", "/ok")
    _becomes(node, made, "healthy")
    ok(node, "rm", "-f", made)


@of("--health-interval")
def _health_interval(node: NetworkedNode):
    """Of the shortest and the longest it is shown which one counts: one has had no check yet."""
    often = begin(node, "--health-cmd", "true", "--health-interval", "200ms", *NONE)
    seldom = begin(node, "--health-cmd", "true", "--health-interval", "1h", *NONE)
    until(lambda: len(_checks(node, often)) >= 3)
    assert not _checks(node, seldom)
    ok(node, "rm", "-f", often, seldom)


@of("--health-retries")
def _health_retries(node: NetworkedNode):
    """Only the first check fails: that is one too many; without the flag it takes three."""
    options = ("--health-cmd", "test -f /tried || { touch /tried; false; }",
               "--health-interval", "200ms", "--health-retries", "1")  # fmt: skip
    made = begin(node, *options, *NONE)
    _becomes(node, made, "healthy")
    words = ("--since", "0", "--until", str(time.time()), "--filter", f"container={made}")
    said = ok(node, "events", *words, "--filter", "event=health_status", "--format", "{{.Action}}")
    assert said.splitlines()[0] == "health_status: unhealthy"
    ok(node, "rm", "-f", made)


@of("--health-timeout")
def _health_timeout(node: NetworkedNode):
    options = ("--health-cmd", "sleep 60", "--health-interval", "200ms", "--health-timeout", "1s")
    made = begin(node, *options, *NONE)
    until(lambda: _checks(node, made))
    assert _checks(node, made)[0]["Output"] == "Health check exceeded timeout (1s)"
    ok(node, "rm", "-f", made)


@of("--health-start-period")
def _health_start_period(node: NetworkedNode):
    options = ("--health-cmd", "false", "--health-interval", "100ms", "--health-retries", "1",
               "--health-start-period", "1h", "--health-start-interval", "100ms")  # fmt: skip
    made = begin(node, *options, *NONE)
    until(lambda: len(_checks(node, made)) >= 3)
    assert state_of(node, made)["Health"]["Status"] == "starting"
    ok(node, "rm", "-f", made)


@of("--health-start-interval")
def _health_start_interval(node: NetworkedNode):
    options = ("--health-cmd", "false", "--health-interval", "1h", "--health-start-period", "1h",
               "--health-start-interval", "100ms")  # fmt: skip
    made = begin(node, *options, *NONE)
    until(lambda: len(_checks(node, made)) >= 2)
    ok(node, "rm", "-f", made)


@of("--no-healthcheck")
def _no_healthcheck(node: NetworkedNode):
    source = begin(node, *NONE)
    ok(node, "commit", "--change", "HEALTHCHECK CMD true", source, "checked")
    for options, has in (((), True), (("--no-healthcheck",), False)):
        made = ok(node, "run", "-d", *NONE, *options, "checked", "sleep", "600")
        assert ("Health" in state_of(node, made)) == has
