"""Debian's kernel, fetched once into a cache and unpacked: the image and its modules.

The cache is `$XDG_CACHE_HOME/shoal/vm`, or where `--cache` says. Invariant: a directory of a kernel
that is there is whole, since it gets its name last. Refuses: a machine without apt-get, a package
that apt does not know.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BUSYBOX = "/bin/busybox"
FETCH_TIMEOUT_S = 600.0
FLAVOURS = {"cloud": "linux-image-cloud-amd64", "full": "linux-image-amd64"}
"""By name: the package that depends on the newest kernel. "full" has drivers for real machines."""


class Unavailable(Exception):
    """Something the machine needs is not here; the text says what and how to get it."""


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel. tree: laid out like a root, with `usr/lib/modules/<release>`."""

    tree: Path
    release: str

    @property
    def image(self) -> Path:
        return self.tree / f"boot/vmlinuz-{self.release}"

    @property
    def modules(self) -> Path:
        return self.tree / "usr/lib/modules" / self.release


def cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "shoal" / "vm"


def obtain(cache: Path, flavour: str) -> Kernel:
    """The kernel out of the cache, or from Debian. Raises: Unavailable."""
    cache.mkdir(parents=True, exist_ok=True)
    known = cache / f"{flavour}.package"
    if not known.exists() or not (cache / known.read_text()).is_dir():
        package = _package(FLAVOURS[flavour])
        if not (cache / package).is_dir():
            _fetch(cache, package)
        known.write_text(package)
    package = known.read_text()
    return Kernel(cache / package, package.removeprefix("linux-image-"))


def module_files(kernel: Kernel, *names: str) -> Iterator[Path]:
    """The files of these modules and of all they need, relative to the modules' directory."""
    needs = {}
    for line in (kernel.modules / "modules.dep").read_text().splitlines():
        path, _, others = line.partition(":")
        needs[path] = others.split()
    by_name = {Path(path).name.removesuffix(".ko"): path for path in needs}
    for path in sorted({one for name in names for one in _closure(needs, by_name[name])}):
        yield Path(path)


def _closure(needs: dict[str, list[str]], path: str) -> set[str]:
    return {path}.union(*(_closure(needs, other) for other in needs[path]))


def _package(meta: str) -> str:
    """The kernel's package that Debian's newest depends on."""
    told = _run("apt-cache", "depends", "--important", meta)
    for line in told.splitlines():
        words = line.split()
        if words[:1] == ["Depends:"] and words[1].startswith("linux-image-"):
            return words[1]
    raise Unavailable(f"apt knows no package {meta}: run `apt-get update`")


def _fetch(cache: Path, package: str) -> None:
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=cache) as scratch:
        os.chmod(scratch, 0o755)  # apt fetches as a user of its own
        _run("apt-get", "download", "-qq", package, cwd=scratch)
        tree = Path(scratch, "tree")
        for archive in Path(scratch).glob("*.deb"):
            _run("dpkg-deb", "-x", str(archive), str(tree))
        release = package.removeprefix("linux-image-")
        _run(BUSYBOX, "depmod", "-b", str(tree), release)
        (tree / "lib").rename(tree / "usr/lib")
        shutil.rmtree(tree / "usr/share", ignore_errors=True)
        if not shutil.which("modprobe", path="/usr/sbin:/sbin"):
            (tree / "usr/sbin").mkdir()
            (tree / "usr/sbin/modprobe").symlink_to(BUSYBOX)
        tree.rename(cache / package)


def _run(*words: str, cwd: str | None = None) -> str:
    try:
        done = subprocess.run(
            words, cwd=cwd, check=True, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S
        )
    except FileNotFoundError:
        raise Unavailable(f"{words[0]} is not here: the kernel comes from Debian") from None
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"{' '.join(words)}: {error.stderr.strip()}") from error
    return done.stdout
