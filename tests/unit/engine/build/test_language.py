"""Dockerfiles as stages of instructions, and what is refused before a build begins."""

from __future__ import annotations

import pytest

from engine.build.language import absolute, find_stage, parse_dockerfile, parse_trigger
from shoal.errors import InvalidArgument

WHOLE = b"""# syntax=docker/dockerfile:1
ARG BASE=busybox
ARG EMPTY
FROM ${BASE} AS Build
ENV A=1 B="x y"
ENV old style value
run echo one \\
  # a comment in between
  two
RUN ["a", "b c"]
FROM scratch
COPY --from=build --chown=1:2 a "b c" /to/
HEALTHCHECK --interval=5s CMD true
RUN <<EOF
echo $A
EOF
"""


def test_stages_instructions_flags_and_here_documents():
    found = parse_dockerfile(WHOLE)
    assert found.metas == (("BASE", "busybox"), ("EMPTY", None))
    first, second = found.stages
    assert (first.base, first.name) == ("${BASE}", "build")
    assert [one.args for one in first.steps] == [
        ("A", "1", "B", '"x y"'), ("old", "style value"), ("echo one   two",), ("a", "b c"),
    ]  # fmt: skip
    assert first.steps[2].text == "RUN echo one   two"
    assert [one.json for one in first.steps] == [False, False, False, True]
    copy, check, run = second.steps
    assert copy.flags == {"from": "build", "chown": "1:2"}
    assert (check.flags, check.rest) == ({"interval": "5s"}, "--interval=5s CMD true")
    (document,) = run.heredocs
    assert (document.name, document.content, document.expands) == ("EOF", "echo $A\n", True)


def test_targets_by_name_and_number():
    found = parse_dockerfile(b"FROM a AS one\nFROM b AS two\nFROM c\n")
    assert len(found.until("")) == 3
    assert len(found.until("ONE")) == 1
    assert len(found.until("1")) == 2
    assert find_stage(found.stages, "3") is None
    with pytest.raises(InvalidArgument, match="failed to reach build target nine in Dockerfile"):
        found.until("nine")


BAD = {
    "": r"the Dockerfile \(Dockerfile\) cannot be empty",
    "# nothing\n": "cannot be empty",
    "BADINSTR x\n": "^dockerfile parse error line 1: unknown instruction: BADINSTR$",
    "RUN x\n": "no build stage in current context",
    "ARG A\n": "no build stage in current context",
    "FROM a b\n": "line 1: FROM requires either one or three arguments",
    "FROM a AS 1x\n": "invalid name for build stage",
    "FROM a\nCOPY x\n": "line 2: COPY requires at least two arguments, but only one was provided",
    "FROM a\nCOPY --nope=1 x y\n": "unknown flag: --nope",
    "FROM a\nCOPY --from x y\n": "missing a value on flag: from",
    "FROM a\nRUN --mount=type=cache x\n": "the --mount option requires BuildKit",
    "FROM a\nCOPY --chmod=1 x y\n": "the --chmod option requires BuildKit",
    "FROM a\nSHELL sh -c\n": "SHELL requires the arguments to be in JSON form",
    "FROM a\nONBUILD FROM b\n": "FROM isn't allowed as an ONBUILD trigger",
    "FROM a\nONBUILD ONBUILD RUN x\n": "Chaining ONBUILD",
    "FROM a\nONBUILD COPY x\n": "COPY requires at least two arguments",
    "FROM a\nENV A\n": "ENV must have two arguments",
    "FROM a\nLABEL A=1 B\n": 'Syntax error - can\'t find = in "B"',
    "FROM a\nUSER\n": "USER requires exactly one argument",
    "FROM a\nRUN\n": "RUN requires at least one argument",
    "FROM a\nRUN <<EOF\nx\n": "unterminated heredoc",
}


@pytest.mark.parametrize("text", BAD)
def test_what_is_refused(text):
    with pytest.raises(InvalidArgument, match=BAD[text]):
        parse_dockerfile(text.encode())


def test_a_trigger_is_one_instruction():
    assert parse_trigger("RUN echo x").args == ("echo x",)
    for text in ("FROM x", "RUN a\nRUN b"):
        with pytest.raises(InvalidArgument, match="is not one instruction"):
            parse_trigger(text)


@pytest.mark.parametrize(
    ("path", "working_dir", "meant"),
    [
        ("a", "", "/a"), ("a/", "/w", "/w/a/"), ("/a", "/w", "/a"), (".", "/w", "/w/"),
        ("../x", "/w/y", "/w/x"), ("../../..", "/w", "/"), ("/", "/w", "/"), ("//a", "", "/a"),
    ],
)  # fmt: skip
def test_paths_of_an_image(path, working_dir, meant):
    assert absolute(path, working_dir) == meant
