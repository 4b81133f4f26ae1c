"""Images from Dockerfiles: the docker command line's classic build against a real node."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from tests.integration.engine.daemon import DEADLINE_S, EngineNode
from tests.integration.engine.seeded import ask, ok, seeded_node, until
from worker.network import netns

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def node() -> Iterator[EngineNode]:
    made = seeded_node()
    try:
        made.start()
        yield made
        assert ok(made, "ps", "-aq") == "", "builds leave no container"
        assert not list((made.state / "engine" / "builds").iterdir()), "nor their contexts"
    finally:
        made.close()


@pytest.fixture
def context(tmp_path: Path) -> Path:
    (tmp_path / "f1").write_text("one")
    (tmp_path / "f2").write_text("two")
    (tmp_path / "dir/sub").mkdir(parents=True)
    (tmp_path / "dir/a").write_text("a")
    (tmp_path / "dir/a").chmod(0o751)
    (tmp_path / "dir/sub/b").write_text("b")
    (tmp_path / "dir/sub/link").symlink_to("../a")
    return tmp_path


def build(node: EngineNode, context: Path, text: str, *more: str):
    (context / "Dockerfile").write_text(text)
    return node.docker("build", "--network", "none", *more, str(context))


def built(node: EngineNode, context: Path, text: str, *more: str) -> str:
    ran = build(node, context, text, *more)
    assert ran.code == 0, ran
    return ran.out


def said(node: EngineNode, image: str, *command: str) -> str:
    return ok(node, "run", "--rm", "--network", "none", image, *command)


def test_stages_copies_arguments_and_commands(node, context):
    text = """ARG BASE=busybox
