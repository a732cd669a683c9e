"""Loading of a language model, and the memory it runs in."""

from __future__ import annotations

import contextlib
import ctypes
import io
from functools import cache
from typing import TYPE_CHECKING

from sae_variants.common.errors import UsageError
from sae_variants.language_model.folders import is_local_model
from sae_variants.language_model.hub import hub_errors

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


@cache
def reuse_freed_memory() -> None:
    """Ask glibc to keep large freed blocks: fresh pages for every activation cost half of the time on CPU."""
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, 2**31 - 1)
    libc.mallopt(m_top_pad, 2**28)


def load_model(name: str, device: str, dtype: str) -> HookedTransformer:
    """Load a language model without weight processing, as SAEBench does.

    Args:
        name: Name on the Hub, or a registered name of a local folder.
        device: Device of the weights.
        dtype: Data type of the weights, such as `float32`.

    Raises:
        UsageError: The Hub is unreachable, or TransformerLens cannot convert the model.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from sae_lens.util import str_to_dtype
    from safetensors import SafetensorError
    from transformer_lens import HookedTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()
    if device == "cpu":
        reuse_freed_memory()
    with hub_errors(f"the model {name}"), contextlib.redirect_stdout(io.StringIO()):
        if not is_local_model(name) and not isinstance(try_to_load_from_cache(name, "config.json"), str):
            HfApi().model_info(name, timeout=10)  # fails at once without a network; a download would retry first
        try:
            return HookedTransformer.from_pretrained_no_processing(name, device=device, dtype=str_to_dtype(dtype))
        except (ValueError, NotImplementedError, KeyError, RuntimeError, SafetensorError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise UsageError(f"TransformerLens cannot load the model {name}: {first[:200]}") from error


def free_memory(device: str) -> float:
    """Return the free memory of a device in bytes."""
    import psutil
    import torch

    return torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else psutil.virtual_memory().available
