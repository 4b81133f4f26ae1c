"""Rows, tables, times and inspect texts; larger outputs against golden files.

`SHOAL_UPDATE_GOLDEN=1` writes the files anew; read the difference before committing it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.clock import NS_PER_S
from shoal.docker.objects import ServiceCounts, node_json, service_json, task_json
from shoal.docker.words import timestamp
from shoal.errors import InvalidArgument
from shoal.model.enums import PortProtocol, PublishMode, TaskState
from shoal.model.types import PortConfig
from swarmctl.output import objects_text, rows_text
from swarmctl.render import times
from swarmctl.render.loglines import LogStyle, format_line
from swarmctl.render.pretty import node_text, service_text
from swarmctl.render.rows import (
    IMAGE_COLUMNS,
    NODE_COLUMNS,
    SERVICE_COLUMNS,
    TASK_COLUMNS,
    image_rows,
    newest_first,
    node_row,
    ports,
    service_row,
    slot_key,
    split_name,
    task_name,
    task_row,
)
from swarmctl.render.tables import align, display_width, ellipsis, one_line
from swarmctl.types import Image, ImageConfig, LogLine, ServiceEntry
from tests.unit.swarmctl.rows import (
    NODE_A,
    NOW_NS,
    a_full_service,
    a_node,
    a_service,
    a_task,
    a_worker,
)

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("SHOAL_UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def history():
    tasks = [
        a_task(1),
        a_task(1, TaskState.FAILED, task_id="old1", age_s=4000, desired=TaskState.SHUTDOWN,
               error="task: non-zero exit (1): and a long explanation"),
        a_task(2, TaskState.PENDING, node_id="", age_s=5, error="no suitable node"),
    ]  # fmt: skip
    rows, last = [], None
    for task in newest_first(tasks):
        rows.append(
            task_row(
                task,
                name=task_name(task),
                node="alpha" if task.node_id else "",
                now_ns=NOW_NS,
                previous=slot_key(task) == last,
            )
        )
        last = slot_key(task)
    return rows


def test_node_ls():
    rows = [node_row(node, NODE_A) for node in (a_node(), a_worker())]
    golden("node_ls.txt", rows_text(rows, columns=NODE_COLUMNS))


def test_service_ls():
    entries = [
        ServiceEntry(a_full_service(), ServiceCounts(3, 4, 0)),
        ServiceEntry(a_service(), ServiceCounts(2, 2, 0)),
    ]
    rows = [service_row(entry) for entry in entries]
    golden("service_ls.txt", rows_text(rows, columns=SERVICE_COLUMNS))


def test_service_ps():
    golden("service_ps.txt", rows_text(history(), columns=TASK_COLUMNS))


def test_service_inspect():
    entry = service_json(a_full_service(), ServiceCounts(3, 4, 0))
    golden("service_inspect.json", objects_text([entry]))


def test_service_inspect_pretty():
    golden("service_inspect_pretty.txt", service_text(a_full_service(), NOW_NS))


def test_plain_service_inspect():
    golden("service_inspect_plain.json", objects_text([service_json(a_service())]))


def test_node_inspect():
    golden("node_inspect.json", objects_text([node_json(a_node()), node_json(a_worker())]))


def test_node_inspect_pretty():
    golden("node_inspect_pretty.txt", node_text(a_node()) + "\n" + node_text(a_worker()))


def test_task_inspect():
    golden("task_inspect.json", objects_text([task_json(a_task())]))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{.Spec.Name}}", "web"),
        ("{{.Spec.Mode.Replicated.Replicas}}", "4"),
        ("{{.Spec.Mode.Global}}", "<no value>"),
        ("{{range .Endpoint.Ports}}{{.PublishedPort}} {{end}}", "8080 8081 5353 "),
        ("{{.UpdateStatus.State}}", "completed"),
        ("{{index .Spec.Labels \"app\"}}", "shop"),
        ("{{.Spec.TaskTemplate.ContainerSpec.StopGracePeriod}}", "3000000000"),
        ("{{(index .Spec.TaskTemplate.ContainerSpec.Mounts 0).Source}}", "/data"),
        ("{{.Spec.TaskTemplate.RestartPolicy.Condition}}", "on-failure"),
        ("{{.Version.Index}}", "20"),
    ],
)  # fmt: skip
def test_templates_over_a_service(template, expected):
    assert objects_text([service_json(a_full_service())], template) == expected + "\n"


def test_absent_fields_are_known_but_wrong_ones_are_not():
    plain = service_json(a_service())
    assert objects_text([plain], "{{if .UpdateStatus}}x{{end}}{{range .Endpoint.Ports}}y{{end}}")
    with pytest.raises(InvalidArgument, match="no field Nmae"):
        objects_text([plain], "{{.Spec.Nmae}}")


def test_every_inspect_is_json():
    text = objects_text([service_json(a_full_service())], "json")
    assert json.loads(text)["Spec"]["Name"] == "web"
    assert text.count("\n") == 1


def test_list_formats():
    rows = [node_row(a_node(), NODE_A)]
    columns = NODE_COLUMNS
    assert rows_text(rows, columns=columns, quiet=True) == f"{NODE_A}\n"
    assert rows_text(rows, columns=columns, template="{{.Hostname}}") == "alpha\n"
    table = rows_text(rows, columns=columns, template=r"table {{.Hostname}}\t{{.Self}}")
    assert table == "HOSTNAME   SELF\nalpha      true\n"
    assert json.loads(rows_text(rows, columns=columns, template="json"))["ManagerStatus"] == (
        "Leader"
    )
    assert rows_text([], columns=columns, template="table {{.Address}}") == "ADDRESS\n"
    assert rows_text([], columns=columns, template="json") == ""


def test_images():
    config = ImageConfig(
        env=(), command=(), entrypoint=(), user="", working_dir="", stop_signal="",
        exposed_ports=(), labels={},
    )  # fmt: skip
    image = Image(
        id="sha256:" + "0123456789abcdef" * 4,
        names=("registry.test:5000/web:1", "web:latest"),
        digest="",
        created_at_ns=NOW_NS - 3 * 86_400 * NS_PER_S,
        size_bytes=1_990_000,
        architecture="amd64",
        os="linux",
        config=config,
    )
    rows = image_rows(image, now_ns=NOW_NS)
    golden("image_ls.txt", rows_text(rows, columns=IMAGE_COLUMNS))
    assert split_name("") == ("<none>", "<none>")
    assert split_name("a.test:5000/b") == ("a.test:5000/b", "<none>")


def test_neighbouring_ports_become_a_range():
    configs = [PortConfig(published_port=8080 + i, target_port=80 + i) for i in range(3)]
    configs.append(PortConfig(published_port=8083, target_port=90))
    configs.append(PortConfig(published_port=53, target_port=53, protocol=PortProtocol.UDP))
    configs.append(PortConfig(published_port=1, target_port=1, publish_mode=PublishMode.HOST))
    configs += [
        PortConfig(published_port=8083 + i, target_port=83 + i, address="2001:db8::1")
        for i in range(2)
    ]
    configs.append(PortConfig(published_port=8085, target_port=85, interface="eth1"))
    *everywhere, at_address, at_interface = ports(configs)
    assert (at_address, at_interface) == ("[2001:db8::1]:8083-8084->83-84/tcp", "eth1:8085->85/tcp")
    assert everywhere == ["*:8080-8082->80-82/tcp", "*:8083->90/tcp", "*:53->53/udp"]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.5, "Less than a second"), (1, "1 second"), (59, "59 seconds"), (60, "About a minute"),
        (119, "About a minute"), (120, "2 minutes"), (3599, "59 minutes"), (3600, "About an hour"),
        (7200, "2 hours"), (47 * 3600, "47 hours"), (48 * 3600, "2 days"), (20 * 86_400, "2 weeks"),
        (90 * 86_400, "3 months"), (800 * 86_400, "2 years"), (-5, "Less than a second"),
    ],
)  # fmt: skip
def test_distances_in_words(seconds, expected):
    assert times.distance(int(seconds * NS_PER_S)) == expected


@given(st.integers(min_value=0, max_value=4_000_000_000 * NS_PER_S))
def test_printed_times_read_back(time_ns):
    fraction_ns = time_ns % 1000  # Python's own parser knows microseconds only
    text = times.padded_timestamp(time_ns)
    assert abs(times.parse_since(text, 0) - (time_ns - fraction_ns)) <= 1000
    short = timestamp(time_ns)
    assert abs(times.parse_since(short, 0) - (time_ns - fraction_ns)) <= 1000
    assert not short.endswith(("0Z", ".Z")) or "." not in short


def test_since():
    now = 1_000 * NS_PER_S
    assert times.parse_since("10s", now) == 990 * NS_PER_S
    assert times.parse_since("12.5", now) == 12_500_000_000
    assert times.parse_since("1970-01-01T00:00:07Z", now) == 7 * NS_PER_S
    assert times.parse_since("1970-01-01T00:00:07+00:00", now) == 7 * NS_PER_S
    assert times.parse_since("1970-01-02", now) == 86_400 * NS_PER_S
    with pytest.raises(InvalidArgument):
        times.parse_since("yesterday", now)


def test_cells_are_cut_and_cleaned():
    assert ellipsis("abcdef", 4) == "abc…"
    assert ellipsis("abcd", 4) == "abcd"
    assert one_line("a\n\x1b[31mb") == "a  [31mb"
    assert display_width("日本e\u0301") == 5


@given(st.lists(st.lists(st.text(alphabet="ab日 ", max_size=12), min_size=3, max_size=3)))
def test_columns_start_at_the_same_place(rows):
    lines = align("\t".join(row) for row in rows).splitlines()
    for row, line in zip(rows, lines, strict=True):
        assert line.endswith(row[-1])
        assert line.startswith(row[0])
    assert len({display_width(line) - display_width(row[-1])
                for row, line in zip(rows, lines, strict=True)}) <= 1  # fmt: skip


LINE = LogLine(
    service_id="svc", node_id=NODE_A, task_id=a_task().id, timestamp_ns=5, is_stderr=False,
    data=b"hello",
)  # fmt: skip


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        (LogStyle(), b"web.1.task00000000@alpha    | hello\n"),
        (LogStyle(trunc=False), f"web.1.{LINE.task_id}@alpha    | hello\n".encode()),
        (LogStyle(task_ids=False), b"web.1@alpha    | hello\n"),
        (LogStyle(resolve=False), f"svc.1.task00000000@{NODE_A}    | hello\n".encode()),
        (LogStyle(raw=True), b"hello\n"),
        (LogStyle(raw=True, timestamps=True), b"1970-01-01T00:00:00.000000005Z hello\n"),
    ],
)
def test_log_lines(style, expected):
    tasks, nodes = {LINE.task_id: a_task()}, {NODE_A: "alpha"}
    assert format_line(LINE, style, tasks=tasks, nodes=nodes) == expected


def test_log_lines_of_unknown_tasks_carry_ids():
    assert format_line(LINE, LogStyle(), tasks={}, nodes={}) == (
        f"svc.task00000000@{NODE_A}    | hello\n".encode()
    )


def test_details_stand_before_the_text():
    line = msgspec.structs.replace(LINE, details="A=1,zone=b")
    assert format_line(line, LogStyle(raw=True), tasks={}, nodes={}) == b"A=1,zone=b hello\n"
    shown = format_line(line, LogStyle(timestamps=True), tasks={}, nodes={})
    assert shown.endswith(b"    | A=1,zone=b hello\n")
