"""Networks on the command line: grammars, requests that arrive, and what is printed."""

from __future__ import annotations

import json

import pytest

from shoal.api.v1 import control_pb2
from shoal.errors import InvalidArgument
from shoal.model.enums import EndpointMode
from shoal.model.objects import Network, Task
from shoal.model.specs import NetworkAttachmentSpec, NetworkSpec, ServiceSpec, TaskSpec
from shoal.model.types import (
    Annotations,
    Driver,
    Endpoint,
    IpamConfig,
    IpamOptions,
    NetworkAttachment,
    NetworkAttachmentConfig,
    VirtualIp,
)
from shoal.wire.objects import from_pb
from swarmctl.parsing.networks import parse_network, subnet_configs
from tests.unit.swarmctl.conftest import run
from tests.unit.swarmctl.rows import NODE_A, meta
from tests.unit.swarmctl.test_commands import create, last

MTU = "com.docker.network.driver.mtu"


def put_networks(daemon, *names: str) -> None:
    for number, name in enumerate(names, start=1):
        subnet = f"10.0.{number}.0/24"
        network = Network(
            id=f"net{name}{number:021d}",
            meta=meta(number),
            spec=NetworkSpec(annotations=Annotations(name, {"tier": name})),
            driver_state=Driver("overlay", {"vni": str(4095 + number)}),
            ipam=IpamOptions(configs=(IpamConfig(subnet, gateway=f"10.0.{number}.1"),)),
        )
        daemon.state.networks[network.id] = network


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("blue", NetworkAttachmentConfig("blue")),
        ("name=blue", NetworkAttachmentConfig("blue")),
        ("alias=a,name=blue,alias=b", NetworkAttachmentConfig("blue", ("a", "b"))),
        (
            "name=n,ip=10.1.0.9,ip=fd00::9",
            NetworkAttachmentConfig("n", (), ("10.1.0.9", "fd00::9")),
        ),
        ("name=n,driver-opt=k=v", NetworkAttachmentConfig("n", driver_options={"k": "v"})),
    ],
)
def test_networks_of_services(text, network):
    assert parse_network(text) == network


@pytest.mark.parametrize("text", ["", "alias=a", "name=", "name=n,driver-opt=k", "name=n,ip="])
def test_networks_that_say_nothing_are_refused(text):
    with pytest.raises(InvalidArgument):
        parse_network(text)


def test_each_address_goes_to_the_subnet_it_lies_in():
    assert subnet_configs(
        ["10.1.0.0/16", "fd00::/64"],
        ["fd00::9", "10.1.0.9"],
        ["10.1.4.0/24"],
        {"router": "10.1.0.7"},
    ) == (
        IpamConfig("10.1.0.0/16", "10.1.4.0/24", "10.1.0.9", {"router": "10.1.0.7"}),
        IpamConfig("fd00::/64", gateway="fd00::9"),
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((["10.1.0.0/16", "10.1.2.0/24"], [], [], {}), "overlaps another one"),
        ((["10.1.0.0/16"], ["10.2.0.1"], [], {}), "give the --subnet it lies in"),
        (([], [], ["10.1.4.0/24"], {}), "give the --subnet it lies in"),
        ((["10.1.0.0/16"], ["10.1.0.1", "10.1.0.2"], [], {}), "has another one already"),
        ((["10.1"], [], [], {}), "write ADDRESS/LENGTH"),
        ((["10.1.0.0/16"], ["one"], [], {}), "not an IP address"),
    ],
)
def test_addresses_that_fit_nowhere_are_refused(arguments, text):
    with pytest.raises(InvalidArgument, match=text):
        subnet_configs(*arguments)