FROM ${BASE} AS one
ARG V=1
ENV A=$V
RUN echo building $V > /out && echo to-stdout && echo to-stderr >&2
RUN ["/bin/busybox", "touch", "/exec form"]
RUN <<EOF
echo first > /here
echo $A >> /here
EOF
COPY f1 /f1
COPY dir /d/
COPY --chown=7:8 f* dir /m/
WORKDIR /w/x
COPY f1 .
COPY f2 renamed
CMD ["cat", "/out"]
FROM busybox
COPY --from=one /out /f1 /from/
COPY --from=0 /m /m
COPY --from=one /w/x /w
LABEL from=file
ENTRYPOINT ["/bin/sh", "-c"]
"""
    out = built(node, context, text, "-t", "whole:1", "-t", "whole", "--build-arg", "V=2",
                "--label", "from=call")  # fmt: skip
    assert "to-stdout\n" in out
    assert "to-stderr\n" in out
    assert "Step 1/21 : ARG BASE=busybox\n" in out
    assert "Successfully tagged whole:1\nSuccessfully tagged whole:latest\n" in out
    shown = said(node, "whole", "cat /from/out /from/f1 && ls /m /w && stat -c '%u:%g' /m/f1")
    assert shown.split() == [
        "building", "2", "one/m:", "a", "f1", "f2", "sub", "/w:", "f1", "renamed", "0:0",
    ]  # fmt: skip
    status, image = ask(node, "GET", "/images/whole/json")
    assert status == 200
    assert image["Config"]["Labels"] == {"from": "call"}
    assert image["Config"]["Entrypoint"] == ["/bin/sh", "-c"]
    first = built(node, context, text, "-q", "--target", "one", "--build-arg", "V=2").strip()
    assert said(node, first) == "building 2"
    shown = said(node, first, "sh", "-c", "cat /here; stat -c '%u:%g %a' /m/f1 /d/a /d; ls /e*")
    assert shown.split("\n")[:5] == ["first", "2", "7:8 644", "0:0 751", "0:0 755"]
    assert said(node, first, "readlink", "/d/sub/link") == "../a"
    history = ok(node, "history", "--no-trunc", "--format", "{{.CreatedBy}}", first)
    assert "|1 V=2 /bin/sh -c echo building $V > /out" in history
    assert '/bin/sh -c #(nop)  CMD ["cat" "/out"]' in history


def test_the_cache_knows_content_and_nothing_of_times(node, context):
    text = "FROM busybox\nCOPY f1 /f1\nRUN cat /f1 > /copy\nENV A=1\n"
    assert "Using cache" not in built(node, context, text)
    os.utime(context / "f1", (1, 1))
    assert built(node, context, text).count(" ---> Using cache\n") == 3
    other = built(node, context, text.replace("A=1", "A=2"))
    assert other.count(" ---> Using cache\n") == 2
    (context / "f1").write_text("changed")
    image = built(node, context, text, "-t", "cached")
    assert "Using cache" not in image
    assert said(node, "cached", "cat", "/copy") == "changed"
    (context / "f1").chmod(0o600)
    assert "Using cache" not in built(node, context, text)
    assert "Using cache" not in built(node, context, text, "--no-cache")
    assert "Using cache" not in built(node, context, text, "--cache-from", "busybox")
    assert built(node, context, text, "--cache-from", "cached").count("Using cache") == 0
    (context / "f1").chmod(0o644)
    assert built(node, context, text, "--cache-from", "cached").count("Using cache") == 3


def test_triggers_run_where_the_image_is_used(node, context):
    built(node, context, "FROM busybox\nONBUILD RUN echo hi > /trigger\n", "-t", "parent")
    out = built(node, context, "FROM parent\n", "-t", "child")
    assert "# Executing 1 build trigger\n" in out
    assert said(node, "child", "cat", "/trigger") == "hi"
    status, image = ask(node, "GET", "/images/child/json")
    assert (status, image["Config"].get("OnBuild") or None) == (200, None)


def test_archives_are_unpacked_by_add_and_copied_by_copy(node, context):
    with tarfile.open(context / "a.tar.gz", "w:gz") as tar:
        tar.add(context / "dir", "packed")
    (context / ".dockerignore").write_text("*\n!a.tar.gz\n!dir\ndir/sub\n")
    text = "FROM busybox\nADD a.tar.gz /x/\nCOPY a.tar.gz /y/\nCOPY . /all/\n"
    built(node, context, text, "-t", "archives")
    shown = said(node, "archives", "sh", "-c", "cat /x/packed/sub/b; ls -A /y /all /all/dir")
    assert shown.split() == ["b/all:", "a.tar.gz", "dir", "/all/dir:", "a", "/y:", "a.tar.gz"]


def test_no_link_leads_out_of_a_context_or_an_image(node, context, tmp_path_factory):
    secret = tmp_path_factory.mktemp("host") / "secret"
    secret.write_text("of the host")
    (context / "out").symlink_to(secret)
    (context / "up").symlink_to("../" * 20 + str(secret)[1:])
    for name in ("out", "up", f"../{secret.name}", str(secret)):
        ran = build(node, context, f"FROM busybox\nCOPY {name} /f\n")
        assert ran.code == 1
        assert "file not found in build context or excluded by .dockerignore" in ran.err
    text = f"FROM busybox\nRUN ln -s {secret.parent} /esc && ln -s /tmp /in\n"
    text += "COPY f1 /esc/f1\nCOPY f1 /in/f1\n"
    built(node, context, text, "-t", "escape")
    assert sorted(os.listdir(secret.parent)) == ["secret"]
    assert said(node, "escape", "cat", "/tmp/f1", f"{secret.parent}/f1") == "oneone"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("BADINSTR x\n", "dockerfile parse error line 1: unknown instruction: BADINSTR"),
        ("FROM busybox\nRUN false\n", "The command '/bin/sh -c false' returned a non-zero code: 1"),
        ("FROM busybox\nRUN [\"/none\"]\n", "/none"),
        ("FROM busybox\nCOPY none /f\n", "COPY failed: file not found in build context or excluded"
         " by .dockerignore: stat none: file does not exist"),
        ("FROM busybox\nCOPY n* /f\n", "COPY failed: no source files were specified"),
        ("FROM busybox\nCOPY f1 f2 /f\n", "the destination must be a directory and end with a /"),
        ("FROM busybox\nCOPY --from=3 f1 /f\n", "invalid from flag value 3"),
        ("FROM busybox\nCOPY --chown=nobody f1 /f\n", "nobody"),
        ("FROM busybox\nCOPY f1 /etc/passwd/x\n", "COPY failed: "),
        ("FROM busybox\nADD http://127.0.0.1:9/x /f\n", "ADD failed: Get 'http://127.0.0.1:9/x'"),
        ("FROM busybox\nADD http://127.0.0.1:9/ /f/\n", "ADD failed: cannot determine filename"),
        ("FROM busybox\nCOPY http://127.0.0.1/x /f\n", "COPY failed: source can't be a URL"),
        ("FROM busybox\nADD git://127.0.0.1/x /f\n", "only http:// and https:// are fetched"),
        ("FROM busybox\nEXPOSE 99999\n", "EXPOSE failed: port"),
    ],
)  # fmt: skip
def test_what_fails_says_why_and_leaves_nothing(node, context, text, error):
    ran = build(node, context, text)
    assert ran.code != 0
    assert error in ran.err, ran
    assert ok(node, "ps", "-aq") == ""


class Site(BaseHTTPRequestHandler):
    """What a build fetches, in the node's network."""

    files: ClassVar[dict[str, bytes]] = {}

    def do_GET(self) -> None:
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/a%20b")
            self.end_headers()
            return
        content = self.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
        self.send_header("Content-Length", str(len(content) + 7 * (self.path == "/short")))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def site(node) -> Iterator[str]:
    """Its address."""
    with netns.entered(Path(node.prefix[1].removeprefix("--net="))):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(DEADLINE_S)
        server.server_close()


