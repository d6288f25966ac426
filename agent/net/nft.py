"""Run nft commands through the library that nft itself uses, in one context kept open.

A context is bound to the network namespace and to the thread it was made in. Closing one
after a transaction that deleted something takes 12 ms or more, so it is made once.

Source: libnftables(3).
"""

import ctypes

from agent.errors import NetworkError


class Nftables:
    def __init__(self) -> None:
        library = ctypes.CDLL("libnftables.so.1")
        library.nft_ctx_new.restype = ctypes.c_void_p
        library.nft_ctx_new.argtypes = (ctypes.c_uint32,)
        for name in ("nft_ctx_free", "nft_ctx_buffer_output", "nft_ctx_buffer_error"):
            getattr(library, name).argtypes = (ctypes.c_void_p,)
        for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
            getattr(library, name).argtypes = (ctypes.c_void_p,)
            getattr(library, name).restype = ctypes.c_char_p
        library.nft_run_cmd_from_buffer.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
        self._library = library
        self._context: int | None = library.nft_ctx_new(0)
        if self._context is None:
            raise NetworkError("libnftables could not open a context")
        library.nft_ctx_buffer_output(self._context)
        library.nft_ctx_buffer_error(self._context)

    def run(self, text: str) -> str:
        """Carry out the commands in one transaction: all of them or none. Return the output.

        Raises:
            NetworkError: nft's own words.
        """
        code = self._library.nft_run_cmd_from_buffer(self._context, text.encode())
        output: bytes = self._library.nft_ctx_get_output_buffer(self._context)
        errors: bytes = self._library.nft_ctx_get_error_buffer(self._context)
        if code != 0:
            raise NetworkError(f"nft refused: {errors.decode(errors='replace').strip()}")
        return output.decode(errors="replace")

    def close(self) -> None:
        if self._context is not None:
            self._library.nft_ctx_free(self._context)
            self._context = None
