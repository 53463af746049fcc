"""How the C library's allocator treats the large tensors of a step."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, for the next step (glibc; elsewhere nothing is done).

    glibc takes each large tensor from the system and gives it back when freed. The tensors of all steps are the same,
    and the first touch of fresh pages takes a fifth of a step's time. It holds for the whole process, so the command
    line asks for it, and nothing else does.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_TOP_PAD, 1 << 26)
