"""`python -m tests.parity [--record]`: the view from containers here and under dockerd; root.

--record: keep dockerd's as what `test_parity` compares with on machines of this version of control
groups, or in a file of one's own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path

from bench.docker import docker as a_dockerd
from bench.docker import why_not
from tests.parity.image import write_rootfs
from tests.parity.looking import IMAGE, WAYS, comparable, differences, look
from tests.parity.site import DOCKER, a_node
from tests.support.groups import VERSION

RECORD = Path(__file__).parent / f"dockerd-v{VERSION}.json"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument("--record", nargs="?", type=Path, const=RECORD, metavar="FILE")
    record = parser.parse_args().record
    if missing := why_not():
        print(missing)
        return 2
    with a_node() as host:
        ours = {way: comparable(look(host, way, DOCKER)) for way in WAYS}
    theirs = asyncio.run(_theirs())
    if record is not None:
        record.write_text(json.dumps(theirs, indent=1, sort_keys=True) + "\n")
    for way in WAYS:
        print(f"== {way}")
        for name, (here, there) in differences(ours[way], theirs[way]).items():
            print(f"{name}\n    here    {here}\n    dockerd {there}")
    return 0


async def _theirs() -> dict[str, dict[str, str]]:
    async with a_dockerd(swarm=False) as daemon:
        archive = Path(daemon.path).parent / "probe.tar"
        write_rootfs(archive)
        daemon.call("POST", f"/images/create?fromSrc=-&repo={IMAGE}", archive.read_bytes())
        host = f"unix://{daemon.path}"
        return {way: comparable(look(host, way, DOCKER)) for way in WAYS}


if __name__ == "__main__":
    sys.exit(main())
