"""Generate shoal/api/v1 and shoal/etcd/v1 from proto/, or check them (`--check`)."""

from __future__ import annotations

import filecmp
import os
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
API = Path("shoal/api/v1")
ETCD = Path("shoal/etcd/v1")
"""Messages alone: etcd's services are called by the names that they have on the wire."""
PACKAGES = (API, ETCD)


def generate(out: Path) -> None:
    """Write the generated modules below `out`."""
    # protoc looks for the mypy plug-in on PATH; it stands beside this interpreter.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    messages = [f"--python_out={out}", f"--mypy_out=quiet:{out}"]
    services = [f"--grpc_python_out={out}", f"--mypy_grpc_out=quiet,only_async:{out}"]
    _compile(API, messages + services)
    _compile(ETCD, messages)


def check() -> None:
    """Exit with 1 when the checked-in modules differ from what the sources give."""
    stale: set[str] = set()
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        for package in PACKAGES:
            stale |= _stale(Path(scratch), package)
    if stale:
        sys.exit(f"generated code is stale, run `make proto`: {', '.join(sorted(stale))}")


def _compile(package: Path, outputs: list[str]) -> None:
    sources = sorted(str(path) for path in (ROOT / "proto" / package).glob("*.proto"))
    if protoc.main(["protoc", f"-I{ROOT / 'proto'}", *outputs, *sources]) != 0:
        sys.exit("protoc failed")


def _stale(scratch: Path, package: Path) -> set[str]:
    made = {path.name for path in (scratch / package).iterdir()}
    kept = {path.name for path in (ROOT / package).iterdir()} - {"__init__.py", "__pycache__"}
    _, differ, missing = filecmp.cmpfiles(
        scratch / package, ROOT / package, sorted(made), shallow=False
    )
    return {str(package / name) for name in {*differ, *missing, *(kept - made)}}


if __name__ == "__main__":
    check() if "--check" in sys.argv[1:] else generate(ROOT)
