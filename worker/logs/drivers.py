"""Log drivers and their options: what is accepted, and what the logger is told. Pure.

`json-file` and `local` are files; `syslog` and `journald` go to their servers and, unless
`cache-disabled`, to files that can be read; `none` keeps nothing. Texts of refusals are Docker's.
Sources: moby daemon/logger and its drivers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote_plus, urlsplit

from shoal.errors import InvalidArgument, Unimplemented
from shoal.model.log_drivers import DELIVERY, OPTIONS
from worker.logs.api import LogDriver, LogSubject
from worker.logs.sinks import LOCAL_SYSLOG

JOURNAL_SOCKET = "/run/systemd/journal/socket"
SIZE_BYTES_DEFAULT, FILES_DEFAULT = 10 << 20, 3
LOCAL_SIZE, LOCAL_FILES = "20m", "5"
SIZE_BYTES_MIN = 4096
BUFFER_DEFAULT = "1m"
NAMES = tuple(sorted(OPTIONS))
_SYSTEM = ("kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron",
           "authpriv", "ftp")  # fmt: skip
_FACILITIES = {name: number for number, name in enumerate(_SYSTEM)} | {
    f"local{number}": 16 + number for number in range(8)
}
_FORMATS = frozenset(("", "rfc3164", "rfc5424", "rfc5424micro"))
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgtp]?)i?b?", re.IGNORECASE)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15}
_TEMPLATE = re.compile(r"\{\{\s*\.(\w+)\s*\}\}")
_TRUE = frozenset(("1", "t", "T", "TRUE", "true", "True"))
_FALSE = frozenset(("0", "f", "F", "FALSE", "false", "False"))


def check(driver: LogDriver, sockets: frozenset[str]) -> None:
    """Refuse what is not possible. sockets: of syslog and the journal, those that are there.

    Raises: InvalidArgument, Unimplemented.
    """
    if driver.name not in OPTIONS:
        raise InvalidArgument(f"logger: no log driver named '{driver.name}' is registered")
    for option in driver.options:
        if option not in OPTIONS[driver.name] | DELIVERY:
            raise InvalidArgument(f"unknown log opt '{option}' for {driver.name} log driver")
    conf(driver, LogSubject(id="0" * 64))
    if driver.name == "journald" and JOURNAL_SOCKET not in sockets:
        raise Unimplemented(f"journald: this node runs no journal: {JOURNAL_SOCKET} is not there")
    local = driver.name == "syslog" and not driver.options.get("syslog-address")
    if local and not sockets.intersection(LOCAL_SYSLOG):
        raise Unimplemented(
            f"syslog: this node runs no syslog: none of {', '.join(LOCAL_SYSLOG)} is there; give"
            " a syslog-address"
        )


def readable(driver: LogDriver) -> bool:
    """Whether its lines can be read again."""
    return driver.name != "none" and not _boolean(driver.options, "cache-disabled")


def conf(driver: LogDriver, subject: LogSubject) -> dict[str, Any]:
    """What the logger is told, in `log.conf`. Raises: InvalidArgument, Unimplemented."""
    found = _files(driver)
    found["attrs"] = attributes(driver, subject)
    buffer_bytes = _buffer(driver.options)
    if driver.name == "syslog":
        found["sink"] = _syslog(driver.options, subject)
    elif driver.name == "journald":
        found["sink"] = _journald(driver, subject)
    if buffer_bytes and "sink" in found:
        found["sink"]["buffer_bytes"] = buffer_bytes
    return found


def attributes(driver: LogDriver, subject: LogSubject) -> dict[str, str]:
    """What `labels`, `env` and `tag` add to each line. Raises: InvalidArgument."""
    options = driver.options
    env = dict(entry.split("=", 1) for entry in subject.env if "=" in entry)
    found = _chosen(subject.labels, options, "labels") | _chosen(env, options, "env")
    if driver.name == "json-file" and options.get("tag"):
        found["tag"] = _tag(options, subject)
    return found


def attributes_text(found: Mapping[str, str]) -> str:
    """As `docker logs --details` shows them."""
    return ",".join(sorted(f"{quote_plus(key)}={quote_plus(text)}" for key, text in found.items()))


def _chosen(known: Mapping[str, str], options: Mapping[str, str], kind: str) -> dict[str, str]:
    wanted = [name for name in options.get(kind, "").split(",") if name]
    found = {name: known[name] for name in wanted if name in known}
    pattern = options.get(f"{kind}-regex", "")
    if pattern:
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise InvalidArgument(f"log opt {kind}-regex: {error}") from None
        found |= {name: text for name, text in known.items() if expression.search(name)}
    return found


def _files(driver: LogDriver) -> dict[str, Any]:
    """Whether and how files are kept. Raises: InvalidArgument."""
    options = driver.options
    if not readable(driver):
        return {"files": False}
    prefix = "cache-" if driver.name in {"syslog", "journald"} else ""
    local = driver.name != "json-file"
    size = options.get(f"{prefix}max-size", LOCAL_SIZE if local else "")
    files = options.get(f"{prefix}max-file", LOCAL_FILES if local else "")
    if not files.isdecimal() and files:
        raise InvalidArgument(f'strconv.Atoi: parsing "{files}": invalid syntax')
    if files and not 1 <= int(files) <= 1000:
        raise InvalidArgument("max-file cannot be less than 1 or more than 1000")
    size_bytes = max(_bytes("max-size", size), SIZE_BYTES_MIN) if size else SIZE_BYTES_DEFAULT
    count = int(files) if files else (1 if size else FILES_DEFAULT)
    compress = _compresses(driver)
    if compress and (count == 1 or not size):
        raise InvalidArgument(
            "compress cannot be true when max-file is less than 2 or max-size is not set"
        )
    return {"files": True, "max_size_bytes": size_bytes, "max_files": count, "compress": compress}


def _compresses(driver: LogDriver) -> bool:
    options = driver.options
    if driver.name == "json-file":
        return _boolean(options, "compress")
    if not readable(driver):
        return False
    option = "compress" if driver.name == "local" else "cache-compress"
    several = options.get(option.replace("compress", "max-file"), LOCAL_FILES) != "1"
    return _boolean(options, option, default=several)


def _buffer(options: Mapping[str, str]) -> int:
    mode, size = options.get("mode", ""), options.get("max-buffer-size", "")
    if mode not in {"", "blocking", "non-blocking"}:
        raise InvalidArgument(f"logger: logging mode not supported: {mode}")
    if mode != "non-blocking":
        if size:
            raise InvalidArgument(
                "logger: max-buffer-size option is only supported with 'mode=non-blocking'"
            )
        return 0
    return _bytes("max-buffer-size", size or BUFFER_DEFAULT)


def _syslog(options: Mapping[str, str], subject: LogSubject) -> dict[str, Any]:
    style = options.get("syslog-format", "")
    if style not in _FORMATS:
        raise InvalidArgument("Invalid syslog format")
    facility = options.get("syslog-facility", "daemon")
    number = _FACILITIES.get(facility, int(facility) if facility.isdecimal() else -1)
    if not 0 <= number <= 23:
        raise InvalidArgument("invalid syslog facility")
    return {
        "kind": "syslog", "format": style, "facility": number, "tag": _tag(options, subject),
        **_server(options.get("syslog-address", "")),
    }  # fmt: skip


def _server(address: str) -> dict[str, Any]:
    """Where a syslog server is. Raises: InvalidArgument, Unimplemented."""
    if not address:
        return {"network": "unixgram", "address": LOCAL_SYSLOG[0]}
    parts = urlsplit(address)
    if not parts.scheme or "://" not in address:
        raise InvalidArgument(f"syslog-address should be in form proto://address, got {address}")
    if parts.scheme == "tcp+tls":
        raise Unimplemented("syslog-address: tcp+tls is not possible on this version")
    if parts.scheme in {"unix", "unixgram"}:
        return {"network": parts.scheme, "address": parts.path}
    if parts.scheme not in {"tcp", "udp"}:
        raise InvalidArgument(f"unsupported scheme: '{parts.scheme}'")
    try:
        host, port = parts.hostname or "", parts.port or 514
    except ValueError as error:
        raise InvalidArgument(f"syslog-address: {error}") from None
    host = "127.0.0.1" if host == "localhost" else host
    if not re.fullmatch(r"\d+\.\d+\.\d+\.\d+|[0-9a-f:.]*:[0-9a-f:.]*", host):
        raise Unimplemented(
            f"syslog-address: {host}: give the server's IP address: lines must not wait for a"
            " name server"
        )
    return {"network": parts.scheme, "address": host, "port": port}


def _journald(driver: LogDriver, subject: LogSubject) -> dict[str, Any]:
    fields = {
        "CONTAINER_ID": subject.id[:12],
        "CONTAINER_ID_FULL": subject.id,
        "CONTAINER_NAME": subject.name,
        "CONTAINER_TAG": _tag(driver.options, subject),
        "IMAGE_NAME": subject.image,
        "SYSLOG_IDENTIFIER": _tag(driver.options, subject),
    }
    for name, text in attributes(driver, subject).items():
        fields[re.sub(r"[^A-Z0-9_]", "_", name.upper()).lstrip("_0123456789") or "LABEL"] = text
    return {"kind": "journald", "network": "unixgram", "address": JOURNAL_SOCKET, "fields": fields}


def _tag(options: Mapping[str, str], subject: LogSubject) -> str:
    """The `tag` option, a Go template of fields. Raises: InvalidArgument."""
    values = {
        "ID": subject.id[:12],
        "FullID": subject.id,
        "Name": subject.name,
        "ImageName": subject.image,
        "ImageID": subject.image_id.removeprefix("sha256:")[:12],
        "ImageFullID": subject.image_id,
        "DaemonName": "docker",
    }
    template = options.get("tag", "") or "{{.ID}}"

    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise InvalidArgument(
                f"log opt tag: {match[0]}: known are {', '.join(f'.{name}' for name in values)}"
            )
        return values[match[1]]

    text = _TEMPLATE.sub(value, template)
    if "{{" in text or "\n" in text:
        raise InvalidArgument(f"log opt tag: {template}: only fields like {{{{.Name}}}} are known")
    return text


def _boolean(options: Mapping[str, str], name: str, *, default: bool = False) -> bool:
    text = options.get(name, "")
    if text and text not in _TRUE | _FALSE:
        raise InvalidArgument(f'strconv.ParseBool: parsing "{text}": invalid syntax')
    return text in _TRUE if text else default


def _bytes(option: str, text: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InvalidArgument(f"{option}: invalid size: '{text}'")
    size = int(float(match[1]) * _UNITS[match[2].lower()])
    if size <= 0:
        raise InvalidArgument(f"{option} must be a positive number")
    return size
