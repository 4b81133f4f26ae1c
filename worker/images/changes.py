"""Dockerfile-like changes to an image's configuration, as `docker import --change` takes. Pure.

Accepts CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, STOPSIGNAL, USER, VOLUME and WORKDIR; any
other instruction is refused by name, because it would need a build. `$NAME` and `${NAME}` expand
from the ENV so far where the Dockerfile language says so.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable, Sequence

import msgspec

from shoal.errors import InvalidArgument
from shoal.model.types import HealthCheck
from worker.images.model import ImageConfig

_BUILD_ONLY = frozenset(
    {"ADD", "ARG", "COPY", "FROM", "MAINTAINER", "ONBUILD", "RUN", "SHELL", "CROSS_BUILD"}
)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|ms|s|m|h)")
_UNIT_NS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_SIGNAL = re.compile(r"(?:SIG)?[A-Z][A-Z0-9+-]*|\d{1,2}")
_PORTS_MAX = 4096


def apply_changes(config: ImageConfig, changes: Sequence[str]) -> ImageConfig:
    """`config` with every change applied in order.

    Raises InvalidArgument naming the change and the rule.
    """
    for line in changes:
        word, _, rest = line.strip().partition(" ")
        name, rest = word.upper(), rest.strip()
        change = _CHANGES.get(name)
        if change is None:
            why = "needs a build" if name in _BUILD_ONLY else "is not an instruction"
            raise InvalidArgument(
                f"--change {line!r}: {name or 'an empty line'} {why};"
                f" accepted are {', '.join(sorted(_CHANGES))}"
            )
        if not rest:
            raise InvalidArgument(f"--change {line!r}: {name} requires an argument")
        try:
            config = change(config, rest)
        except InvalidArgument as error:
            raise InvalidArgument(f"--change {line!r}: {error.message}") from None
    return config


def _cmd(config: ImageConfig, rest: str) -> ImageConfig:
    return _with(config, cmd=_command(rest))


def _entrypoint(config: ImageConfig, rest: str) -> ImageConfig:
    return _with(config, entrypoint=_command(rest))


def _env(config: ImageConfig, rest: str) -> ImageConfig:
    env = dict(item.partition("=")[::2] for item in config.env)
    env.update(_pairs(rest, config, "ENV"))
    return _with(config, env=tuple(f"{key}={value}" for key, value in env.items()))


def _label(config: ImageConfig, rest: str) -> ImageConfig:
    return _with(config, labels={**config.labels, **dict(_pairs(rest, config, "LABEL"))})


def _expose(config: ImageConfig, rest: str) -> ImageConfig:
    return _with(config, exposed_ports=ports(_words(rest, config), config.exposed_ports))


def ports(words: Iterable[str], known: Iterable[str] = ()) -> tuple[str, ...]:
    """`known` and what `EXPOSE` adds to it, each as PORT/PROTOCOL. Raises: InvalidArgument."""
    found = list(known)
    for word in words:
        match = _PORT.fullmatch(word)
        if match is None:
            raise InvalidArgument(f"port {word!r} is not PORT, FIRST-LAST or PORT/tcp|udp|sctp")
        first, last = int(match[1]), int(match[2] or match[1])
        if not 1 <= first <= last <= 65535:
            raise InvalidArgument(f"port {word!r} is not within 1 to 65535")
        if len(found) + last - first >= _PORTS_MAX:
            raise InvalidArgument(f"more than {_PORTS_MAX} ports")
        found.extend(f"{port}/{match[3] or 'tcp'}" for port in range(first, last + 1))
    return tuple(dict.fromkeys(found))


def _user(config: ImageConfig, rest: str) -> ImageConfig:
    return _with(config, user=_single(rest, config, "USER"))


def _stop_signal(config: ImageConfig, rest: str) -> ImageConfig:
    return _with(config, stop_signal=checked_signal(_single(rest, config, "STOPSIGNAL")))


def checked_signal(signal: str) -> str:
    """The same. Raises: InvalidArgument for what is no signal."""
    if not _SIGNAL.fullmatch(signal):
        raise InvalidArgument(f"{signal!r} is not a signal's name or number")
    return signal


def _workdir(config: ImageConfig, rest: str) -> ImageConfig:
    path = "".join(_split(rest, _environment(config), keep_blanks=True))
    path = posixpath.normpath(posixpath.join("/", config.working_dir, path))
    return _with(config, working_dir="/" + path.lstrip("/"))


def _volume(config: ImageConfig, rest: str) -> ImageConfig:
    listed = _json_array(rest)
    paths = listed if listed is not None else tuple(_words(rest, config))
    if not all(path.strip() for path in paths):
        raise InvalidArgument("a volume's path is empty")
    return _with(config, volumes=tuple(dict.fromkeys((*config.volumes, *paths))))


def _healthcheck(config: ImageConfig, rest: str) -> ImageConfig:
    return _with(config, healthcheck=health_check(rest))


def health_check(rest: str) -> HealthCheck:
    """What follows `HEALTHCHECK`. Raises: InvalidArgument."""
    flags: dict[str, str] = {}
    while rest.startswith("--"):
        flag, _, rest = rest.partition(" ")
        key, _, value = flag[2:].partition("=")
        flags[key], rest = value, rest.strip()
    kind, _, command = rest.partition(" ")
    if kind.upper() == "NONE" and not command.strip():
        return HealthCheck(test=("NONE",))
    if kind.upper() != "CMD" or not command.strip():
        raise InvalidArgument("HEALTHCHECK takes NONE or CMD with a command")
    listed = _json_array(command)
    test = ("CMD", *listed) if listed is not None else ("CMD-SHELL", command.strip())
    retries = flags.pop("retries", "0")
    if not retries.isdecimal() or len(retries) > 6:
        raise InvalidArgument(f"--retries={retries} is not a number")
    times = {
        name: _duration_ns(name, flags.pop(name, "0s"))
        for name in ("interval", "timeout", "start-period", "start-interval")
    }
    if flags:
        raise InvalidArgument(f"unknown flag --{next(iter(flags))}")
    return HealthCheck(
        test=test, interval_ns=times["interval"], timeout_ns=times["timeout"],
        start_period_ns=times["start-period"], start_interval_ns=times["start-interval"],
        retries=int(retries),
    )  # fmt: skip


_CHANGES: dict[str, Callable[[ImageConfig, str], ImageConfig]] = {
    "CMD": _cmd, "ENTRYPOINT": _entrypoint, "ENV": _env, "EXPOSE": _expose,
    "HEALTHCHECK": _healthcheck, "LABEL": _label, "STOPSIGNAL": _stop_signal, "USER": _user,
    "VOLUME": _volume, "WORKDIR": _workdir,
}  # fmt: skip


def _command(rest: str) -> tuple[str, ...]:
    """The JSON form as it is; anything else is a shell's command line."""
    listed = _json_array(rest)
    return listed if listed is not None else ("/bin/sh", "-c", rest)


