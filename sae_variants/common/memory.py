"""Memory of this machine and of its accelerators."""

from __future__ import annotations

import ctypes
from functools import cache


@cache
def reuse_freed_memory() -> None:
    """Ask glibc to keep freed blocks of up to 32 MiB: fresh pages for every activation cost half of the time on CPU.

    Larger ones go back to the system at once, and all threads share one heap: weights, their gradients and what the
    backward pass's thread frees would tear several heaps into pieces, twice as large as a training of a wide SAE needs.
    """
    m_trim_threshold, m_top_pad, m_mmap_threshold, m_arena_max = -1, -2, -3, -8
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    libc.mallopt(m_arena_max, 1)
    libc.mallopt(m_mmap_threshold, 2**25)  # the largest that it takes
    libc.mallopt(m_trim_threshold, 2**31 - 1)
    libc.mallopt(m_top_pad, 2**28)


def free_memory(device: str) -> float:
    """Return the free memory of a device in bytes."""
    import psutil
    import torch

    return torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else psutil.virtual_memory().available
