"""Memory that a process asks for again and again stays with it, instead of being given back and faulted in anew."""

from __future__ import annotations

import ctypes

# Of glibc's malloc.h; thresholds that are set stop it from finding its own, which end at 32 MiB.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 2**30


def keep_freed_memory() -> None:
    """Makes glibc keep freed blocks of up to 1 GiB; without effect where the C library is another one.

    Steps and chunks make arrays of the same sizes over and over. Beyond 32 MiB, and in other threads than the main one, glibc gives their
    pages back at once; that the kernel then clears new ones took a third of an embedding actor's time.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        libc.mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