def _json_array(rest: str) -> tuple[str, ...] | None:
    try:
        return msgspec.json.decode(rest, type=tuple[str, ...])
    except msgspec.MsgspecError:
        return None


def _duration_ns(name: str, text: str) -> int:
    total = 0.0
    at = 0
    while at < len(text) and (match := _DURATION.match(text, at)):
        total += float(match[1]) * _UNIT_NS[match[2]]
        at = match.end()
    if not text or at != len(text):
        raise InvalidArgument(f"--{name}={text} is not a duration such as 30s or 1m30s")
    return int(total)


def _single(rest: str, config: ImageConfig, name: str) -> str:
    words = _words(rest, config)
    if len(words) != 1:
        raise InvalidArgument(f"{name} takes exactly one argument")
    return words[0]


def _pairs(rest: str, config: ImageConfig, name: str) -> list[tuple[str, str]]:
    """`K=V K2="v 2"`, or the old form `K the rest of the line`."""
    environment = _environment(config)
    first = rest.split(None, 1)[0]
    if "=" not in first:
        value = rest[len(first) :].strip()
        if not value:
            raise InvalidArgument(f"{name} must have two arguments, or KEY=VALUE")
        return [(first, "".join(_split(value, environment, keep_blanks=True)))]
    pairs = []
    for word in _split(rest, environment):
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise InvalidArgument(f"{name}: {word!r} is not KEY=VALUE")
        pairs.append((key, value))
    return pairs


def _words(rest: str, config: ImageConfig) -> list[str]:
    return _split(rest, _environment(config))


def _environment(config: ImageConfig) -> dict[str, str]:
    return dict(item.partition("=")[::2] for item in config.env)


def _split(text: str, environment: dict[str, str], *, keep_blanks: bool = False) -> list[str]:
    """Shell-like words: quotes, backslashes and variables. keep_blanks: one single word."""
    words: list[str] = []
    current: str | None = None
    quote = ""
    at = 0
    while at < len(text):
        char = text[at]
        at += 1
        if quote == "'" and char != "'":
            current = (current or "") + char
        elif char == quote:
            quote = ""
        elif char in "'\"" and not quote:
            quote, current = char, current or ""
        elif char == "\\" and at < len(text) and (not quote or text[at] in '"\\$'):
            current = (current or "") + text[at]
            at += 1
        elif char == "$":
            value, at = _expand(text, at, environment)
            current = (current or "") + value
        elif char.isspace() and not quote and not keep_blanks:
            if current is not None:
                words.append(current)
            current = None
        else:
            current = (current or "") + char
    if quote:
        raise InvalidArgument(f"quote {quote} is not closed")
    return words if current is None else [*words, current]


def _expand(text: str, at: int, environment: dict[str, str]) -> tuple[str, int]:
    """The value of the variable whose name begins at `at`, and where its text ends."""
    if not text.startswith("{", at):
        match = _VARIABLE.match(text, at)
        return (environment.get(match[0], ""), match.end()) if match else ("$", at)
    end = text.find("}", at)
    match = _VARIABLE.match(text, at + 1)
    if end < 0 or match is None:
        raise InvalidArgument("'${' begins no ${NAME}, ${NAME:-default} or ${NAME:+other}")
    value, operator = environment.get(match[0], ""), text[match.end() : end]
    if not operator:
        return value, end + 1
    if operator.startswith(":-"):
        return value or operator[2:], end + 1
    if operator.startswith(":+"):
        return operator[2:] if value else "", end + 1
    raise InvalidArgument(f"'${{{match[0]}{operator}}}' is not an expansion that is supported")


def _with(config: ImageConfig, **fields: object) -> ImageConfig:
    """`config` with `fields` replaced; every caller passes the field's own type."""
    current = {name: getattr(config, name) for name in ImageConfig.__struct_fields__}
    return ImageConfig(**{**current, **fields})
