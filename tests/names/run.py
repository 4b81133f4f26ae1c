"""The run: three services on two networks, asked by all of their tasks, while they change.

`web` is on the network front, `db` on back, `api` on both: web and db are strangers to each other.
db has no virtual address. Names must follow what the managers say on every node; see `judge`.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from tests.integration.cluster.lab import Lab, eventually
from tests.names.facts import Answer, Asker, Kind, Question, Trouble
from tests.names.judge import Timeline, Wrong, judge
from tests.names.observer import Managers, Observer
from tests.names.prober import Prober, Questions
from tests.zeroloss.image import write_image

IMAGE = "polite:1"
DOOMED = "w2"
"""The node that loses its power."""
DRAINED = "w1"
AFTER_S = 0.5
REPEAT_S = 0.3
REVERSED_MAX = 8
"""Addresses of a service that are asked for their names, gone ones included."""
COMMAND_TIMEOUT_S = 180.0


class Service(msgspec.Struct, frozen=True):
    """One of the three."""

    name: str
    alias: str
    networks: frozenset[str]
    replicas: int
    virtual: bool = True

    def names(self) -> tuple[str, str]:
        """What others call it."""
        return self.name, self.alias


SERVICES = (
    Service("web", "www", frozenset({"front"}), 3),
    Service("api", "rest", frozenset({"front", "back"}), 4),
    Service("db", "store", frozenset({"back"}), 3, virtual=False),
)


class Size(msgspec.Struct, frozen=True):
    """How much is done. rounds: of everything; pause_s: of each asker between questions."""

    managers: int = 3
    workers: int = 2
    rounds: int = 10
    pause_s: float = 0.03
    kill: bool = True
    """Cut a worker's power in each round, and start it again."""


class Outcome(msgspec.Struct, frozen=True):
    """What came out."""

    asked: int
    judged: int
    wrong: tuple[Wrong, ...]
    by_kind: dict[str, int]
    unanswered: int
    slowest_s: float
    seconds: float
    tasks: int
    """Tasks that were ready at some time."""
    changes: int


