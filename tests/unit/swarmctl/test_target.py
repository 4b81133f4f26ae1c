"""Choosing the daemon, and the file of contexts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shoal.errors import Code, FailedPrecondition, InvalidArgument, NotFound
from swarmctl import contexts
from swarmctl.contexts import DEFAULT_HOST, Context, Contexts
from swarmctl.exits import EXIT_BY_CODE, MEANINGS
from swarmctl.target import Choice, choose, parse_host
from tests.unit.swarmctl.conftest import run

STORED = Contexts(
    current="lab",
    contexts={
        "lab": Context(host="unix:///lab.sock", nodes={"n1": "unix:///n1.sock"}),
        "far": Context(host="unix:///far.sock"),
    },
)
TLS = {"tls_ca": "ca", "tls_certificate": "cert", "tls_key": "key"}


@pytest.mark.parametrize(
    ("choice", "environ", "stored", "host"),
    [
        (Choice(host="unix:///h.sock"), {"SWARM_HOST": "unix:///e.sock"}, STORED, "unix:///h.sock"),
        (Choice(), {"SWARM_HOST": "unix:///e.sock"}, STORED, "unix:///e.sock"),
        (
            Choice(),
            {"SWARM_HOST": "unix:///e.sock", "SWARM_CONTEXT": "far"},
            STORED,
            "unix:///e.sock",
        ),
        (Choice(context="far"), {"SWARM_HOST": "unix:///e.sock"}, STORED, "unix:///far.sock"),
        (Choice(context="far"), {"SWARM_CONTEXT": "lab"}, STORED, "unix:///far.sock"),
        (Choice(), {"SWARM_CONTEXT": "far"}, STORED, "unix:///far.sock"),
        (Choice(), {}, STORED, "unix:///lab.sock"),
        (Choice(), {}, Contexts(), DEFAULT_HOST),
        (Choice(context="default"), {}, STORED, DEFAULT_HOST),
    ],
)
def test_order_of_the_choice(choice, environ, stored, host):
    assert choose(choice, environ, stored).host == host


def test_nodes_come_with_the_context():
    target = choose(Choice(), {}, STORED)
    assert target.node("n1", Choice()).socket == Path("/n1.sock")
    with pytest.raises(NotFound, match="it has n1"):
        target.node("n2", Choice())


def test_host_and_context_exclude_each_other():
    with pytest.raises(InvalidArgument):
        choose(Choice(host="unix:///a", context="lab"), {}, STORED)
    with pytest.raises(NotFound, match="context ls"):
        choose(Choice(context="nosuch"), {}, STORED)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("tcp://a.test:1234", "a.test:1234"),
        ("tcp://a.test", "a.test:2377"),
        ("tcp://192.0.2.1/", "192.0.2.1:2377"),
        ("tcp://[2001:db8::1]:99", "[2001:db8::1]:99"),
        ("tcp://[2001:db8::1]", "[2001:db8::1]:2377"),
        ("tcp://2001:db8::1", "[2001:db8::1]:2377"),
    ],
)
def test_tcp_hosts(host, address):
    assert parse_host(host, Choice(**TLS)).address == address


@pytest.mark.parametrize("host", ["", "a.test", "unix://a.sock", "http://a.test", "tcp://"])
def test_no_hosts(host):
    with pytest.raises(InvalidArgument, match="unix:///path"):
        parse_host(host, Choice(**TLS))


def test_tcp_needs_a_certificate():
    with pytest.raises(InvalidArgument, match="--tlscacert"):
        parse_host("tcp://a.test", Choice(tls_ca="ca"))


def test_contexts_are_kept(settings):
    contexts.save_context("a", Context(host="unix:///a.sock", description="A"))
    contexts.save_context("b", Context(host="unix:///b.sock", nodes={"n": "unix:///n"}))
    contexts.use("b")
    assert contexts.load().current == "b"
    assert contexts.load().get("a").description == "A"
    assert json.loads((settings / "contexts.json").read_text())["contexts"]["b"]["nodes"] == {
        "n": "unix:///n"
    }
    contexts.remove("b")
    assert contexts.load() == Contexts(
        contexts={"a": Context(host="unix:///a.sock", description="A")}
    )
    assert [path.name for path in settings.iterdir()] == ["contexts.json"]


def test_a_broken_file_is_refused_and_kept(settings):
    settings.mkdir()
    (settings / "contexts.json").write_text("{oops")
    with pytest.raises(FailedPrecondition, match="repair or remove"):
        contexts.save_context("a", Context(host="unix:///a.sock"))
    assert (settings / "contexts.json").read_text() == "{oops"


def test_names_and_unknown_contexts():
    for name in ("", "default", "../x", "a b", "-x"):
        with pytest.raises(InvalidArgument):
            contexts.save_context(name, Context(host="unix:///a.sock"))
    for action in (contexts.use, contexts.remove):
        with pytest.raises(NotFound):
            action("nosuch")


def test_context_commands(monkeypatch):
    made = run("context", "create", "a", "--host", "unix:///a.sock", "--node", "n=unix:///n.sock")
    assert made.output == "a\n"
    assert run("context", "create", "b", "--host", "a.sock").exit_code == 2
    assert run("context", "show").output == "default\n"
    assert run("context", "use", "a").output == "a\n"
    assert run("context", "show").output == "a\n"
    rows = [line.split() for line in run("context", "ls").output.splitlines()]
    assert rows[1][0] == "default"
    assert rows[2] == ["a", "*", "unix:///a.sock", "1"]
    assert run("context", "ls", "-q").output == "default\na\n"
    monkeypatch.setenv("SWARM_CONTEXT", "default")
    assert "SWARM_CONTEXT is set" in run("context", "use", "a").stderr
    assert run("context", "rm", "nosuch", "a").exit_code == 3
    assert run("context", "use", "a").exit_code == 3


def test_every_code_has_an_exit_code_with_a_meaning():
    assert set(EXIT_BY_CODE) == set(Code)
    assert set(EXIT_BY_CODE.values()) <= set(MEANINGS)
    assert EXIT_BY_CODE[Code.INVALID_ARGUMENT] == 2


def test_an_unreachable_daemon_is_named_with_the_remedy(tmp_path):
    missing = run("node", "ls", host=f"unix://{tmp_path}/no.sock")
    assert missing.exit_code == 5
    assert f"no daemon listens at unix://{tmp_path}/no.sock: start it with `swarmd`" in (
        missing.stderr
    )
    (tmp_path / "dead.sock").touch()
    dead = run("node", "ls", host=f"unix://{tmp_path}/dead.sock")
    assert dead.exit_code == 5
    assert "nothing answers there" in dead.stderr


def test_files_of_the_certificate_that_cannot_be_read():
    flags = ["--tlscacert", "/nonexistent", "--tlscert", "b", "--tlskey", "c"]
    result = run(*flags, "node", "ls", host="tcp://127.0.0.1:9")
    assert result.exit_code == 6
    assert "--tlscacert /nonexistent: No such file" in result.stderr
