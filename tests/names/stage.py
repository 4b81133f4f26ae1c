"""The stage: a lab with three services on two networks, all of whose tasks ask for names.

`web` is on the network front, `db` on back, `api` on both: web and db are strangers to each other.
db has no virtual address. `Stage` keeps every ready task asking and every look at the managers;
what happens meanwhile is its users' matter.
"""

from __future__ import annotations

import itertools
import os
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
AFTER_S = 0.5
"""Questions before the first and after the last change."""
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
    published: int = 0
    """A port: a task with one is ready when its server listens. 0: none, and nobody asks for
    pages."""
    virtual: bool = True

    def names(self) -> tuple[str, str]:
        """What others call it."""
        return self.name, self.alias


SERVICES = (
    Service("web", "www", frozenset({"front"}), 3, published=8081),
    Service("api", "rest", frozenset({"front", "back"}), 4, published=8082),
    Service("db", "store", frozenset({"back"}), 3, virtual=False),
)


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
    killed: int
    """Nodes whose power was cut."""


class Stage:
    """One lab with the three services, asked."""

    def __init__(self, lab: Lab, *, managers: int, pause_s: float) -> None:
        """pause_s: of each asker between questions."""
        self.lab = lab
        sockets = [lab.socket(f"m{number}") for number in range(1, managers + 1)]
        self.managers = Managers([Path(one.removeprefix("unix://")) for one in sockets])
        self.observer = Observer(self.managers, [one.name for one in SERVICES])
        self.prober = Prober(pause_s=pause_s)
        self.changes, self.killed = 0, 0
        self.kept: frozenset[str] = frozenset()
        """Tasks that go on asking though they are not ready: their node is cut off."""
        self._began_s = time.monotonic()
        self._troubles: list[Trouble] = []

    def create(self) -> None:
        """Image, networks and services."""
        archive = self.lab.base / "polite.tar"
        write_image(archive)
        command = 'CMD ["/server","80","0"]'
        self.lab.swarmctl("image", "import", str(archive), IMAGE, "--change", command)
        for network in ("front", "back"):
            self.lab.swarmctl("network", "create", network)
        for one in SERVICES:
            networks = [f"name={network},alias={one.alias}" for network in sorted(one.networks)]
            ports = ["--publish", f"{one.published}:80"] if one.published else []
            self.do(
                "service", "create", "--detach", "--name", one.name,
                "--replicas", str(one.replicas), "--restart-delay", "100ms",
                "--update-monitor", "200ms", "--update-order", "start-first",
                "--endpoint-mode", "vip" if one.virtual else "dnsrr",
                *itertools.chain(*(("--network", network) for network in networks)), *ports, IMAGE,
            )  # fmt: skip

    @contextmanager
    def playing(self) -> Iterator[None]:
        """Look and ask while the body runs; the last look is after the last answer."""
        with ExitStack() as stack:
            stack.callback(self.managers.close)
            stack.enter_context(self.observer.running())
            for one in SERVICES:
                eventually(f"{one.name} runs", partial(self.counts, one, one.replicas))
            with self._asking():
                time.sleep(AFTER_S)
                yield
                time.sleep(AFTER_S)
                self.prober.change({})
            self.observer.look_again()

    def scale(self, *wanted: tuple[Service, int]) -> None:
        pairs = [f"{service.name}={count}" for service, count in wanted]
        self.do("service", "scale", "--detach", *pairs)
        for service, count in wanted:
            eventually(f"{service.name} has {count}", partial(self.counts, service, count))

    @contextmanager
    def trouble(self, victims: Callable[[], frozenset[str]]) -> Iterator[frozenset[str]]:
        began_s, dead = time.monotonic(), victims()
        services = frozenset(one.name for one in SERVICES if dead & self.ready(one))
        try:
            yield dead
        finally:
            self._troubles.append(Trouble(began_s, time.monotonic(), dead, services))

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Keep every ready task asking while the body runs."""
        with self.prober.running(), _repeating(self._let_ask):
            yield

    def _let_ask(self) -> None:
        wanted: dict[str, tuple[Asker, list[Questions]]] = {}
        for service in SERVICES:
            askers = self.managers.askers(service.name)
            for task_id in (self.ready(service) | self.kept) & askers.keys():
                asker = msgspec.structs.replace(askers[task_id], networks=service.networks)
                lists: list[Questions] = [
                    partial(self._names, asker),
                    partial(self._reversed, asker),
                ]
                wanted[task_id] = (asker, lists)
        self.prober.change(wanted)

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
            if shared and service.published:
                yield Question(Kind.TALK, service.name, service.name, shared)

    def _reversed(self, asker: Asker) -> Iterator[Question]:
        """What addresses are called, of tasks that are ready and of those that were last."""
        for service in SERVICES:
            found: dict[str, None] = {}
            for look in self.observer.recent(service.name):
                places = sorted(look.ready, key=lambda place: place.address)
                found.update((p.address, None) for p in places if p.network in asker.networks)
                if len(found) >= REVERSED_MAX:
                    break
            for address in list(found)[:REVERSED_MAX]:
                yield Question(Kind.REVERSE, address, service.name)

    def judged(self) -> Outcome:
        """All answers, judged, and figures."""
        if self.prober.crashes:
            raise self.prober.crashes[0]
        answers: list[Answer] = self.prober.answers
        timelines, virtual = self.timelines(), self.virtual()
        judged, wrong = judge(answers, timelines, virtual, self._troubles)
        by_kind = {kind.name.lower(): 0 for kind in Kind}
        for answer in answers:
            by_kind[answer.question.kind.name.lower()] += 1
        looks = (look for one in SERVICES for look in self.observer.seen(one.name))
        return Outcome(
            asked=len(answers),
            judged=judged,
            wrong=tuple(wrong),
            by_kind=by_kind,
            unanswered=sum(bool(answer.error) for answer in answers),
            slowest_s=max(answer.heard_s - answer.asked_s for answer in answers),
            seconds=time.monotonic() - self._began_s,
            tasks=len({place.task_id for look in looks for place in look.ready}),
            changes=self.changes,
            killed=self.killed,
        )

    def timelines(self) -> dict[str, Timeline]:
        """All looks so far, by service."""
        return {one.name: Timeline(self.observer.seen(one.name)) for one in SERVICES}

    def virtual(self) -> dict[str, frozenset[tuple[str, str]]]:
        """Networks and virtual addresses, by service."""
        names, found = self.network_names(), {}
        for one in SERVICES:
            shown: list[dict[str, Any]] = msgspec.json.decode(
                self.lab.swarmctl("service", "inspect", one.name)
            )
            found[one.name] = frozenset(
                (names[held["NetworkID"]], held["Addr"].partition("/")[0])
                for held in shown[0]["Endpoint"].get("VirtualIPs") or []
            )
        return found

    def network_names(self) -> dict[str, str]:
        """By id."""
        form = ("--no-trunc", "--format", "{{.ID}} {{.Name}}")
        lines = self.lab.swarmctl("network", "ls", *form).splitlines()
        return dict(line.split() for line in lines)

    def ready(self, service: Service) -> frozenset[str]:
        return frozenset(place.task_id for place in self.observer.latest(service.name).ready)

    def counts(self, service: Service, count: int) -> bool:
        return len(self.ready(service)) == count

    def on(self, node: str) -> frozenset[str]:
        """Ready tasks of a node, of all services."""
        ids = self.lab.swarmctl("node", "ls", "--format", "{{.Hostname}} {{.ID}}").splitlines()
        node_id = dict(line.split()[:2] for line in ids)[node]
        return frozenset(
            task_id
            for one in SERVICES
            for task_id, asker in self.managers.askers(one.name).items()
            if asker.node_id == node_id and task_id in self.ready(one)
        )

    def do(self, *words: str) -> None:
        self.lab.run(*words, timeout_s=COMMAND_TIMEOUT_S)
        self.changes += 1

    def say(self, text: str) -> None:
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
def a_stage(base: Path, *, managers: int, workers: int, pause_s: float) -> Iterator[Stage]:
    """A lab with the services; all gone afterwards."""
    lab = Lab(f"nm{os.getpid()}", base)
    try:
        lab.up(managers=managers, workers=workers)
        stage = Stage(lab, managers=managers, pause_s=pause_s)
        stage.create()
        yield stage
    except BaseException:
        for node, text in lab.last_words().items():
            sys.stderr.write(f"log of {node}:\n{text}\n")
        raise
    finally:
        lab.down()
