"""What instructions make of a configuration, variables, arguments, and equal steps."""

from __future__ import annotations

import pytest

from engine.build import configuration
from engine.build.arguments import Arguments, StageArguments
from engine.build.expansion import expand
from engine.build.language import parse_dockerfile
from engine.build.probing import Made, find_equal
from shoal.errors import InvalidArgument


def after(*lines: str, config=None):
    """The configuration after some lines, and the last one's summary."""
    result, told, cmd = config or {}, "", False
    text = "\n".join(("FROM x", *lines)).encode()
    for written in parse_dockerfile(text).stages[0].steps:
        one = expand(written, configuration.environment(result), "\\")
        result = configuration.changed(result, one, cmd_is_set=cmd)
        cmd = cmd or one.name == "CMD"
        told = configuration.summary(one, result)
    return result, told


def test_environment_sees_the_state_before_its_line():
    config, told = after("ENV A=1", "ENV A=2 B=$A", "ENV C ${B}-${NONE:-x}", "ENV A=3")
    assert config["Env"] == ["A=3", "B=1", "C=1-x"]
    assert told == " ENV A=3"


def test_entrypoint_forgets_the_base_command_but_not_the_stage_s():
    base = {"Cmd": ["old"]}
    assert after('ENTRYPOINT ["/e"]', config=base)[0]["Cmd"] is None
    config, told = after("CMD run", 'ENTRYPOINT ["/e", "x y"]', config=base)
    assert config["Cmd"] == ["/bin/sh", "-c", "run"]
    assert told == ' ENTRYPOINT ["/e" "x y"]'


def test_shells_directories_ports_volumes_and_checks():
    config, _ = after(
        'SHELL ["/bin/ash", "-c"]', "CMD x", "WORKDIR /a", "WORKDIR b/../c", "ENV P=81",
        "EXPOSE 80 $P/udp", 'VOLUME ["/v"]', "VOLUME /w /x", "USER 1:2", "STOPSIGNAL SIGINT",
        "HEALTHCHECK --retries=3 CMD true", "LABEL a=$P 'b'=\"c d\"", "ONBUILD RUN y", "ARG Z=1",
    )  # fmt: skip
    assert config["Cmd"] == ["/bin/ash", "-c", "x"]
    assert config["WorkingDir"] == "/a/c"
    assert list(config["ExposedPorts"]) == ["80/tcp", "81/udp"]
    assert list(config["Volumes"]) == ["/v", "/w", "/x"]
    assert (config["User"], config["StopSignal"]) == ("1:2", "SIGINT")
    assert config["Healthcheck"]["Test"] == ["CMD-SHELL", "true"]
    assert config["Labels"] == {"a": "81", "b": "c d"}
    assert config["OnBuild"] == ["RUN y"]


@pytest.mark.parametrize("line", ["EXPOSE 0", "EXPOSE x", "STOPSIGNAL no-signal", "HEALTHCHECK X"])
def test_what_is_refused_names_its_instruction(line):
    with pytest.raises(InvalidArgument, match=f"^{line.split()[0]} failed: "):
        after(line)


def test_a_stage_begins_with_a_path_and_without_triggers():
    config, triggers = configuration.from_base({"OnBuild": ["RUN x"], "Env": ["A=1"], "Odd": 7})
    assert triggers == ("RUN x",)
    assert config == {"Env": ["A=1", configuration.DEFAULT_PATH], "Odd": 7}
    assert configuration.from_base({"Env": ["PATH=/p"]})[0] == {"Env": ["PATH=/p"]}


def test_arguments_are_seen_where_they_are_declared():
    build = Arguments({"A": "given", "M": "meta given", "http_proxy": "p", "X": "1", "N": None})
    build.declare_meta("M", "default")
    build.declare_meta("K", "kept")
    stage = StageArguments(build)
    assert stage.visible() == {"http_proxy": "p"}
    stage.declare([("A", "default"), ("B", "b"), ("C", None), ("K", None), ("M", None)])
    assert stage.visible() == {
        "http_proxy": "p", "A": "given", "B": "b", "K": "kept", "M": "meta given",
    }  # fmt: skip
    env, shown = stage.for_run({"B": "of the image"})
    assert env == ["A=given", "K=kept", "M=meta given", "http_proxy=p"]
    assert shown == ["A=given", "K=kept", "M=meta given"]
    assert build.unused() == ["X"]


def test_equal_steps_are_found_and_the_newest_counts():
    made = [
        Made("1", "2026-01-01", {"Env": ["A=1"], "Cmd": None}, "RUN x"),
        Made("2", "2026-01-02", {"Env": ["A=1"], "Labels": {}}, "RUN x"),
        Made("3", "2026-01-03", {"Env": ["A=2"]}, "RUN x"),
    ]
    assert find_equal(made, {"Env": ["A=1"]}, "RUN x") == "2"
    assert find_equal(made, {"Env": ["A=1"]}, "RUN y") is None
    assert find_equal(made, {"Env": ["A=1"], "User": "u"}, "RUN x") is None
