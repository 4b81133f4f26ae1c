"""The flags of `service create` and `service update`, from one table.

List flags are `--env` in create and `--env-add`, `--env-rm` in update; both arrive as the
parameters `env_add` and `env_rm` that `swarmctl.edit` knows. Docker's flags that this version
cannot honour are hidden and refused by name.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem
from typing_extensions import override

from shoal.errors import InvalidArgument
from shoal.model.devices import parse_device
from shoal.model.enums import (
    DisconnectAction,
    EndpointMode,
    FailureAction,
    PlacementStrategy,
    RestartCondition,
    ReturnAction,
    UpdateOrder,
)
from shoal.model.log_drivers import TASK_OPTIONS
from swarmctl.complete import complete_configs, complete_networks, complete_secrets
from swarmctl.edit.modes import MODES
from swarmctl.edit.service import FOR_GOOD
from swarmctl.options import FunctionT, Parsed, Word, combined
from swarmctl.parsing.files import parse_file, parse_rotation
from swarmctl.parsing.mounts import parse_mount
from swarmctl.parsing.networks import parse_network
from swarmctl.parsing.ports import parse_publish, parse_targets, suggestions
from swarmctl.parsing.units import parse_bytes, parse_count, parse_cpus, parse_duration
from swarmctl.parsing.values import (
    parse_budget,
    parse_command,
    parse_constraint,
    parse_environment,
    parse_environment_file,
    parse_generic_resource,
    parse_host,
    parse_log_option,
    parse_pair,
    parse_preference,
    parse_ulimit,
)

UINT32_MAX = 2**32 - 1

Option = Callable[[Any], Any]


def _count(text: str) -> int:
    return parse_count(text, name="value")


def _ratio(text: str) -> float:
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1.0
    if not 0.0 <= ratio <= 1.0:
        raise InvalidArgument(f"{text!r} is not a ratio from 0 to 1")
    return ratio


def _ttl(text: str) -> int:
    return FOR_GOOD if text == "none" else parse_duration(text)


def _factor(text: str) -> float:
    try:
        factor = float(text)
    except ValueError:
        factor = -1.0
    if factor and not 1.0 < factor <= 10.0:
        raise InvalidArgument(f"{text!r} is not a factor above 1 and up to 10, or 0")
    return factor


def _variable(text: str) -> str:
    return parse_environment(text, os.environ) or ""


def _variables(path: str) -> tuple[str, ...]:
    try:
        with open(path, encoding="utf-8") as file:
            return parse_environment_file(file, os.environ, name=path)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{path}: {error}") from error


def _replica_count(text: str) -> int:
    return parse_count(text, name="replicas", maximum=UINT32_MAX)


def _score(text: str) -> int:
    try:
        score = int(text)
    except ValueError:
        score = 1001
    if not -1000 <= score <= 1000:
        raise InvalidArgument(f"{text!r} is not a whole number from -1000 to 1000")
    return score


class _Named(Parsed):
    """A value that is completed with the names there are, or with the words of its grammar."""

    def __init__(
        self,
        name: str,
        parse: Callable[[str], Any],
        complete: Callable[[click.Context, click.Parameter, str], list[str]],
    ) -> None:
        super().__init__(name, parse)
        self._complete = complete

    @override
    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """What starts with what was typed."""
        return [CompletionItem(name) for name in self._complete(ctx, param, incomplete)]


NETWORK = _Named("network", parse_network, complete_networks)
NETWORK_NAME = _Named("network", str, complete_networks)
SECRET = _Named("secret", parse_file, complete_secrets)
SECRET_NAME = _Named("secret", str, complete_secrets)
CONFIG = _Named("config", parse_file, complete_configs)
CONFIG_NAME = _Named("config", str, complete_configs)
PORT = _Named("port", parse_publish, lambda _ctx, _param, incomplete: suggestions(incomplete))
FILE_FORMS = "NAME or source=NAME,target=PATH,uid=ID,gid=ID,mode=0444 (rm: name)"
COUNT = Parsed("count", _count)
DURATION = Parsed("duration", parse_duration)
BYTES = Parsed("bytes", parse_bytes)
CPUS = Parsed("decimal", parse_cpus)
COMMAND = Parsed("command", parse_command)
REPLICAS = Parsed("count", _replica_count)
PRIORITY = click.IntRange(-1000, 1000)
BUDGET = Parsed("count|none", parse_budget)

# name, type of what is added, type of what is removed, help, short flag of create
_LISTS: tuple[tuple[str, click.ParamType[Any], click.ParamType[Any], str, str], ...] = (
    ("config", CONFIG, CONFIG_NAME, f"config as a file, {FILE_FORMS}", ""),
    (
        "constraint",
        Parsed("expression", parse_constraint),
        click.STRING,
        "placement constraint",
        "",
    ),
    ("container-label", Parsed("key=value", parse_pair), click.STRING, "container label", ""),
    (
        "device",
        Parsed("device", parse_device),
        click.STRING,
        "device of the node, PATH[:PATH-INSIDE][:rwm] (rm: path inside)",
        "",
    ),
    ("dns", click.STRING, click.STRING, "DNS server", ""),
    ("dns-option", click.STRING, click.STRING, "DNS option", ""),
    ("dns-search", click.STRING, click.STRING, "DNS search domain", ""),
    ("env", Parsed("key=value", _variable), click.STRING, "environment variable", "-e"),
    (
        "generic-resource",
        Parsed("kind=count", parse_generic_resource),
        click.STRING,
        "reserved user-defined resource",
        "",
    ),
    ("group", click.STRING, click.STRING, "supplementary group of the container's user", ""),
    (
        "host",
        Parsed("name:address", parse_host),
        Parsed("name:address", parse_host),
        "line of /etc/hosts",
        "",
    ),
    ("label", Parsed("key=value", parse_pair), click.STRING, "service label", "-l"),
    (
        "mount",
        Parsed("mount", parse_mount),
        click.STRING,
        "volume, bind or tmpfs mount (rm: target)",
        "",
    ),
    (
        "network",
        NETWORK,
        NETWORK_NAME,
        "overlay network, NAME or name=NAME,alias=ALIAS,ip=ADDRESS (rm: name)",
        "",
    ),
    (
        "placement-pref",
        Parsed("preference", parse_preference),
        Parsed("preference", parse_preference),
        "placement preference, spread=node.labels.X, prefer=CONSTRAINT or avoid=CONSTRAINT",
        "",
    ),
    (
        "publish",
        PORT,
        Parsed("port", parse_targets),
        "published port (rm: target port)",
        "-p",
    ),
    ("secret", SECRET, SECRET_NAME, f"secret as a file in /run/secrets, {FILE_FORMS}", ""),
    ("sysctl", Parsed("key=value", parse_pair), click.STRING, "sysctl of the container", ""),
    ("ulimit", Parsed("ulimit", parse_ulimit), click.STRING, "ulimit, name=soft[:hard]", ""),
)

# flag, type, help
_VALUES: tuple[tuple[tuple[str, ...], click.ParamType[Any], str], ...] = (
    (
        ("--isolation",),
        click.STRING,
        "Isolation technology: default, the only one of Linux",
    ),
    (("--hostname",), click.STRING, "Host name inside the container"),
    (("--workdir", "-w"), click.STRING, "Working directory inside the container"),
    (("--user", "-u"), click.STRING, "User, and group after a colon"),
    (("--entrypoint",), COMMAND, "Command in place of the image's entrypoint"),
    (
        ("--secret-rotation",),
        Parsed("how", parse_rotation),
        "Other contents of secrets and configs: restart (default), live, or signal=SIGHUP",
    ),
    (("--stop-signal",), click.STRING, "Signal that stops the container"),
    (("--stop-grace-period",), DURATION, "Time between that signal and SIGKILL (default 10s)"),
    (
        ("--drain-timeout",),
        DURATION,
        "How long a task may wait to leave every load balancer before that signal (default 2s)",
    ),
    (
        ("--listen-timeout",),
        DURATION,
        "How long a started task may take to listen on its published ports (default 5s)",
    ),
    (("--health-cmd",), click.STRING, "Shell command that checks the health of a task (exit 0)"),
    (("--health-interval",), DURATION, "Time between two checks (default 30s)"),
    (("--health-timeout",), DURATION, "Most time a check may take (default 30s)"),
    (("--health-retries",), COUNT, "Failures in a row that make a task unhealthy (default 3)"),
    (
        ("--health-start-period",),
        DURATION,
        "Time after a start in which failures do not count (default 0s)",
    ),
    (("--health-start-interval",), DURATION, "Time between two checks in it (default 5s)"),
    (("--oom-score-adj",), Parsed("score", _score), "Preference of the OOM killer, -1000..1000"),
    (("--limit-cpu",), CPUS, "Limit of CPUs"),
    (("--limit-memory",), BYTES, "Limit of memory"),
    (("--limit-pids",), COUNT, "Limit of processes (default 0: none)"),
    (("--reserve-cpu",), CPUS, "Reserved CPUs"),
    (("--reserve-memory",), BYTES, "Reserved memory"),
    (
        ("--endpoint-mode",),
        Word(*EndpointMode),
        "What the service's name stands for: vip (default) one address, dnsrr the tasks' own",
    ),
    (("--replicas",), REPLICAS, "Number of tasks, or of completions of a job"),
    (("--max-concurrent",), REPLICAS, "Tasks of a job at once (default: all)"),
    (
        ("--ttl-after-finish",),
        Parsed("duration", _ttl),
        "How long a job is kept after its end; none: for good (default none)",
    ),
    (
        ("--priority",),
        PRIORITY,
        "Tasks of services with less may be stopped for this one's (default: 0)",
    ),
    (
        ("--disruption-budget",),
        BUDGET,
        "Most tasks that may be missing at once for others' sake (default: none, no limit)",
    ),
    (("--replicas-max-per-node",), COUNT, "Most tasks per node (default 0: no limit)"),
    (
        ("--placement-strategy",),
        Word(*PlacementStrategy),
        "spread: to nodes with fewest tasks, binpack: to the fullest (default: the cluster's)",
    ),
    (("--restart-condition",), Word(*RestartCondition), "When a task is replaced (default any)"),
    (("--restart-delay",), DURATION, "Delay before that (default 5s)"),
    (("--restart-max-attempts",), COUNT, "Most restarts (default 0: no limit)"),
    (("--restart-window",), DURATION, "Window in which restarts are counted"),
    (
        ("--restart-backoff",),
        Parsed("factor", _factor),
        "Make each delay so many times the one before, up to the longest (default 0: all equal)",
    ),
    (("--restart-backoff-max",), DURATION, "Longest of these delays (default 5m)"),
    (
        ("--disconnect-action",),
        Word(*DisconnectAction),
        "What becomes of tasks whose node is lost: replace (default) or wait",
    ),
    (("--disconnect-wait",), DURATION, "How long to wait for it before that (default 10m)"),
    (
        ("--on-return",),
        Word(*ReturnAction),
        "Which task stays when it comes back: keep-replacement (default) or keep-original",
    ),
)


def create_flags(function: FunctionT) -> FunctionT:
    """The flags of `service create`."""
    lists = [
        click.option(f"--{name}", *_short(short), _parameter(name, "add"), type=kind,
                     multiple=True, help=text[0].upper() + text[1:])
        for name, kind, _, text, short in _LISTS
    ]  # fmt: skip
    env_file = click.option(
        "--env-file",
        multiple=True,
        type=Parsed("file", _variables),
        help="File of environment variables",
    )
    name = click.option("--name", help="Name of the service")
    mode = click.option(
        "--mode",
        type=click.Choice(list(MODES)),
        help="A number of tasks, or one on every node; jobs run to completion (default replicated)",
    )
    return combined(name, mode, *lists, env_file, *_common(), _refused())(function)


def update_flags(function: FunctionT) -> FunctionT:
    """The flags of `service update`."""
    lists: list[Option] = []
    for name, kind, removed, text, _ in _LISTS:
        add, remove = _parameter(name, "add"), _parameter(name, "rm")
        lists += [
            click.option(f"--{name}-add", add, type=kind, multiple=True, help=f"Add a {text}"),
            click.option(
                f"--{name}-rm", remove, type=removed, multiple=True, help=f"Remove a {text}"
            ),
        ]
    own = [
        click.option("--image", help="Image"),
        click.option("--args", type=COMMAND, help="Arguments of the command"),
        click.option("--force", is_flag=True, default=None, help="Replace tasks without a change"),
    ]
    return combined(*own, *lists, *_common(), _refused())(function)


def _common() -> list[Option]:
    values = [click.option(*names, type=kind, help=text) for names, kind, text in _VALUES]
    return [
        *values,
        *_update_options("update", "ing tasks", FailureAction),
        *_update_options("rollback", " of tasks", (FailureAction.PAUSE, FailureAction.CONTINUE)),
        click.option("--with-registry-auth", is_flag=True, default=None,
                     help="Give the nodes your login at the image's registry"),
        click.option("--no-healthcheck", is_flag=True, default=None,
                     help="Check no health, also where the image says how"),
        click.option("--cap-add", multiple=True, help="Add a capability"),
        click.option("--cap-drop", multiple=True, help="Drop a capability"),
        click.option("--log-opt", type=Parsed("key=value", parse_log_option), multiple=True,
                     help="Log option of the driver: max-size, max-file, tag, ..."),
        click.option("--log-driver", type=click.Choice(sorted(TASK_OPTIONS)),
                     help="Where the tasks' output goes (default json-file)"),
        click.option("--read-only/--no-read-only", default=None, help="Read-only root file system"),
        click.option("--tty/--no-tty", "-t", default=None,
                     help="Give the program a terminal"),
        click.option("--open-stdin/--no-open-stdin", default=None,
                     help="Keep standard input open, which nobody writes to"),
        click.option("--init/--no-init", default=None,
                     help="Run the program under an init that reaps and passes on signals"),
        click.option("--no-new-privileges/--new-privileges", default=None,
                     help="Whether processes may gain privileges, as by setuid"),
    ]  # fmt: skip


def _update_options(kind: str, what: str, actions: Any) -> list[Option]:
    return [
        click.option(f"--{kind}-parallelism", type=COUNT,
                     help=f"Tasks at once when {kind}{what} (default 1; 0: all)"),
        click.option(f"--{kind}-delay", type=DURATION, help="Delay between them (default 0s)"),
        click.option(f"--{kind}-failure-action", type=Word(*actions),
                     help="What to do when too many fail (default pause)"),
        click.option(f"--{kind}-monitor", type=DURATION,
                     help="How long a new task is watched for failure (default 5s)"),
        click.option(f"--{kind}-progress-deadline", type=DURATION,
                     help="How long a new task may stay in one state before it runs, be it waiting"
                     " for a node, pulling its image or starting (default 10m; 0s: any time)"),
        click.option(f"--{kind}-max-failure-ratio", type=Parsed("ratio", _ratio),
                     help="Failures to tolerate, 0..1 (default 0)"),
        click.option(f"--{kind}-order", type=Word(*UpdateOrder),
                     help="Whether the old task stops first (default stop-first)"),
    ]  # fmt: skip


def _refused() -> Option:
    return click.option("--credential-spec", hidden=True, expose_value=False, callback=_refuse)


def _refuse(ctx: click.Context, param: click.Parameter, value: object) -> None:
    if value is not None:
        raise click.UsageError(f"{param.opts[0]} is of Windows, and nodes run Linux", ctx)


def _parameter(name: str, verb: str) -> str:
    return f"{name.replace('-', '_')}_{verb}"


def _short(flag: str) -> tuple[str, ...]:
    return (flag,) if flag else ()
