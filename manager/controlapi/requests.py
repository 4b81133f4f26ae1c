"""What every request with a spec must keep: one is given, and it is not too large."""

from __future__ import annotations

from typing import TypeVar

from manager.controlapi.validate import SPEC_BYTES_MAX
from shoal.api.v1 import control_pb2 as pb
from shoal.errors import InvalidArgument

RequestT = TypeVar(
    "RequestT",
    pb.CreateServiceRequest,
    pb.UpdateServiceRequest,
    pb.UpdateNodeRequest,
    pb.CreateNetworkRequest,
)


def require_spec(request: RequestT) -> RequestT:
    """The request; refused without a spec, which would read as one with every field unset."""
    if not request.HasField("spec"):
        raise InvalidArgument("spec: must be given")
    size_bytes = request.spec.ByteSize()
    if size_bytes > SPEC_BYTES_MAX:
        raise InvalidArgument(
            f"spec: {size_bytes} bytes, at most {SPEC_BYTES_MAX}: "
            "keep large content in the image or in a mount"
        )
    return request
