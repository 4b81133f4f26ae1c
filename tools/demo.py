"""The demo: a cluster on this machine with a web service, killed in two ways and healed each time.

Every step prints the command it runs, and runs nothing but those commands, so that all of it can
be repeated by hand. `up` leaves the cluster running and replaces one of an earlier run; `down`
removes everything. Each wait has a deadline and says what it waited for.

    demo.py up | down | rootfs FILE
"""

from __future__ import annotations

import http.client
import io
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple, NoReturn, TypeVar

ROOT = Path(__file__).resolve().parent.parent
SWARMCTL = ".venv/bin/swarmctl"
LAB = "demo"
ARCHIVE = "build/demo/web.tar"
IMAGE = "demo/web:1"
PORT = 8080
METRICS_PORT = 9323
REPLICAS = 3
VICTIM = "w1"
TIMEOUT_S = 60.0
COMMAND_TIMEOUT_S = 120.0

# Answers "/": who is asked by whom. Its second line goes to the container's log.
PAGE = """#!/bin/sh
echo "Content-Type: text/plain"
echo
echo "container $(hostname), task $TASK, asked by $REMOTE_ADDR"
echo "asked by $REMOTE_ADDR" >&2
"""
APPLETS = ("sh", "httpd", "hostname", "cat", "echo", "ls", "ps", "wget", "kill", "sleep")

ResultT = TypeVar("ResultT")


class Answer(str):
    """One line of the web service."""

    @property
    def container(self) -> str:
        """Host name of the container that answered."""
        return self.split()[1].rstrip(",")

    @property
    def client(self) -> str:
        """The address it saw the question come from."""
        return self.split()[-1]


class Page(NamedTuple):
    """What a server sent, and the address it was asked from."""

    body: str
    own_address: str


def main() -> None:
    """Run the subcommand."""
    os.chdir(ROOT)
    match sys.argv[1:]:
        case ["up"]:
            require_root()
            up()
        case ["down"]:
            require_root()
            down()
        case ["rootfs", path]:
            write_rootfs(Path(path))
        case _:
            sys.exit("usage: demo.py up | down | rootfs FILE")


def up() -> None:
    """The whole demo; the cluster stays."""
    started_s = time.monotonic()
    title("A cluster: one manager and two workers, each in its own network namespace")
    swarmctl("lab", "down", "--name", LAB)
    swarmctl("lab", "up", "--name", LAB, "--managers", "1", "--workers", "2")
    swarmctl("node", "ls")
    nodes = dict(lines_of("lab", "ps", "--name", LAB, "--format", "{{.Name}} {{.Address}}"))

    title("An image on every node: Debian's busybox with a small web server")
    run([".venv/bin/python", "tools/demo.py", "rootfs", ARCHIVE])
    command = 'CMD ["httpd", "-f", "-v", "-p", "0.0.0.0:80", "-h", "/www"]'
    swarmctl("image", "import", "--change", command, ARCHIVE, IMAGE)

    title(f"A service of {REPLICAS} tasks, published on port {PORT} of every node")
    # A short delay before a task is replaced: this is to be watched.
    swarmctl(
        "service", "create", "--name", "web", "--replicas", str(REPLICAS),
        "--publish", f"{PORT}:80", "--env", "TASK={{.Task.Name}}", "--restart-delay", "1s", IMAGE,
    )  # fmt: skip
    wait_for_tasks(lambda _: True)
    ask_everywhere(nodes)
    show_client_addresses()
    kill_a_container(nodes)
    kill_a_node(nodes)
    bring_back(nodes)
    farewell(nodes, time.monotonic() - started_s)


def down() -> None:
    """Remove the lab and what the demo has written."""
    swarmctl("lab", "down", "--name", LAB)
    shutil.rmtree(ROOT / Path(ARCHIVE).parent, ignore_errors=True)


def ask_everywhere(nodes: dict[str, str]) -> None:
    """Fetch the page through every node until every container has answered."""
    title("Every node answers for every container")
    seen: set[str] = set()
    for name, address in nodes.items():
        note(f"$ curl http://{address}:{PORT}/        # through {name}")
        answers = [until(f"answer through {name}", partial(ask, address))]
        answers += [ask(address) for _ in range(3 * REPLICAS)]
        failed = answers.count(None)
        if failed:
            fail(f"{failed} of {len(answers)} requests through {name} got no answer")
        for line in sorted({answer for answer in answers if answer}):
            print(f"  {line}")
        seen |= {answer.container for answer in answers if answer}
    if len(seen) != REPLICAS:
        fail(f"{REPLICAS} containers should have answered, but these did: {sorted(seen)}")


