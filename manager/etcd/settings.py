"""Where an etcd cluster is and how to speak to it, as one URL.

    etcd://host:2379,host:2379/prefix?cacert=FILE&cert=FILE&key=FILE&user=NAME&password_file=FILE

TLS is used when `cacert` or `cert` is given, or with `tls=true` (the system's roots). A password is
never part of the URL, which ends up in process lists and logs: it comes from a file, or from the
environment variable that `password_env` names. An unknown parameter is refused, not ignored.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import msgspec

from shoal.errors import InvalidArgument

DEFAULT_PORT = 2379
DEFAULT_PREFIX = "shoal"
PASSWORD_ENV = "SHOAL_ETCD_PASSWORD"  # noqa: S105 - the name of a variable
TXN_OPS_MAX = 128
"""etcd's default for --max-txn-ops."""
REQUEST_BYTES_MAX = 1_572_864
"""etcd's default for --max-request-bytes, and the store's own bound for an entry."""
PASSWORD_BYTES_MAX = 4096
EXAMPLE = "etcd://10.0.0.1:2379,10.0.0.2:2379/shoal?cacert=/etc/shoal/etcd-ca.pem"


class EtcdSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to reach etcd, and the limits its servers were started with."""

    endpoints: tuple[str, ...]
    """`host:port` of each member; asked in this order, the next one when one fails."""
    prefix: str = DEFAULT_PREFIX
    """First part of every key, without slashes at its ends: one per cluster of ours."""
    tls: bool = False
    cacert: Path | None = None
    """Roots that etcd's certificates must come from; None: the system's."""
    cert: Path | None = None
    key: Path | None = None
    """Client certificate and its key, PEM."""
    user: str = ""
    password_file: Path | None = None
    password_env: str = PASSWORD_ENV
    max_txn_ops: int = TXN_OPS_MAX
    """etcd's --max-txn-ops, which a client cannot ask for."""
    max_request_bytes: int = REQUEST_BYTES_MAX
    """etcd's --max-request-bytes."""
    timeout_s: float = 10.0
    """Deadline of one request, also for finding a member that answers."""
    lease_ttl_s: int = 10
    """The leader's lease: how long a dead leader keeps its office."""
    compact_s: int = 300
    """The leader drops history older than this, as etcd grows for ever otherwise. 0: never, when
    etcd's own --auto-compaction does it or others need the history."""


_PARAMETERS = {
    name
    for name in EtcdSettings.__struct_fields__
    if name not in ("endpoints", "prefix")
}  # fmt: skip
_AT_LEAST = {"max_txn_ops": 8, "max_request_bytes": 65_536, "lease_ttl_s": 2, "compact_s": 0}


def parse_url(url: str) -> EtcdSettings:
    """The settings that a URL holds. Raises InvalidArgument naming the part that is wrong."""
    if "://" not in url or not url.startswith("etcd:"):
        raise InvalidArgument(f"store: an etcd URL starts with etcd://, for example {EXAMPLE}")
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InvalidArgument(f"store: not a URL ({error}), for example {EXAMPLE}") from None
    if "@" in parts.netloc:
        raise InvalidArgument(
            "store: no user and password before the host; give `user=NAME` and "
            f"`password_file=FILE`, or the password in the environment as {PASSWORD_ENV}"
        )
    if parts.fragment:
        raise InvalidArgument("store: a URL of etcd has no fragment (#)")
    values: dict[str, object] = dict(_parameters(parts))
    values["endpoints"] = _endpoints(parts.netloc)
    values["prefix"] = _prefix(parts.path)
    values.setdefault("tls", str("cacert" in values or "cert" in values))
    try:
        settings = msgspec.convert(values, EtcdSettings, strict=False, dec_hook=_path)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"store: {error}") from error
    _check(settings)
    return settings


def password(settings: EtcdSettings) -> str:
    """The password of `settings.user`. Raises InvalidArgument when there is none to be found."""
    if settings.password_file is not None:
        found = read_file(settings.password_file, "password_file", PASSWORD_BYTES_MAX)
        text = found.decode(errors="replace").rstrip("\r\n")
        source = str(settings.password_file)
    else:
        text = os.environ.get(settings.password_env, "")
        source = f"the environment variable {settings.password_env}"
    if not text:
        raise InvalidArgument(
            f"store: {source} holds no password for user {settings.user!r}: "
            "give `password_file=FILE` or set the variable"
        )
    return text


def read_file(path: Path, parameter: str, bytes_max: int = 1 << 20) -> bytes:
    """A small file that a parameter names. Raises InvalidArgument naming both."""
    try:
        with path.open("rb") as file:
            content = file.read(bytes_max + 1)
    except OSError as error:
        raise InvalidArgument(f"store: {parameter} {path}: {error.strerror}") from error
    if len(content) > bytes_max:
        raise InvalidArgument(f"store: {parameter} {path}: more than {bytes_max} bytes")
    return content


def _parameters(parts: SplitResult) -> dict[str, str]:
    try:
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError as error:
        raise InvalidArgument(f"store: parameters after ? are name=value&... ({error})") from None
    values: dict[str, str] = {}
    for name, value in pairs:
        if name == "password":
            raise InvalidArgument(
                "store: a password does not belong in a URL: give `password_file=FILE`, or set "
                f"the environment variable {PASSWORD_ENV}"
            )
        if name not in _PARAMETERS:
            known = ", ".join(sorted(_PARAMETERS))
            raise InvalidArgument(f"store: unknown parameter {name!r}; there are: {known}")
        if name in values:
            raise InvalidArgument(f"store: parameter {name!r} is given twice")
        if not value:
            raise InvalidArgument(f"store: parameter {name!r} is empty")
        values[name] = value
    return values


def _endpoints(netloc: str) -> tuple[str, ...]:
    found: list[str] = []
    for item in unquote(netloc).split(","):
        try:
            one = urlsplit(f"//{item}")
            host, port = one.hostname, one.port
        except ValueError as error:
            raise InvalidArgument(f"store: endpoint {item!r}: {error}") from None
        if not host or one.path:
            raise InvalidArgument(
                f"store: endpoint {item!r}: write host:port, comma between several"
            )
        shown = f"[{host}]" if ":" in host else host
        found.append(f"{shown}:{DEFAULT_PORT if port is None else port}")
    if len(set(found)) != len(found):
        raise InvalidArgument("store: an endpoint is given twice")
    return tuple(found)


def _prefix(path: str) -> str:
    prefix = unquote(path).strip("/")
    if "//" in prefix or any(ord(char) < 0x20 for char in prefix):
        raise InvalidArgument(f"store: prefix {prefix!r}: words between single slashes")
    return prefix or DEFAULT_PREFIX


def _path(kind: type, value: object) -> Path:
    if kind is not Path or not isinstance(value, str):
        raise NotImplementedError(f"no conversion to {kind.__name__}")
    return Path(value)


def _check(settings: EtcdSettings) -> None:
    if (settings.cert is None) != (settings.key is None):
        raise InvalidArgument("store: `cert` and `key` go together: give both or neither")
    if not settings.tls and (settings.cacert is not None or settings.cert is not None):
        raise InvalidArgument("store: `tls=false` with `cacert` or `cert`: leave one of them out")
    if not settings.user and settings.password_file is not None:
        raise InvalidArgument("store: `password_file` without `user`")
    if not settings.timeout_s > 0:
        raise InvalidArgument("store: `timeout_s` must be more than 0")
    for name, least in _AT_LEAST.items():
        if getattr(settings, name) < least:
            raise InvalidArgument(f"store: `{name}` must be at least {least}")
