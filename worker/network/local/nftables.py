"""nft text through libnftables: a tenth of a millisecond where the program takes fifteen.

A context belongs to the network namespace its thread was in when it was made. Each text is one
transaction: all of it or nothing.
"""

from __future__ import annotations

import ctypes
from functools import cache
from types import TracebackType
from typing import Final, Self

from shoal.errors import Unimplemented

_LIBRARY: Final = "libnftables.so.1"


class NftError(OSError):
    """The kernel or the library refused a text; the message says why."""


class Nft:
    """Runs nft text in one network namespace."""

    def __init__(self) -> None:
        """Raises: Unimplemented without the library or without nf_tables."""
        self._library = _load()
        self._context = self._library.nft_ctx_new(0)
        if not self._context:
            raise Unimplemented("this kernel has no nf_tables: local networks need it")
        self._library.nft_ctx_buffer_error(self._context)
        self._library.nft_ctx_buffer_output(self._context)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the context. Idempotent."""
        if self._context:
            self._library.nft_ctx_free(self._context)
            self._context = None

    def run(self, text: str) -> str:
        """Run a text; what it prints. Raises: NftError, and nothing of it was done."""
        if self._library.nft_run_cmd_from_buffer(self._context, text.encode()) != 0:
            problem = self._library.nft_ctx_get_error_buffer(self._context) or b"no message"
            raise NftError(0, problem.decode(errors="replace").strip())
        output = self._library.nft_ctx_get_output_buffer(self._context) or b""
        return bytes(output).decode(errors="replace")


@cache
def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        raise Unimplemented(
            f"local networks need {_LIBRARY}: install the package nftables"
        ) from None
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_new.argtypes = (ctypes.c_uint32,)
    for name in ("nft_ctx_free", "nft_ctx_buffer_error", "nft_ctx_buffer_output"):
        getattr(library, name).argtypes = (ctypes.c_void_p,)
    library.nft_ctx_free.restype = None
    library.nft_run_cmd_from_buffer.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
    for name in ("nft_ctx_get_error_buffer", "nft_ctx_get_output_buffer"):
        getattr(library, name).restype = ctypes.c_char_p
        getattr(library, name).argtypes = (ctypes.c_void_p,)
    return library