def test_add_fetches_what_is_on_the_web(node, context, site):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(context / "f1", "inside")
    Site.files = {"/a%20b": b"fetched", "/t.tar": packed.getvalue(), "/short": b"half"}
    text = f"FROM busybox\nADD {site}/a%20b f1 {site}/t.tar /d/\nADD {site}/moved /alone\n"
    out = built(node, context, text, "-t", "fetched")
    assert "Using cache" not in out
    listed = said(node, "fetched", "sh", "-c", "stat -c '%a %u %Y %n' /d/* /alone; cat '/d/a b'")
    assert listed.splitlines() == [
        "600 0 1445412480 /d/a b", "644 0 " + str(int((context / "f1").stat().st_mtime)) + " /d/f1",
        "600 0 1445412480 /d/t.tar", "600 0 1445412480 /alone", "fetched",
    ]  # fmt: skip
    assert built(node, context, text).count("Using cache") == 2
    Site.files["/a%20b"] = b"changed"
    assert "Using cache" not in built(node, context, text)
    for path, why in (("none", "with status 404 Not Found"), ("short", "ADD failed: Get")):
        ran = build(node, context, f"FROM busybox\nADD {site}/{path} /f\n")
        assert why in ran.err, ran
    until(lambda: not list((node.state / "engine" / "builds").iterdir()))


def test_a_base_of_another_platform_is_pulled_anew(node, context):
    """The one that is here is not taken for it; where it would come from is not reached here."""
    machine = ok(node, "image", "inspect", "--format", "{{.Os}}/{{.Architecture}}", "busybox")
    assert build(node, context, f"FROM --platform={machine} busybox\n").code == 0
    for text, options in (
        ("FROM --platform=linux/s390x busybox\n", ()),
        ("FROM busybox\n", ("--platform", "linux/s390x")),
    ):
        ran = build(node, context, text, *options)
        assert ran.code != 0
        assert "registry-1.docker.io" in ran.err, ran


def test_a_missing_dockerfile_and_a_broken_context(node, context):
    ran = node.docker("build", "-f", str(context / "none"), str(context))
    assert "none: no such file or directory" in ran.err
    status, words = ask(node, "POST", "/build?dockerfile=none", {})
    assert status == 400, words
    status, words = ask(node, "POST", "/build?version=2", {})
    assert (status, "classic builder" in words["message"]) == (501, True)


def test_a_dockerfile_from_standard_input_is_put_into_the_context(node, context):
    """The command line writes such an archive without its end."""
    done = subprocess.run(
        ["docker", "-H", f"unix://{node.socket}", "build", "--network", "none", "-q", "-f", "-",
         str(context)],
        input=b"FROM busybox\nCOPY f1 /f1\n", capture_output=True, check=False,
        env={**os.environ, "DOCKER_BUILDKIT": "0"},
    )  # fmt: skip
    assert done.stdout.startswith(b"sha256:"), done


def start_long_build(node: EngineNode, context: Path) -> subprocess.Popen[bytes]:
    """A build in the midst of a command."""
    (context / "Dockerfile").write_text("FROM busybox\nRUN echo go > /f && sleep 1000\n")
    client = subprocess.Popen(
        ["docker", "-H", f"unix://{node.socket}", "build", "--network", "none", str(context)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "DOCKER_BUILDKIT": "0"},
    )  # fmt: skip
    until(lambda: ok(node, "ps", "-q"))
    return client


def test_a_client_that_goes_away_ends_its_build(node, context):
    client = start_long_build(node, context)
    client.send_signal(signal.SIGKILL)
    client.wait(DEADLINE_S)
    until(lambda: not ok(node, "ps", "-aq"))
    until(lambda: not list((node.state / "engine" / "builds").iterdir()))


def test_a_killed_worker_leaves_no_build(node, context):
    client = start_long_build(node, context)
    node.stop(signal.SIGKILL)
    node.start()
    client.wait(DEADLINE_S)
    deadline_s = time.monotonic() + DEADLINE_S
    while node.docker("ps", "-aq") != (0, "", ""):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    assert not list((node.state / "engine" / "builds").iterdir())
    assert "busybox" in ok(node, "images")
