"""What the control API takes for a network, and who keeps one from being removed."""

from __future__ import annotations

import pytest

from manager.allocator.plan import plan
from manager.controlapi import validate
from manager.controlapi.networks import create_network, remove_network, with_network_ids
from manager.controlapi.services import create_service, update_service
from manager.controlapi.validate_networks import MTU_OPTION, network_spec
from shoal.errors import FailedPrecondition, InvalidArgument, NotFound, SwarmError, Unimplemented
from shoal.model.enums import ActionKind, TaskState, UpdateOrder
from shoal.model.objects import Cluster, Service
from shoal.model.specs import (
    ContainerSpec,
    GlobalMode,
    NetworkSpec,
    ReplicatedJobMode,
    ReplicatedMode,
    TaskSpec,
)
from shoal.model.types import (
    Annotations,
    Driver,
    IpamConfig,
    IpamOptions,
    NetworkAttachment,
    NetworkAttachmentConfig,
    UpdateConfig,
)
from tests.support.planning import Cell, a_network, a_service, a_task

BAD, LATER = InvalidArgument, Unimplemented


def a_spec(**fields: object) -> NetworkSpec:
    return a_network("net").spec.replaced(**fields)


def ipam(*configs: IpamConfig, ipv6: bool = False) -> NetworkSpec:
    return a_spec(ipam=IpamOptions(configs=configs), ipv6_enabled=ipv6)


def options(**given: str) -> NetworkSpec:
    return a_spec(driver=Driver("overlay", given))


RULES = [
    (a_spec(annotations=Annotations("")), BAD, "network name: must be given"),
    (a_spec(annotations=Annotations("a b")), BAD, "network name: 'a b' must be letters"),
    (a_spec(annotations=Annotations("Bridge")), BAD, "network name: Bridge is predefined"),
    (a_spec(annotations=Annotations("n", {"": "x"})), BAD, "network labels: '' must not be"),
    (a_spec(driver=Driver("bridge")), BAD, "driver: 'bridge' must be overlay"),
    (a_spec(ingress=True), LATER, "ingress: the routing mesh is no network here"),
    (a_spec(config_only=True), BAD, "config-only: a configuration network is a node's own"),
    (a_spec(config_from="x"), BAD, "config-from: configuration networks hold options for"),
    (options(encrypted="false"), BAD, "driver option encrypted: 'false' must be true or nothing"),
    (options(color="red"), BAD, "driver option: 'color' is unknown"),
    (options(**{MTU_OPTION: "575"}), BAD, f"driver option {MTU_OPTION}: '575' must be 576 to"),
    (options(**{MTU_OPTION: "1_500"}), BAD, f"driver option {MTU_OPTION}: '1_500' must be"),
    (
        options(**{MTU_OPTION: "1279"}).replaced(ipv6_enabled=True),
        BAD,
        f"driver option {MTU_OPTION}: '1279' must be 1280",
    ),
    (a_spec(ipam=IpamOptions(driver=Driver("dhcp"))), LATER, "ipam driver: 'dhcp' is not"),
    (a_spec(ipam=IpamOptions(driver=Driver("", {"a": "b"}))), BAD, "ipam option: 'a' is unknown"),
    (ipam(IpamConfig(gateway="10.1.0.1")), BAD, "subnet: must be given with a gateway"),
    (ipam(IpamConfig("10.1.0.0/33")), BAD, "subnet: '10.1.0.0/33' must be ADDRESS/LENGTH"),
    (ipam(IpamConfig("10.1.0.5/24")), BAD, "subnet: 10.1.0.5/24 should be 10.1.0.0/24"),
    (ipam(IpamConfig("10.1.0.0/31")), BAD, "subnet: 10.1.0.0/31 is too small"),
    (ipam(IpamConfig("127.1.0.0/24")), BAD, "subnet: 127.1.0.0/24 is not for hosts"),
    (ipam(IpamConfig("0.0.0.0/0")), BAD, "subnet: 0.0.0.0/0 is not for hosts"),
    (ipam(IpamConfig("224.0.0.0/24")), BAD, "subnet: 224.0.0.0/24 is not for hosts"),
    (ipam(IpamConfig("fd00::/64")), BAD, "subnet: fd00::/64 needs IPv6"),
    (ipam(IpamConfig("10.1.0.0/24"), IpamConfig("10.2.0.0/24")), LATER, "subnet: more than one"),
    (ipam(IpamConfig("10.1.0.0/24", "10.2.0.0/25")), BAD, "ip-range: 10.2.0.0/25 must be inside"),
    (ipam(IpamConfig("10.1.0.0/24", "10.1.0.1/25")), BAD, "ip-range: 10.1.0.1/25 should be"),
    (ipam(IpamConfig("10.1.0.0/24", gateway="10.2.0.1")), BAD, "gateway: 10.2.0.1 must be an"),
    (ipam(IpamConfig("10.1.0.0/24", gateway="10.1.0.0")), BAD, "gateway: 10.1.0.0 must be an"),
    (ipam(IpamConfig("10.1.0.0/24", gateway="one")), BAD, "gateway: 'one' must be an IP address"),
    (
        ipam(IpamConfig("10.1.0.0/24", reserved={"a": "10.1.0.255"})),
        BAD,
        "aux-address: 10.1.0.255 must be an address of a host",
    ),
    (
        ipam(IpamConfig("10.1.0.0/24", gateway="10.1.0.9", reserved={"a": "10.1.0.9"})),
        BAD,
        "aux-address: 10.1.0.9 is the gateway",
    ),
    (
        ipam(IpamConfig("10.1.0.0/24", reserved={"a": "10.1.0.9", "b": "10.1.0.9"})),
        BAD,
        "aux-address: an address is given twice",
    ),
]


