"""The query of a build: each parameter is honoured or refused by name."""

from __future__ import annotations

from urllib.parse import urlencode

import pytest

from engine.build.output import Output
from engine.build.request import read_request
from engine.http.query import Query
from shoal.errors import SwarmError


def read(**parameters):
    return read_request(Query(urlencode(parameters, doseq=True)))


def test_what_the_command_line_sends():
    request = read(
        t=["a:1", "b"], buildargs='{"A":"1","B":null}', labels='{"l":"x"}', rm="0", nocache="1",
        memory="67108864", cpusetcpus="0", shmsize="1048576", networkmode="none", version="1",
        extrahosts=["h:1.1.1.1"], target="t", q="1", cachefrom='["c"]',
        ulimits='[{"Name":"nofile","Hard":10,"Soft":9}]',
    )  # fmt: skip
    assert [tag.familiar() for tag in request.tags] == ["a:1", "b"]
    assert request.build_args == {"A": "1", "B": None}
    assert request.limits == {
        "memory_bytes": 67108864, "cpuset_cpus": "0", "shm_size_bytes": 1048576,
    }  # fmt: skip
    assert (request.remove, request.no_cache, request.quiet) == (False, True, True)
    assert request.ulimits[0].hard == 10
    assert read().remove
    assert read(rm="0", forcerm="1").remove


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"version": "2"}, "version: this node speaks the classic builder"),
        ({"remote": "http://x"}, "remote: "),
        ({"squash": "1"}, "squash"),
        ({"isolation": "hyperv"}, "isolation: 'hyperv'"),
        ({"outputs": "[]"}, "outputs: needs BuildKit"),
        ({"buildargs": "[1]"}, "buildargs: "),
        ({"t": "A B"}, "reference"),
        ({"t": "a@sha256:" + "0" * 64}, "cannot contain a digest"),
    ],
)
def test_what_is_refused(parameters, said):
    with pytest.raises(SwarmError, match=said):
        read(**parameters)


async def test_a_quiet_build_says_its_id_or_all_it_held_back():
    told = []

    async def put(value):
        told.append(value)

    quiet = Output(put, quiet=True)
    await quiet.line("Step 1/1 : FROM x")
    await quiet.done("sha256:" + "a" * 64)
    assert told == [{"stream": f"sha256:{'a' * 64}\n"}]
    told.clear()
    failing = Output(put, quiet=True)
    await failing.line("Step 1/1 : FROM x")
    await failing.failed()
    assert told == [{"stream": "Step 1/1 : FROM x\n"}]


async def test_a_command_s_output_may_cut_a_character_in_two():
    told = []

    async def put(value):
        told.append(value["stream"])

    output = Output(put)
    whole = "é".encode()
    await output.command_wrote(1, whole[:1])
    await output.command_wrote(2, b"err")
    await output.command_wrote(1, whole[1:])
    assert told == ["err", "é"]
