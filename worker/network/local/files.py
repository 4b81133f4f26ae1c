"""What local networks keep on disk: the networks, and what each running container was given.

`networks.json` outlives a reboot; the containers' files are in the run directory and describe
kernel state, so they are written before it is made and removed after it is gone. Both are replaced
by rename. Formats: docs/formats.md.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import structlog

from shoal.errors import Internal
from worker.network.local.api import ContainerNetworking, Endpoint, LocalNetwork, PortBinding

FORMAT = 1

_log = structlog.get_logger()


class NetworksFile(msgspec.Struct, frozen=True, kw_only=True):
    """`networks.json`."""

    format: int = FORMAT
    networks: tuple[LocalNetwork, ...] = ()


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """What a container holds of the networks. names_ports: where its name server listens."""

    wanted: ContainerNetworking
    endpoints: tuple[Endpoint, ...]
    host_links: tuple[str, ...]
    """The host's end of each endpoint's link."""
    ports: tuple[PortBinding, ...] = ()
    names_ports: tuple[int, int] = (0, 0)
    format: int = FORMAT


class _Head(msgspec.Struct, frozen=True):
    format: int


class Files:
    """Both places. Blocking; called in threads."""

    def __init__(self, networks: Path, run_dir: Path) -> None:
        self._networks = networks
        self._holdings = run_dir

    def load_networks(self) -> tuple[LocalNetwork, ...]:
        """Nothing on the first start. Raises: OSError, Internal when it cannot be read."""
        try:
            data = self._networks.read_bytes()
        except FileNotFoundError:
            return ()
        try:
            _check_format(data)
            return msgspec.json.decode(data, type=NetworksFile).networks
        except (msgspec.MsgspecError, ValueError) as error:
            raise Internal(
                f"{self._networks}: {error}: restore it, or move it away to begin without networks"
            ) from error

    def save_networks(self, networks: tuple[LocalNetwork, ...]) -> None:
        """Replace them; synced, as somebody asked for it. Raises: OSError, the old ones stay."""
        self._networks.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        data = msgspec.json.encode(NetworksFile(networks=networks))
        _replace(self._networks, data, durable=True)

    def load_holdings(self) -> dict[str, Holding]:
        """What each container was given. A file that cannot be read describes nothing."""
        self._holdings.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = {}
        for path in self._holdings.glob("*.json"):
            try:
                data = path.read_bytes()
                _check_format(data)
                found[path.stem] = msgspec.json.decode(data, type=Holding)
            except (OSError, msgspec.MsgspecError, ValueError) as error:
                _log.error("network.holding_damaged", path=str(path), reason=str(error))
                path.unlink(missing_ok=True)
        return found

    def save_holding(self, holding: Holding) -> None:
        """Raises: OSError."""
        _replace(self._path(holding.wanted.container), msgspec.json.encode(holding), durable=False)

    def remove_holding(self, container: str) -> None:
        """Idempotent. Raises: OSError."""
        self._path(container).unlink(missing_ok=True)

    def _path(self, container: str) -> Path:
        return self._holdings / f"{container}.json"


def _check_format(data: bytes) -> None:
    head = msgspec.json.decode(data, type=_Head)
    if head.format != FORMAT:
        raise ValueError(f"its format is {head.format}, this version reads {FORMAT}")


def _replace(path: Path, data: bytes, *, durable: bool) -> None:
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