@pytest.mark.parametrize(("bad", "error", "text"), RULES, ids=lambda value: str(value)[:40])
def test_a_network_is_refused_with_the_field_and_the_rule(
    bad: NetworkSpec, error: type[SwarmError], text: str
) -> None:
    with pytest.raises(SwarmError) as caught:
        network_spec(bad)
    assert type(caught.value) is error
    assert caught.value.message.startswith(text)


def test_what_overlays_can_have() -> None:
    network_spec(a_spec(driver=Driver(""), internal=True, attachable=True))
    network_spec(options(**{MTU_OPTION: "9000"}))
    for value in ("", "true"):  # as docker writes it, and as people do
        network_spec(options(encrypted=value))
    network_spec(
        ipam(
            IpamConfig("10.1.0.0/16", "10.1.4.0/24", "10.1.0.9", {"router": "10.1.0.10"}),
            IpamConfig("fd00:1::/64", gateway="fd00:1::9"),
            ipv6=True,
        )
    )


def _settled(cell: Cell) -> Cell:
    cell.settle(lambda tables: plan(tables, (), now_ns=cell.now_ns, ids=cell.ids))
    return cell


def test_a_subnet_belongs_to_one_network() -> None:
    cell = _settled(Cell([a_network("blue", "10.1.0.0/16")]))
    create_network(cell.tables, a_network("red", "10.2.0.0/16").spec, network_id="r")
    with pytest.raises(InvalidArgument, match=r"10\.1\.2\.0/24 overlaps 10\.1\.0\.0/16 of network"):
        create_network(cell.tables, a_network("red", "10.1.2.0/24").spec, network_id="r")


def test_the_mesh_keeps_its_pool() -> None:
    cell = Cell([Cluster(id="c", ingress_pool="10.64.0.0/12")])
    with pytest.raises(InvalidArgument, match=r"overlaps 10\.64\.0\.0/12 of the routing mesh"):
        create_network(cell.tables, a_network("red", "10.65.2.0/24").spec, network_id="r")


def _on(*targets: str, name: str = "web") -> Service:
    wishes = tuple(NetworkAttachmentConfig(target=target) for target in targets)
    task = TaskSpec(runtime=ContainerSpec(image="nginx:1"), networks=wishes)
    return a_service(name, task=task)


def test_services_store_the_ids_of_networks() -> None:
    blue = a_network("id1").replaced(spec=a_network("blue").spec)
    cell = Cell([blue])
    for reference in ("blue", "id1", "id"):
        resolved = with_network_ids(cell.tables, _on(reference).spec)
        assert [wish.target for wish in resolved.task.networks] == ["id1"]
    with pytest.raises(NotFound, match="network green not found"):
        with_network_ids(cell.tables, _on("green").spec)
    with pytest.raises(InvalidArgument, match="blue is given twice"):
        with_network_ids(cell.tables, _on("blue", "id1").spec)
    with pytest.raises(InvalidArgument, match="host is a network of each node"):
        with_network_ids(cell.tables, _on("host").spec)


def _fixed(*addresses: str, name: str = "web", replicas: int = 1) -> Service:
    service = _on("net", name=name)
    wishes = (NetworkAttachmentConfig("net", addresses=addresses),)
    task = service.spec.task.replaced(networks=wishes)
    mode = ReplicatedMode(replicas)
    return service.replaced(spec=service.spec.replaced(task=task, mode=mode))


