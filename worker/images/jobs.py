"""What the store asks of its child processes, and what they answer.

One job per process, given as one JSON argument; the archive comes on standard input, the answer
goes to standard output as one JSON document.
"""

from __future__ import annotations

import msgspec

from shoal.errors import ERROR_BY_CODE, Code, Internal, SwarmError
from worker.images.model import UnpackLimits


class UnpackJob(msgspec.Struct, frozen=True, tag="unpack"):
    """Apply one layer to `destination`; keep the archive in `keep_blob` unless that is empty.

    A `destination` of "" only verifies: digests are computed, nothing is written.
    """

    destination: str
    keep_blob: str
    limits: UnpackLimits


class SplitJob(msgspec.Struct, frozen=True, tag="split"):
    """Write each file of an image archive to `destination` as m0, m1, ..."""

    destination: str
    members_max: int
    limits: UnpackLimits


class PackJob(msgspec.Struct, frozen=True, tag="pack"):
    """Write what an overlay's `upper` directory has changed to `blob`, as a gzip layer."""

    upper: str
    blob: str
    limits: UnpackLimits


Job = UnpackJob | SplitJob | PackJob


class Unpacked(msgspec.Struct, frozen=True, tag="unpacked"):
    """A layer was applied (or verified). The blob's digest is of the kept form when one was kept.

    implied: directories the tar left out, in the order they were made, named in bytes.
    """

    diff_id: str
    blob_digest: str
    blob_bytes: int
    media_type: str
    unpacked_bytes: int
    entries: int
    implied: list[bytes]


class Member(msgspec.Struct, frozen=True):
    """One file of an image archive. A link has only `link`: the member it stands for."""

    name: str
    file: str = ""
    digest: str = ""
    size: int = 0
    link: str = ""


class Split(msgspec.Struct, frozen=True, tag="split"):
    """An image archive was taken apart."""

    members: list[Member]


class Packed(msgspec.Struct, frozen=True, tag="packed"):
    """A layer was written. diff_id: digest of its tar; the blob's are of its gzip form."""

    diff_id: str
    blob_digest: str
    blob_bytes: int


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The job was refused or could not be done."""

    code: str
    message: str

    def error(self) -> SwarmError:
        """The error the caller of the store sees."""
        try:
            return ERROR_BY_CODE[Code(self.code)](self.message)
        except ValueError:
            return Internal(self.message)


Answer = Unpacked | Split | Packed | Failed

encode_job = msgspec.json.Encoder().encode
decode_job = msgspec.json.Decoder(Job).decode
encode_answer = msgspec.json.Encoder().encode
decode_answer = msgspec.json.Decoder(Answer).decode
