"""Ports, mounts and the smaller grammars."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import InvalidArgument
from shoal.model.enums import (
    MountPropagation,
    MountRecursive,
    MountType,
    PortProtocol,
    PublishMode,
    PublishPreference,
    PublishSource,
)
from shoal.model.types import Driver, GenericResource, Mount, PortConfig, Ulimit
from swarmctl.parsing import values
from swarmctl.parsing.fields import split_fields
from swarmctl.parsing.mounts import parse_mount
from swarmctl.parsing.ports import format_port, parse_publish, parse_targets, suggestions

PORTS = st.builds(
    PortConfig,
    protocol=st.sampled_from([PortProtocol.TCP, PortProtocol.UDP]),
    target_port=st.integers(1, 65_535),
    published_port=st.integers(0, 65_535),
    publish_mode=st.sampled_from(PublishMode),
    sticky=st.booleans(),
    source=st.sampled_from(PublishSource),
    prefer=st.sampled_from(PublishPreference),
    address=st.sampled_from(["", "192.0.2.1", "2001:db8::1"]),
    interface=st.sampled_from(["", "eth1", "br-1.20"]),
    weight_label=st.sampled_from(["", "size", "a.b"]),
)


@given(PORTS)
def test_a_printed_port_reads_back(port):
    assert parse_publish(format_port(port)) == (port,)


@given(st.integers(1, 65_000), st.integers(1, 65_000), st.integers(0, 500))
def test_ranges_pair_up(published, target, length):
    text = f"{published}-{published + length}:{target}-{target + length}"
    assert parse_publish(text) == tuple(
        PortConfig(published_port=published + i, target_port=target + i) for i in range(length + 1)
    )


@given(st.text(alphabet="0123456789:-/=,tcpudhostargemblis[]. ", max_size=24))
def test_any_text_is_a_port_or_refused(text):
    try:
        ports = parse_publish(text)
    except InvalidArgument:
        return
    assert all(1 <= port.target_port <= 65_535 for port in ports)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("80", [PortConfig(target_port=80)]),
        ("8080:80", [PortConfig(published_port=8080, target_port=80)]),
        (
            "53:53/udp",
            [PortConfig(published_port=53, target_port=53, protocol=PortProtocol.UDP)],
        ),
        (
            "3868:3868/sctp",
            [PortConfig(published_port=3868, target_port=3868, protocol=PortProtocol.SCTP)],
        ),
        (
            "8080-8081:80",
            [PortConfig(published_port=p, target_port=80) for p in (8080, 8081)],
        ),
        ("80-81", [PortConfig(target_port=80), PortConfig(target_port=81)]),
        (
            "published=8080,target=80,sticky=true",
            [PortConfig(published_port=8080, target_port=80, sticky=True)],
        ),
        ("target=80,sticky=false", [PortConfig(target_port=80)]),
        (
            "target=80,source=node,prefer=local",
            [PortConfig(target_port=80, source=PublishSource.NODE, prefer=PublishPreference.LOCAL)],
        ),
        ("target=80,source=client,prefer=any", [PortConfig(target_port=80)]),
        (
            "192.0.2.1:8080-8081:80-81/udp",
            [
                PortConfig(
                    address="192.0.2.1",
                    published_port=8080 + number,
                    target_port=80 + number,
                    protocol=PortProtocol.UDP,
                )
                for number in (0, 1)
            ],
        ),
        ("127.0.0.1::80", [PortConfig(address="127.0.0.1", target_port=80)]),
        (
            "[2001:DB8::1]:8080:80",
            [PortConfig(address="2001:db8::1", published_port=8080, target_port=80)],
        ),
        ("0.0.0.0:8080:80", [PortConfig(published_port=8080, target_port=80)]),
        ("[::]:8080:80", [PortConfig(published_port=8080, target_port=80)]),
        ("target=80,host_ip=192.0.2.1", [PortConfig(address="192.0.2.1", target_port=80)]),
        ("target=80,weight=node.labels.size", [PortConfig(weight_label="size", target_port=80)]),
        ("target=80,interface=eth1.20", [PortConfig(interface="eth1.20", target_port=80)]),
        (
            "published=8080,target=80,mode=host,protocol=udp",
            [
                PortConfig(
                    published_port=8080,
                    target_port=80,
                    publish_mode=PublishMode.HOST,
                    protocol=PortProtocol.UDP,
                )
            ],
        ),
    ],
)
def test_ports(text, expected):
    assert list(parse_publish(text)) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not a port"),
        ("0", "target port"),
        ("70000", "not a port"),
        ("x:80", "not a port"),
        ("80:", "not a port"),
        ("::1:80:80", "in brackets"),
        ("web:80:80", "invalid IP address: web"),
        ("[::1:80:80", "invalid IP address"),
        ("192.0.2.1::", "not a port"),
        (":80", "not a port"),
        ("target=80,ip=web", "invalid IP address: web"),
        ("target=80,weight=3", "must be a label of nodes, as in node.labels"),
        ("target=80,weight=node.labels.", "must be a label of nodes"),
        ("80/dccp", "tcp or udp or sctp"),
        ("81-80", "ends before"),
        (
            "1-2:3-5",
            "^invalid ranges specified for container and host Ports: 3-5 and 1-2: .* equally long",
        ),
        ("1:3-5", "^invalid ranges specified for container and host Ports: 3-5 and 1:"),
        ("published=8080-8085,target=80", r"^invalid published port \(8080-8085\): .* integer"),
        ("published=8080,target=80-85", r"^invalid target port \(80-85\): .* short form"),
        ("published=70000,target=80", "not a port from 0 to 65535"),
        ("published=80", "target is missing"),
        ("target=80,mode=vip", "ingress or host"),
        ("target=80,sticky=maybe", "sticky is true or false"),
        ("target=80,source=lb", "source 'lb' is unknown: use client or node"),
        ("target=80,prefer=near", "prefer 'near' is unknown: use any or local"),
        ("target=80,host=x", "unknown key"),
        ("target=", "needs a value"),
    ],
)
def test_no_ports(text, why):
    with pytest.raises(InvalidArgument, match=why):
        parse_publish(text)


def test_what_publish_rm_takes():
    def rm(text):
        return [(target, kind.name, mode.name) for target, kind, mode in parse_targets(text)]

    assert rm("80") == [(80, "TCP", "INGRESS")]
    assert rm("8080:80/udp") == [(80, "UDP", "INGRESS")]
    assert rm("8080-8082:80") == [(80, "TCP", "INGRESS")]
    assert rm("8080-8081:80-81") == [(80, "TCP", "INGRESS"), (81, "TCP", "INGRESS")]
    assert rm("target=80,mode=host") == [(80, "TCP", "HOST")]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("so", ["source="]),
        ("target=80,so", ["target=80,source="]),
        ("source=node,so", []),
        ("target=80,source=", ["target=80,source=client", "target=80,source=node"]),
        ("target=80,prefer=l", ["target=80,prefer=local"]),
        ("target=8", []),
        ("8080:80", []),
    ],
)
def test_what_a_port_may_go_on_with(typed, expected):
    assert suggestions(typed) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "type=bind,source=/a,target=/b",
            Mount(type=MountType.BIND, source="/a", target="/b"),
        ),
        (
            "type=bind,src=/a,dst=/b,ro",
            Mount(type=MountType.BIND, source="/a", target="/b", read_only=True),
        ),
        (
            'type=bind,"source=/a,b",destination=/b,readonly=false',
            Mount(type=MountType.BIND, source="/a,b", target="/b"),
        ),
        (
            "type=bind,src=/a,dst=/b,bind-propagation=rslave,bind-recursive=disabled",
            Mount(
                type=MountType.BIND,
                source="/a",
                target="/b",
                propagation=MountPropagation.RSLAVE,
                recursive=MountRecursive.DISABLED,
            ),
        ),
        (
            "bind-nonrecursive,type=bind,src=/a,dst=/b",
            Mount(
                type=MountType.BIND,
                source="/a",
                target="/b",
                recursive=MountRecursive.DISABLED,
            ),
        ),
        (
            "type=tmpfs,target=/t,tmpfs-size=64m,tmpfs-mode=1777",
            Mount(type=MountType.TMPFS, target="/t", tmpfs_size_bytes=64 << 20, tmpfs_mode=0o1777),
        ),
        ("target=/t", Mount(type=MountType.VOLUME, target="/t")),
        (
            "type=volume,src=v,dst=/t,ro,volume-nocopy,volume-label=a=b,volume-label=c",
            Mount(
                type=MountType.VOLUME,
                source="v",
                target="/t",
                read_only=True,
                volume_nocopy=True,
                volume_labels={"a": "b", "c": ""},
            ),
        ),
        (
            'src=v,dst=/t,volume-opt=type=nfs,"volume-opt=o=ro,addr=a",volume-driver=local',
            Mount(
                type=MountType.VOLUME,
                source="v",
                target="/t",
                volume_driver=Driver(name="local", options={"type": "nfs", "o": "ro,addr=a"}),
            ),
        ),
        (
            "src=v,dst=/t,volume-opt=type=tmpfs",
            Mount(
                type=MountType.VOLUME,
                source="v",
                target="/t",
                volume_driver=Driver(name="local", options={"type": "tmpfs"}),
            ),
        ),
    ],
)
def test_mounts(text, expected):
    assert parse_mount(text) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        ("type=cluster,source=v,target=/x", "not supported"),
        ("source=v,target=/x,volume-subpath=a", "not supported"),
        ("type=volume,source=/v,target=/x", "name of a volume"),
        ("type=volume,source=v,target=/x,tmpfs-size=1m", "no meaning for type=volume"),
        ("type=bind,source=/v,target=/x,volume-nocopy", "no meaning for type=bind"),
        ("source=v,target=/x,volume-driver=", "needs a value"),
        ("source=v", "target must be"),
        ("type=what,target=/x", "unknown type"),
        ("type=bind,source=a,target=/x", "absolute path on the node"),
        ("type=bind,source=/a,target=x", "target must be"),
        ("type=bind,source=/a,target=/x,tmpfs-size=1m", "no meaning"),
        ("type=tmpfs,source=/a,target=/x", "no meaning"),
        ("type=tmpfs,target=/x,tmpfs-mode=9", "octal"),
        ("type=tmpfs,target=/x,size=9", "unknown key"),
        ("type=bind,source=/a,target=/x,bind-propagation=up", "unknown"),
        ("type=bind,source=/a,target=/x,bind-recursive=readonly", "not supported"),
        ("type=bind,source=/a,target=/x,bind-create-src", "unknown key"),
        ("type=bind,source=/a,target=/x,ro=maybe", "true or false"),
        ('type=bind,"source=/a', "quotes"),
    ],
)
def test_no_mounts(text, why):
    with pytest.raises(InvalidArgument, match=why):
        parse_mount(text)


@given(st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True), st.text(max_size=8)))
def test_fields_with_quotes_read_back(pairs):
    if not pairs or any(set(value) & set("\r\n\0") for value in pairs.values()):
        return
    quoted = [f"{key}={value}".replace('"', '""') for key, value in pairs.items()]
    text = ",".join(f'"{field}"' for field in quoted)
    assert split_fields(text) == list(pairs.items())


def test_environment():
    assert values.parse_environment("A=1", {}) == "A=1"
    assert values.parse_environment("A=", {"A": "2"}) == "A="
    assert values.parse_environment("A", {"A": "2"}) == "A=2"
    assert values.parse_environment("A", {}) is None
    with pytest.raises(InvalidArgument):
        values.parse_environment("=1", {})


def test_environment_files():
    lines = ["# note\n", "\n", "A=1\n", "  B=two words \r\n", "C\n", "D\n"]
    assert values.parse_environment_file(lines, {"C": "3"}, name="f") == (
        "A=1",
        "B=two words ",
        "C=3",
    )
    with pytest.raises(InvalidArgument, match="line 2"):
        values.parse_environment_file(["A=1\n", "B C=2\n"], {}, name="f")


def test_hosts_are_kept_address_first():
    assert values.parse_host("db:192.0.2.7") == "192.0.2.7 db"
    assert values.parse_host("db:2001:db8::1") == "2001:db8::1 db"
    assert values.parse_host("db:[2001:db8::1]") == "2001:db8::1 db"
    for text in ("db", ":192.0.2.7", "db:host"):
        with pytest.raises(InvalidArgument):
            values.parse_host(text)


def test_ulimits():
    assert values.parse_ulimit("nofile=10:20") == Ulimit(name="nofile", soft=10, hard=20)
    assert values.parse_ulimit("nproc=10") == Ulimit(name="nproc", soft=10, hard=10)
    assert values.parse_ulimit("core=-1") == Ulimit(name="core", soft=-1, hard=-1)
    for text in ("nofile", "nofile=x", "nofile=20:10", "files=1", "nofile=-1:5"):
        with pytest.raises(InvalidArgument):
            values.parse_ulimit(text)


def test_generic_resources_are_counts():
    assert values.parse_generic_resource("gpu=2") == GenericResource(kind="gpu", count=2)
    for text in ("gpu", "gpu=0", "gpu=one", "=1"):
        with pytest.raises(InvalidArgument):
            values.parse_generic_resource(text)


def test_log_options():
    assert values.parse_log_option("max-size=10m") == ("max-size", "10m")
    assert values.parse_log_option("max-file=3") == ("max-file", "3")
    assert values.parse_log_option("tag={{.Name}}") == ("tag", "{{.Name}}")
    for text in (
        "max-size=x",
        "max-file=0",
        "colour=x",
        "max-size=0",
        "max-size=1.5m",
        "max-size=1k",
    ):
        with pytest.raises(InvalidArgument):
            values.parse_log_option(text)


def test_constraints_pass_as_written():
    for text in (
        "node.role==worker", "node.labels.a != b", "node.hostname==a=b", "node.labels.n>=16",
        "node.labels.n < 2", "node.hostname~=db-*", "node.labels.a in (b, c)",
        "node.labels.a notin (b)", "node.labels.a exists",
    ):  # fmt: skip
        assert values.parse_constraint(text) == text
    for text in (
        "node.role", "node.role=worker", "==x", "node.id==", "node.labels.a<", "node.labels.a in b",
        "node.labels.a in ()", "exists", "node.labels.a exists b",
    ):  # fmt: skip
        with pytest.raises(InvalidArgument):
            values.parse_constraint(text)


def test_preferences_and_commands():
    assert values.parse_preference("spread=node.labels.rack").spread_descriptor == (
        "node.labels.rack"
    )
    with pytest.raises(InvalidArgument):
        values.parse_preference("binpack=node.labels.rack")
    for text in (
        "spread=node.labels.rack",
        "prefer=node.labels.n>=2",
        "avoid=node.role == manager",
    ):
        assert values.preference_text(values.parse_preference(text)) == text
    for text in ("spread=", "prefer=", "avoid=node.role", "prefer=x=y"):
        with pytest.raises(InvalidArgument):
            values.parse_preference(text)
    assert values.parse_command("sh -c 'echo a b'") == ("sh", "-c", "echo a b")
    with pytest.raises(InvalidArgument):
        values.parse_command("sh 'open")