def test_network_create_carries_every_flag(daemon):
    result = run(
        "network", "create", "--subnet", "10.1.0.0/16", "--gateway", "10.1.0.9",
        "--ip-range", "10.1.4.0/24", "--aux-address", "router=10.1.0.7", "--ipv6", "--internal",
        "--attachable", "-o", f"{MTU}=1400", "--label", "tier=db", "blue", host=daemon.address,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    request = last(daemon, control_pb2.CreateNetworkRequest)
    config = IpamConfig("10.1.0.0/16", "10.1.4.0/24", "10.1.0.9", {"router": "10.1.0.7"})
    assert from_pb(request.spec, NetworkSpec) == NetworkSpec(
        annotations=Annotations("blue", {"tier": "db"}),
        driver=Driver("overlay", {MTU: "1400"}),
        ipv6_enabled=True,
        internal=True,
        attachable=True,
        ipam=IpamOptions(driver=Driver("default"), configs=(config,)),
    )
    assert result.output.strip() in daemon.state.networks


def test_what_is_refused_reaches_the_managers_who_say_why(daemon):
    run(
        "network", "create", "-d", "bridge", "--config-only", "--config-from", "x", "--ingress",
        "--ipam-driver", "dhcp", "--ipam-opt", "a=b", "n", host=daemon.address,
    )  # fmt: skip
    spec = from_pb(last(daemon, control_pb2.CreateNetworkRequest).spec, NetworkSpec)
    assert (spec.driver, spec.config_only, spec.config_from) == (Driver("bridge"), True, "x")
    assert (spec.ingress, spec.ipam.driver) == (True, Driver("dhcp", {"a": "b"}))


def test_network_ls(daemon):
    put_networks(daemon, "red", "blue")
    result = run("network", "ls", "--filter", "driver=overlay", host=daemon.address)
    assert [line.split() for line in result.output.splitlines()] == [
        ["NETWORK", "ID", "NAME", "DRIVER", "SCOPE"],
        ["netblue00000", "blue", "overlay", "swarm"],
        ["netred000000", "red", "overlay", "swarm"],
    ]
    assert list(last(daemon, control_pb2.ListNetworksRequest).filters.drivers) == ["overlay"]
    result = run(
        "network", "ls", "--format", "{{.Name}} {{.Labels}} {{.IPv6}}", host=daemon.address
    )
    assert result.output == "blue tier=blue false\nred tier=red false\n"


def test_network_inspect(daemon):
    put_networks(daemon, "red")
    (network,) = json.loads(run("network", "inspect", "red", host=daemon.address).output)
    assert network["IPAM"]["Config"] == [{"Subnet": "10.0.1.0/24", "Gateway": "10.0.1.1"}]
    assert (network["Name"], network["Scope"], network["Driver"]) == ("red", "swarm", "overlay")
    assert network["Options"] == {"vni": "4096"}
    assert not {"Services", "Containers", "Peers"} & network.keys()


def test_network_inspect_verbose_shows_who_is_on_it(daemon):
    put_networks(daemon, "red")
    (network_id,) = daemon.state.networks
    create(daemon, "--network", "red")
    (service,) = daemon.state.services.values()
    task_spec = service.spec.task.replaced(networks=(NetworkAttachmentConfig(network_id),))
    daemon.state.services[service.id] = service.replaced(
        spec=service.spec.replaced(task=task_spec),
        endpoint=Endpoint(virtual_ips=(VirtualIp(network_id, "10.0.1.2/24"),)),
    )
    for number, task in enumerate(list(daemon.state.tasks.values()), start=3):
        attached = (NetworkAttachment(network_id, (f"10.0.1.{number}/24",)),)
        daemon.state.tasks[task.id] = task.replaced(networks=attached)
    box = Task(
        id="a" * 25, node_id=NODE_A, annotations=Annotations("box"),
        spec=TaskSpec(runtime=NetworkAttachmentSpec(container_id="c" * 64)),
        networks=(NetworkAttachment(network_id, ("10.0.1.9/24", "fd00::9/64")),),
    )  # fmt: skip
    daemon.state.tasks[box.id] = box
    result = run("network", "inspect", "--verbose", "red", host=daemon.address)
    (shown,) = json.loads(result.output)
    assert shown["Containers"]["c" * 64] == {
        "Name": "box", "EndpointID": "a" * 25, "Node": "alpha",
        "IPv4Address": "10.0.1.9/24", "IPv6Address": "fd00::9/64",
    }  # fmt: skip
    peer = next(one for one in shown["Peers"] if one["Name"] == "alpha")
    assert (peer["Version"], peer["Behind"]) == (7, 2)
    web = json.loads(result.output)[0]["Services"]["web"]
    assert web["VIP"] == "10.0.1.2"
    assert [task["EndpointIP"] for task in web["Tasks"]] == ["10.0.1.3", "10.0.1.4"]

    pretty = run("service", "inspect", "--pretty", "web", host=daemon.address)
    assert f"Networks:\n {network_id}\t10.0.1.2/24\n" in pretty.output


def test_network_rm_goes_on_after_a_failure(daemon):
    put_networks(daemon, "red", "blue")
    result = run("network", "rm", "red", "green", "blue", host=daemon.address)
    assert result.exit_code != 0
    assert result.output.splitlines()[:2] == ["red", "blue"]
    assert "network green not found" in result.output
    assert run("network", "rm", "--force", "green", host=daemon.address).exit_code == 0


def test_services_join_and_leave_networks_by_name(daemon):
    put_networks(daemon, "red", "blue")
    blue, red = sorted(daemon.state.networks)
    create(daemon, "--network", "name=red,alias=db", "--endpoint-mode", "dnsrr")
    spec = from_pb(last(daemon, control_pb2.CreateServiceRequest).spec, ServiceSpec)
    assert spec.task.networks == (NetworkAttachmentConfig("red", ("db",)),)
    assert spec.endpoint.mode is EndpointMode.DNSRR

    (service,) = daemon.state.services.values()  # managers store ids
    stored = (NetworkAttachmentConfig(red, ("db",)), NetworkAttachmentConfig("gone"))
    task = service.spec.task.replaced(networks=stored)
    daemon.state.services[service.id] = service.replaced(spec=service.spec.replaced(task=task))
    result = run(
        "service", "update", "-d", "--network-rm", "red", "--network-rm", "gone",
        "--network-add", "blue", "--endpoint-mode", "vip", "web", host=daemon.address,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    spec = from_pb(last(daemon, control_pb2.UpdateServiceRequest).spec, ServiceSpec)
    assert spec.task.networks == (NetworkAttachmentConfig(blue),)
    assert spec.endpoint.mode is EndpointMode.VIP
    result = run("service", "update", "--network-add", "no", "web", host=daemon.address)
    assert "network no not found" in result.output