def show_client_addresses() -> None:
    """`ask` has compared them; here they are in the containers' own logs."""
    title("Containers see the client's own address, whichever node it entered at")
    swarmctl("service", "logs", "--tail", "2", "web")


def kill_a_container(nodes: dict[str, str]) -> None:
    """SIGKILL one container's process and see its task replaced."""
    title("A container is killed: its task is replaced")
    task, node = running_tasks()[0]
    listing = swarmctl("lab", "top", "--name", LAB, node, "--kind", "container")
    servers = [line.split() for line in listing.splitlines() if " httpd " in line]
    if not servers:
        fail(f"no container of {node} runs httpd, but task {task} is running there")
    before = {known for known, _ in running_tasks()}
    started_s = time.monotonic()
    run(["kill", "-9", servers[0][0]])
    wait_for_tasks(lambda tasks: {known for known, _ in tasks} != before)
    note(f"replaced after {time.monotonic() - started_s:.1f} s")
    swarmctl("service", "ps", "web")
    check_answers(nodes)


def kill_a_node(nodes: dict[str, str]) -> None:
    """Cut a node's power and see its tasks move."""
    title(f"Node {VICTIM} loses power: its tasks are replaced on the others")
    started_s = time.monotonic()
    swarmctl("lab", "kill", "--name", LAB, VICTIM, "--hard")
    wait_for_tasks(lambda tasks: VICTIM not in {node for _, node in tasks})
    note(f"replaced after {time.monotonic() - started_s:.1f} s")
    swarmctl("node", "ls")
    swarmctl("service", "ps", "--filter", "desired-state=running", "web")
    check_answers({name: address for name, address in nodes.items() if name != VICTIM})


def bring_back(nodes: dict[str, str]) -> None:
    """Start the node again; it takes part in the routing at once."""
    title(f"Node {VICTIM} comes back")
    swarmctl("lab", "start", "--name", LAB, VICTIM)
    swarmctl("lab", "wait", "--name", LAB, VICTIM)
    check_answers(nodes)
    title("Every node has metrics for Prometheus")
    for address in nodes.values():
        note(f"$ curl http://{address}:{METRICS_PORT}/metrics")
        page = fetch(address, METRICS_PORT, "/metrics")
        if page is None or not page.body.strip():
            fail(f"no metrics on {address}:{METRICS_PORT}")
        samples = [line for line in page.body.splitlines() if not line.startswith("#")]
        print(f"  {len(samples)} samples, as {samples[0]}")


def farewell(nodes: dict[str, str], took_s: float) -> None:
    """Say what can be tried next."""
    manager = next(iter(nodes.values()))
    title(f"Done in {took_s:.0f} s. The cluster stays up; try")
    print(f"""\
  sudo {SWARMCTL} lab ps --name {LAB}
  sudo {SWARMCTL} service update --replicas 6 web
  sudo {SWARMCTL} service logs --follow web
  sudo {SWARMCTL} lab pause --name {LAB} w2        # also: resume, partition, heal, kill, start
  curl http://{manager}:{PORT}/
  curl http://{manager}:{METRICS_PORT}/metrics
  sudo make demo-down""")


def check_answers(nodes: dict[str, str]) -> None:
    """Every node answers, each time, once the new routes have reached it."""
    for name, address in nodes.items():
        until(f"steady answers through {name}", partial(ask_often, address))
    note(f"every request through {', '.join(nodes)} is answered")


def ask(address: str) -> Answer | None:
    """The page, fetched through the node at `address`; None without an answer."""
    page = fetch(address, PORT, "/")
    if page is None:
        return None
    answer = Answer(page.body.strip())
    if answer.client != page.own_address:
        fail(f"{page.own_address} asked {address}, but the container saw {answer.client}")
    return answer


def fetch(address: str, port: int, path: str) -> Page | None:
    """GET on a connection of its own; None without a good answer."""
    connection = http.client.HTTPConnection(address, port, timeout=3)
    try:
        connection.connect()
        own_address = connection.sock.getsockname()[0]
        connection.request("GET", path, headers={"Connection": "close"})
        response = connection.getresponse()
        body = response.read().decode()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return Page(body, own_address) if response.status == 200 else None


def ask_often(address: str) -> bool:
    """Whether the node answers many times in a row."""
    return all(ask(address) for _ in range(3 * REPLICAS))


def running_tasks() -> list[tuple[str, str]]:
    """Id and node of the tasks that should run and do."""
    columns = "{{.ID}} {{.Node}} {{.CurrentState}}"
    words = ("service", "ps", "--filter", "desired-state=running", "--format", columns, "web")
    rows = [line.split() for line in quietly(*words).splitlines()]
    return [(row[0], row[1]) for row in rows if row[2] == "Running"]


