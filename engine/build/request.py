"""What a call of `POST /build` wishes. Pure.

Every parameter is honoured or refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeVar

import msgspec

from engine.containers.requests import UlimitRequest
from shoal.errors import InvalidArgument, Unimplemented
from shoal.model.reference import Reference, parse_reference
from shoal.model.row import Row

Kind = TypeVar("Kind")

_LIMITS = {
    "memory": "memory_bytes", "memswap": "memory_swap_bytes", "cpushares": "cpu_shares",
    "cpuperiod": "cpu_period_us", "cpuquota": "cpu_quota_us", "shmsize": "shm_size_bytes",
}  # fmt: skip
_TEXT_LIMITS = {"cpusetcpus": "cpuset_cpus", "cpusetmems": "cpuset_mems"}
TAGS_MAX = 100


class Parameters(Protocol):
    """The query of the call, see `engine.http.query.Query`."""

    def text(self, name: str, default: str = "") -> str:
        """As it is."""
        ...

    def many(self, name: str) -> list[str]:
        """All of them."""
        ...

    def flag(self, name: str, *, default: bool = False) -> bool:
        """As a boolean."""
        ...

    def number(self, name: str, default: int = 0) -> int:
        """As an integer."""
        ...


class BuildRequest(Row, frozen=True):
    """One build. limits: of the containers of its steps, see `engine.ports.BuildStep`."""

    dockerfile: str = "Dockerfile"
    tags: tuple[Reference, ...] = ()
    build_args: Mapping[str, str | None] = {}
    labels: Mapping[str, str] = {}
    cache_from: tuple[str, ...] = ()
    no_cache: bool = False
    pull: bool = False
    remove: bool = True
    quiet: bool = False
    target: str = ""
    platform: str = ""
    network_mode: str = "default"
    extra_hosts: tuple[str, ...] = ()
    cgroup_parent: str = ""
    limits: Mapping[str, int | str] = {}
    ulimits: tuple[UlimitRequest, ...] = ()


def read_request(query: Parameters) -> BuildRequest:
    """Raises: InvalidArgument, Unimplemented."""
    _refuse(query)
    tags = tuple(_tag(one) for one in query.many("t"))
    if len(tags) > TAGS_MAX:
        raise InvalidArgument(f"t: more than {TAGS_MAX} names for one image")
    limits: dict[str, int | str] = {
        field: query.number(name) for name, field in _LIMITS.items() if query.number(name)
    }
    limits |= {field: query.text(name) for name, field in _TEXT_LIMITS.items() if query.text(name)}
    return BuildRequest(
        dockerfile=query.text("dockerfile") or "Dockerfile",
        tags=tags,
        build_args=_json(query, "buildargs", dict[str, str | None], {}),
        labels=_json(query, "labels", dict[str, str], {}),
        cache_from=tuple(_json(query, "cachefrom", list[str], [])),
        no_cache=query.flag("nocache"),
        pull=query.flag("pull"),
        remove=query.flag("rm", default=True) or query.flag("forcerm"),
        quiet=query.flag("q"),
        target=query.text("target"),
        platform=query.text("platform"),
        network_mode=query.text("networkmode") or "default",
        extra_hosts=tuple(query.many("extrahosts")),
        cgroup_parent=query.text("cgroupparent"),
        limits=limits,
        ulimits=tuple(_json(query, "ulimits", list[UlimitRequest], [])),
    )


def _refuse(query: Parameters) -> None:
    if query.text("version") not in ("", "1"):
        raise Unimplemented(
            "version: this node speaks the classic builder's protocol (1) only; docker uses it when"
            " DOCKER_BUILDKIT=0 or buildx is not installed"
        )
    if query.text("remote"):
        raise Unimplemented("remote: contexts are sent by the client here, not fetched by the node")
    if query.flag("squash"):
        raise InvalidArgument("squash is only supported with experimental mode")
    if query.text("isolation") not in ("", "default"):
        raise InvalidArgument(f"isolation: {query.text('isolation')!r} does not exist on Linux")
    if query.many("securityopt") and any(query.many("securityopt")):
        raise InvalidArgument(
            "The daemon on this platform does not support setting security options on build"
        )
    if query.text("outputs"):
        raise Unimplemented("outputs: needs BuildKit")


def _tag(text: str) -> Reference:
    reference = parse_reference(text)
    if reference.digest is not None:
        raise InvalidArgument("build tag cannot contain a digest")
    return reference


def _json(query: Parameters, name: str, kind: type[Kind], absent: Kind) -> Kind:
    text = query.text(name)
    if not text or text == "null":
        return absent
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.MsgspecError as error:
        raise InvalidArgument(f"{name}: {error}") from None