class Run:
    """One lab with the three services, changed and asked."""

    def __init__(self, lab: Lab, size: Size) -> None:
        self._lab = lab
        self._size = size
        managers = [f"m{number}" for number in range(1, size.managers + 1)]
        sockets = [Path(lab.socket(name).removeprefix("unix://")) for name in managers]
        self._managers = Managers(sockets)
        self._observer = Observer(self._managers, [one.name for one in SERVICES])
        self._prober = Prober(pause_s=size.pause_s)
        self._troubles: list[Trouble] = []
        self._changes = 0

    def create(self) -> None:
        """Image, networks and services."""
        archive = self._lab.base / "polite.tar"
        write_image(archive)
        command = 'CMD ["/server","80","0"]'
        self._lab.swarmctl("image", "import", str(archive), IMAGE, "--change", command)
        for network in ("front", "back"):
            self._lab.swarmctl("network", "create", network)
        for one in SERVICES:
            networks = [f"name={network},alias={one.alias}" for network in sorted(one.networks)]
            self._do(
                "service", "create", "--detach", "--name", one.name,
                "--replicas", str(one.replicas), "--restart-delay", "100ms",
                "--update-monitor", "200ms", "--update-order", "start-first",
                "--endpoint-mode", "vip" if one.virtual else "dnsrr",
                *itertools.chain(*(("--network", network) for network in networks)), IMAGE,
            )  # fmt: skip

    def go(self) -> Outcome:
        """Change while all are asked. Result: what was wrong, and figures."""
        began_s = time.monotonic()
        with ExitStack() as stack:
            stack.callback(self._managers.close)
            stack.enter_context(self._observer.running())
            for one in SERVICES:
                eventually(f"{one.name} runs", partial(self._counts, one, one.replicas))
            stack.enter_context(self._asking())
            time.sleep(AFTER_S)
            for number in range(1, self._size.rounds + 1):
                self._round(number)
            time.sleep(AFTER_S)
            self._prober.change({})
            self._observer.look_again()
        return self._judged(time.monotonic() - began_s)

    def _round(self, number: int) -> None:
        web, api, db = SERVICES
        self._say(f"round {number}: scale")
        self._scale((web, 6), (api, 6), (db, 5))
        self._scale((web, 2), (api, 3), (db, 2))
        self._scale((web, web.replicas), (api, api.replicas), (db, db.replicas))
        self._say(f"round {number}: roll")
        self._do("service", "update", "--force", "--update-parallelism", "2", api.name)
        self._say(f"round {number}: kill a container")
        self._kill_container(db)
        if self._size.kill:
            self._say(f"round {number}: drain {DRAINED}, power cut of {DOOMED}")
            self._do("node", "update", "--availability", "drain", DRAINED)
            eventually(f"{DRAINED} is empty", lambda: not self._on(DRAINED))
            self._do("node", "update", "--availability", "active", DRAINED)
            self._kill_node()
            self._do("service", "update", "--force", "--update-parallelism", "2", web.name)

    def _scale(self, *wanted: tuple[Service, int]) -> None:
        pairs = [f"{service.name}={count}" for service, count in wanted]
        self._do("service", "scale", "--detach", *pairs)
        for service, count in wanted:
            eventually(f"{service.name} has {count}", partial(self._counts, service, count))

    def _kill_container(self, service: Service) -> None:
        victim = random.choice(sorted(self._ready(service)))
        asker = self._managers.askers(service.name)[victim]
        with self._trouble(lambda: frozenset({victim})):
            os.kill(asker.pid, signal.SIGKILL)
            eventually(
                "another one is ready",
                lambda: (
                    victim not in self._ready(service) and self._counts(service, service.replicas)
                ),
            )
        self._changes += 1

    def _kill_node(self) -> None:
        with self._trouble(lambda: self._on(DOOMED)) as dead:
            if not dead:
                raise RuntimeError(f"no task runs on {DOOMED}: its death would show nothing")
            self._lab.lab("kill", DOOMED, "--hard")

            def replaced() -> bool:
                gone = all(not dead & self._ready(one) for one in SERVICES)
                return gone and all(self._counts(one, one.replicas) for one in SERVICES)

            eventually("its tasks run elsewhere", replaced)
        self._changes += 1
        self._lab.lab("start", DOOMED)
        self._lab.lab("wait", DOOMED)

    @contextmanager
    def _trouble(self, victims: Callable[[], frozenset[str]]) -> Iterator[frozenset[str]]:
        began_s, dead = time.monotonic(), victims()
        services = frozenset(one.name for one in SERVICES if dead & self._ready(one))
        try:
            yield dead
        finally:
            self._troubles.append(Trouble(began_s, time.monotonic(), dead, services))

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Keep every ready task asking while the body runs."""
        with self._prober.running(), _repeating(self._let_ask):
            yield

    def _let_ask(self) -> None:
        wanted: dict[str, tuple[Asker, list[Questions]]] = {}
        for service in SERVICES:
            askers = self._managers.askers(service.name)
            for task_id in self._ready(service) & askers.keys():
                asker = msgspec.structs.replace(askers[task_id], networks=service.networks)
                lists: list[Questions] = [
                    partial(self._names, asker),
                    partial(self._reversed, asker),
                ]
                wanted[task_id] = (asker, lists)
        self._prober.change(wanted)

    def _names(self, asker: Asker) -> Iterator[Question]:
        for service in SERVICES:
            shared = service.networks & asker.networks
            for name in service.names():
                if not shared:
                    yield Question(Kind.STRANGER, name, service.name)
                    continue
                own = Kind.VIRTUAL if service.virtual else Kind.TASKS
                yield Question(own, name, service.name, shared)
                yield Question(Kind.TASKS, f"tasks.{name}", service.name, shared)
                yield Question(Kind.NOTHING, name, service.name, shared)
                for network in sorted(shared):
                    only = frozenset({network})
                    yield Question(own, f"{name}.{network}", service.name, only)
            if shared and service.virtual:
                yield Question(Kind.TALK, service.name, service.name, shared)

    def _reversed(self, asker: Asker) -> Iterator[Question]:
        """What addresses are called, of tasks that are ready and of those that were last."""
        for service in SERVICES:
            found: dict[str, None] = {}
            for look in self._observer.recent(service.name):
                places = sorted(look.ready, key=lambda place: place.address)
                found.update((p.address, None) for p in places if p.network in asker.networks)
                if len(found) >= REVERSED_MAX:
                    break
            for address in list(found)[:REVERSED_MAX]:
                yield Question(Kind.REVERSE, address, service.name)

    def _judged(self, seconds: float) -> Outcome:
        if self._prober.crashes:
            raise self._prober.crashes[0]
        answers: list[Answer] = self._prober.answers
        timelines = {one.name: Timeline(self._observer.seen(one.name)) for one in SERVICES}
        virtual = {one.name: self._virtual(one) for one in SERVICES}
        judged, wrong = judge(answers, timelines, virtual, self._troubles)
        by_kind = {kind.name.lower(): 0 for kind in Kind}
        for answer in answers:
            by_kind[answer.question.kind.name.lower()] += 1
        looks = (look for one in SERVICES for look in self._observer.seen(one.name))
        return Outcome(
            asked=len(answers),
            judged=judged,
            wrong=tuple(wrong),
            by_kind=by_kind,
            unanswered=sum(bool(answer.error) for answer in answers),
            slowest_s=max(answer.heard_s - answer.asked_s for answer in answers),
            seconds=seconds,
            tasks=len({place.task_id for look in looks for place in look.ready}),
            changes=self._changes,
        )

    def _virtual(self, service: Service) -> frozenset[tuple[str, str]]:
        shown: list[dict[str, Any]] = msgspec.json.decode(
            self._lab.swarmctl("service", "inspect", service.name)
        )
        names = dict(
            line.split()
            for line in self._lab.swarmctl(
                "network", "ls", "--no-trunc", "--format", "{{.ID}} {{.Name}}"
            ).splitlines()
        )
        held = shown[0]["Endpoint"].get("VirtualIPs") or []
        return frozenset((names[one["NetworkID"]], one["Addr"].partition("/")[0]) for one in held)

    def _ready(self, service: Service) -> frozenset[str]:
        return frozenset(place.task_id for place in self._observer.latest(service.name).ready)

    def _counts(self, service: Service, count: int) -> bool:
        return len(self._ready(service)) == count

    def _on(self, node: str) -> frozenset[str]:
        """Ready tasks of a node, of all services."""
        ids = self._lab.swarmctl("node", "ls", "--format", "{{.Hostname}} {{.ID}}").splitlines()
        node_id = dict(line.split()[:2] for line in ids)[node]
        return frozenset(
            task_id
            for one in SERVICES
            for task_id, asker in self._managers.askers(one.name).items()
            if asker.node_id == node_id and task_id in self._ready(one)
        )

    def _do(self, *words: str) -> None:
        self._lab.run(*words, timeout_s=COMMAND_TIMEOUT_S)
        self._changes += 1

    def _say(self, text: str) -> None:
        sys.stderr.write(f"names: {time.monotonic():.2f} {text}\n")


@contextmanager
def _repeating(work: Callable[[], None]) -> Iterator[None]:
    """Do it again and again in a thread while the body runs. Raises what it raised."""
    stop, failures = threading.Event(), list[BaseException]()

    def repeat() -> None:
        try:
            while not stop.wait(REPEAT_S):
                work()
        except BaseException as error:
            failures.append(error)

    work()
    thread = threading.Thread(target=repeat, name="repeating", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if failures:
        raise failures[0]


@contextmanager
def a_run(base: Path, size: Size) -> Iterator[Run]:
    """A lab with the services; all gone afterwards."""
    lab = Lab(f"nm{os.getpid()}", base)
    try:
        lab.up(managers=size.managers, workers=size.workers)
        run = Run(lab, size)
        run.create()
        yield run
    except BaseException:
        for node, text in lab.last_words().items():
            sys.stderr.write(f"log of {node}:\n{text}\n")
        raise
    finally:
        lab.down()
