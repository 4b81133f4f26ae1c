"""Lines of services and tasks as `docker service logs` reads them. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

from engine.http import stdcopy
from shoal.api.v1 import logs_pb2
from shoal.clock import NS_PER_S
from shoal.model.row import Row


class LineStyle(Row, frozen=True):
    """How lines are shown. framed: each in a frame that names its stream."""

    framed: bool
    timestamps: bool = False
    details: bool = False

    def line(self, message: logs_pb2.LogMessage) -> bytes:
        """One line: time, where it comes from, text."""
        time = f"{_time_text(message.timestamp_ns)} " if self.timestamps else ""
        origin = f"{_origin(message)} " if self.details else ""
        text = f"{time}{origin}".encode() + message.data.removesuffix(b"\n") + b"\n"
        if not self.framed:
            return text
        is_error = message.stream == logs_pb2.LOG_STREAM_STDERR
        return stdcopy.frame(stdcopy.STDERR if is_error else stdcopy.STDOUT, text)

    def failure(self, text: str) -> bytes:
        """Why lines are missing; clients end with it as their error."""
        message = f"incomplete log stream: {text}\n".encode()
        return stdcopy.frame(stdcopy.SYSTEM_ERROR, message) if self.framed else message


def _origin(message: logs_pb2.LogMessage) -> str:
    """Where it comes from, which clients resolve to names, and what the log driver says of it."""
    context = message.context
    own = f",{message.details}" if message.details else ""
    return (
        f"com.docker.swarm.node.id={context.node_id}"
        f",com.docker.swarm.service.id={context.service_id}"
        f",com.docker.swarm.task.id={context.task_id}{own}"
    )


def _time_text(moment_ns: int) -> str:
    """RFC 3339 with all nine digits."""
    seconds, rest_ns = divmod(moment_ns, NS_PER_S)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest_ns:09d}Z"
