"""Downloads from a server on the loopback interface: what is refused, and what is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from engine.build.copying import name_of
from shoal.errors import InvalidArgument, ResourceExhausted
from worker.files.downloads import download


class _Site(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        if self.path == "/sized":
            self.send_header("Content-Length", "3000")
        self.send_header("Last-Modified", "no date")
        self.end_headers()
        self.wfile.write(b"x" * 3000)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def site() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Site) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(40)


@pytest.mark.parametrize("path", ["sized", "unsized"])
async def test_what_is_too_large_is_refused_whether_announced_or_not(
    site: str, tmp_path: Path, path: str
):
    told: list[tuple[int, int]] = []

    async def progress(come: int, total: int) -> None:
        told.append((come, total))

    with pytest.raises(ResourceExhausted, match="bytes"):
        await download(f"{site}/{path}", tmp_path / "a", progress, bytes_max=2999)
    await download(f"{site}/{path}", tmp_path / "b", progress, bytes_max=3000)
    assert told[-1] == (3000, 3000 if path == "sized" else 0)
    found = (tmp_path / "b").stat()
    assert (found.st_size, found.st_mode & 0o777, found.st_mtime_ns) == (3000, 0o600, 0)


async def test_what_is_no_url(tmp_path: Path):
    async def progress(come: int, total: int) -> None:
        raise AssertionError

    with pytest.raises(InvalidArgument):
        await download("http://", tmp_path / "a", progress)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://h/a/b.tar?x=/y#/z", "b.tar"),
        ("http://h/a%2fb", "b"),
        ("http://h/%2e%2e", ""),
        ("http://h/a/", ""),
        ("http://h", ""),
        ("http://h/%00", ""),
    ],
)
def test_what_a_file_is_called(url: str, name: str):
    assert name_of(url) == name
