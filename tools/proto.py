"""Generate shoal/api/v1 from proto/, or check that it is up to date (`--check`)."""

from __future__ import annotations

import filecmp
import os
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path("shoal/api/v1")


def generate(out: Path) -> None:
    """Write the generated modules below `out`."""
    # protoc looks for the mypy plug-in on PATH; it stands beside this interpreter.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    sources = sorted(str(path) for path in (ROOT / "proto" / PACKAGE).glob("*.proto"))
    arguments = [
        "protoc",
        f"-I{ROOT / 'proto'}",
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_out=quiet:{out}",
        f"--mypy_grpc_out=quiet,only_async:{out}",
        *sources,
    ]
    if protoc.main(arguments) != 0:
        sys.exit("protoc failed")


def check() -> None:
    """Exit with 1 when the checked-in modules differ from what the sources give."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        made = {path.name for path in (Path(scratch) / PACKAGE).iterdir()}
        kept = {path.name for path in (ROOT / PACKAGE).iterdir()} - {"__init__.py", "__pycache__"}
        _, differ, missing = filecmp.cmpfiles(
            Path(scratch) / PACKAGE, ROOT / PACKAGE, sorted(made), shallow=False
        )
        stale = sorted({*differ, *missing, *(kept - made)})
    if stale:
        sys.exit(f"generated code is stale, run `make proto`: {', '.join(stale)}")


if __name__ == "__main__":
    check() if "--check" in sys.argv[1:] else generate(ROOT)