@pytest.mark.parametrize(
    ("addresses", "text"),
    [
        (["10.1.0"], "network: ip: '10.1.0' must be an IP address"),
        (["fd00:0::9"], "network: ip: fd00:0::9 should be written as fd00::9"),
        (["10.1.0.9", "10.1.0.9"], "network: ip: an address is given twice"),
        (["10.1.0.9"], "network: 1 IPv4 addresses for 2 replicas: give one for each"),
        (["10.1.0.9", "10.2.0.9"], "network net: ip: 10.2.0.9 must be an address of a host in"),
        (["10.1.0.9", "10.1.0.1"], "network net: ip: 10.1.0.1 is the gateway or set aside"),
        (["10.1.0.9", "10.1.0.7"], "network net: ip: 10.1.0.7 is the gateway or set aside"),
        (["10.1.0.9", "10.1.0.255"], "network net: ip: 10.1.0.255 must be an address of a host"),
        (["fd00::8", "fd00::9"], "network net: ip: fd00::8: it has no IPv6 subnet"),
        (["10.1.0.9", "10.1.0.2"], "network net: ip: 10.1.0.2 belongs to service db"),
        (["10.1.0.9", "10.1.0.20"], "network net: ip: 10.1.0.20 belongs to service db"),
        ([f"10.1.{n // 250}.{n % 250 + 1}" for n in range(1025)], "network: 1025 addresses, at"),
    ],
)
def test_addresses_that_a_service_cannot_have_are_refused(addresses: list[str], text: str) -> None:
    wish = IpamConfig(subnet="10.1.0.0/24", reserved={"router": "10.1.0.7"})
    network = a_network("net", ipam=IpamOptions(configs=(wish,)))
    cell = _settled(Cell([network, _fixed("10.1.0.20", name="db")]))
    with pytest.raises(InvalidArgument) as caught:
        create_service(cell.tables, _fixed(*addresses, replicas=2).spec, service_id="s", now_ns=1)
    assert caught.value.message.startswith(text)


def test_a_service_keeps_its_own_addresses_when_it_changes() -> None:
    cell = _settled(Cell([a_network("net", "10.1.0.0/24"), _fixed("10.1.0.20", "10.1.0.21")]))
    bigger = _fixed("10.1.0.20", "10.1.0.21", replicas=2).spec
    changed = update_service(cell.tables, "web", bigger, version=0, now_ns=1)[0].object
    assert isinstance(changed, Service)
    assert changed.spec == bigger
    with pytest.raises(InvalidArgument, match="2 IPv4 addresses for 3 replicas"):
        update_service(
            cell.tables, "web", bigger.replaced(mode=ReplicatedMode(3)), version=0, now_ns=1
        )
    for mode in (GlobalMode(), ReplicatedJobMode(max_concurrent=1, total_completions=1)):
        with pytest.raises(InvalidArgument, match="can only be used with replicated mode"):
            validate.service_spec(bigger.replaced(mode=mode))
    hasty = UpdateConfig(order=UpdateOrder.START_FIRST)
    for field in ("update", "rollback"):
        with pytest.raises(InvalidArgument, match=f"{field} order: start-first needs a second"):
            update_service(
                cell.tables, "web", bigger.replaced(**{field: hasty}), version=0, now_ns=1
            )


def test_a_network_is_kept_while_somebody_uses_it() -> None:
    attached = (NetworkAttachment(network_id="net"),)
    cell = Cell(
        [
            a_network("net"),
            *(_on("net", name=f"s{number}") for number in range(6)),
            a_task("t1", service_id="s1", networks=attached),
            a_task("t9", service_id="gone", networks=attached),
        ]
    )
    users = "service s0, service s1, service s2, service s3, service s4 and 1 more"
    with pytest.raises(FailedPrecondition, match=f"network net is in use by {users}"):
        remove_network(cell.tables, "net")
    for number in range(6):
        service = cell.service(f"s{number}")
        cell.put(service.replaced(spec=a_service(f"s{number}").spec))
    with pytest.raises(FailedPrecondition, match="in use by task t1: remove them"):
        remove_network(cell.tables, "net")
    cell.report("t1", TaskState.SHUTDOWN)
    (change,) = remove_network(cell.tables, "net")
    assert change.kind is ActionKind.UPDATE  # t9 is on it yet, whose service is gone
    assert change.object.pending_delete
    cell.report("t9", TaskState.SHUTDOWN)
    (change,) = remove_network(cell.tables, "net")
    assert change.kind is ActionKind.REMOVE