def wait_for_tasks(check: Callable[[list[tuple[str, str]]], bool]) -> None:
    """Wait until all replicas run and `check` agrees."""

    def settled() -> bool:
        tasks = running_tasks()
        return len(tasks) == REPLICAS and check(tasks)

    until(f"{REPLICAS} running tasks", settled)


def until(what: str, check: Callable[[], ResultT], timeout_s: float = TIMEOUT_S) -> ResultT:
    """The first true result of `check`; ends the demo after the deadline."""
    deadline_s = time.monotonic() + timeout_s
    while not (result := check()):
        if time.monotonic() > deadline_s:
            fail(f"no {what} within {timeout_s:g} s")
        time.sleep(0.1)
    return result


def swarmctl(*words: str) -> str:
    """Run swarmctl visibly; its output is shown and returned."""
    return run([SWARMCTL, *words])


def lines_of(*words: str) -> list[tuple[str, str]]:
    """The two columns that swarmctl prints."""
    rows = [line.split(maxsplit=1) for line in quietly(*words).splitlines()]
    return [(row[0], row[1]) for row in rows]


def run(words: list[str]) -> str:
    """Show a command, run it, show what it prints. Ends the demo when it fails."""
    note(f"$ {shlex.join(words)}")
    try:
        done = subprocess.run(
            words,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            env=environment(),
            timeout=COMMAND_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        show((error.stdout or b"").decode(errors="replace"))
        fail(f"that did not end within {COMMAND_TIMEOUT_S:g} s")
    show(done.stdout)
    if done.returncode != 0:
        fail(f"that failed with exit status {done.returncode}")
    return done.stdout


def show(text: str) -> None:
    """Print what a command printed, indented."""
    sys.stdout.write("".join(f"  {line}\n" for line in text.splitlines()))
    sys.stdout.flush()


def quietly(*words: str) -> str:
    """Run swarmctl without showing it; "" when it fails, as polls may."""
    try:
        done = subprocess.run(
            [SWARMCTL, *words],
            capture_output=True,
            text=True,
            check=False,
            env=environment(),
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout if done.returncode == 0 else ""


def environment() -> dict[str, str]:
    """Ours, without what would make swarmctl talk to another cluster."""
    return {k: v for k, v in os.environ.items() if k not in ("SWARM_HOST", "SWARM_CONTEXT")}


def fail(message: str) -> NoReturn:
    """Show what is known of the cluster and end the demo."""
    sys.stdout.flush()
    print(f"\ndemo: {message}\n", file=sys.stderr)
    for words in (["service", "ps", "--no-trunc", "web"], ["lab", "ps", "--name", LAB]):
        print(f"$ swarmctl {shlex.join(words)}\n{quietly(*words)}", file=sys.stderr)
    for node in quietly("lab", "ps", "-q", "--name", LAB).split():
        log = quietly("lab", "logs", "--name", LAB, "--tail", "15", node)
        print(f"--- last lines of {node}'s log ---\n{log}", file=sys.stderr)
    sys.exit(1)


def title(text: str) -> None:
    """Announce a step."""
    print(f"\n== {text}", flush=True)


def note(text: str) -> None:
    """One line in the demo's own voice."""
    print(text, flush=True)


def require_root() -> None:
    """End with the remedy unless this is root."""
    if os.geteuid() != 0:
        sys.exit("the demo makes namespaces and control groups: run `sudo make demo`")


def write_rootfs(path: Path) -> None:
    """Write a root file system of busybox alone, with the page, as a tar archive."""
    busybox = shutil.which("busybox") or sys.exit("busybox is missing: run `sudo make setup`")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for directory in ("bin", "dev", "etc", "proc", "sys", "tmp", "www", "www/cgi-bin"):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if directory == "tmp" else 0o755
            archive.addfile(entry)
        add_file(archive, "bin/busybox", Path(busybox).read_bytes(), 0o755)
        add_file(archive, "etc/passwd", b"root:x:0:0:root:/:/bin/sh\n", 0o644)
        add_file(archive, "etc/group", b"root:x:0:\n", 0o644)
        add_file(archive, "www/cgi-bin/index.cgi", PAGE.encode(), 0o755)
        for applet in APPLETS:
            entry = tarfile.TarInfo(f"bin/{applet}")
            entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, "busybox", 0o777
            archive.addfile(entry)


def add_file(archive: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    """Add a file owned by root."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))


if __name__ == "__main__":
    main()
