"""Memory of this machine and of its accelerators."""

from __future__ import annotations

import ctypes
from functools import cache

KEPT_BYTES = 2**25
"""Size up to which freed blocks are kept, the largest that glibc takes."""


@cache
def reuse_freed_memory() -> None:
    """Ask glibc to keep freed blocks of up to 32 MiB: fresh pages for every activation cost half of the time on CPU.

    Larger ones go back to the system at once, the heap grows by little at a time, so that it has no room for them, and
    all threads share it: weights, their gradients and what the backward pass's thread frees would tear it into pieces,
    twice as large as a training of a wide SAE needs.
    """
    m_trim_threshold, m_top_pad, m_mmap_threshold, m_arena_max = -1, -2, -3, -8
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    libc.mallopt(m_arena_max, 1)
    libc.mallopt(m_mmap_threshold, KEPT_BYTES)
    libc.mallopt(m_trim_threshold, 2**31 - 1)
    libc.mallopt(m_top_pad, 2**22)


def free_memory(device: str) -> float:
    """Return the free memory of a device in bytes."""
    import psutil
    import torch

    return torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else psutil.virtual_memory().available
