"""Entry of the worker process with the Docker API in it; started by swarmd, not by people."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # before grpc is imported

from engine.app import extension
from engine.http.settings import TlsSettings
from worker.__main__ import a_parser, start


def main() -> None:
    """Parse the arguments and run, as `worker.__main__` does."""
    parser = a_parser("engine", __doc__)
    parser.add_argument("--docker-addr", type=_address, help="HOST:PORT of the API over TLS")
    parser.add_argument("--docker-tls", type=Path, help="directory of ca.pem, cert.pem, key.pem")
    arguments = parser.parse_args()
    if (arguments.docker_addr is None) != (arguments.docker_tls is None):
        parser.error("--docker-addr and --docker-tls need each other")
    tls = None
    if arguments.docker_addr is not None:
        host, port = arguments.docker_addr
        tls = TlsSettings(host, port, arguments.docker_tls)
    start(arguments, extension(tls))


def _address(text: str) -> tuple[str, int]:
    host, separator, port = text.rpartition(":")
    if not separator or not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} must be HOST:PORT")
    return host.strip("[]"), int(port)


if __name__ == "__main__":
    main()
