"""Language models in local folders, known to TransformerLens under a short registered name.

TransformerLens finds a model by name: it must be on its official list, and config and weights are then looked up on
the Hub by that name. A folder's path does not work as a name (it must be listed too, and a path that contains "llama"
or "bert" takes another architecture's branch), so a folder gets a name, and while that name is being loaded the
three look-ups are answered from the folder. This is the only place where TransformerLens is adapted.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
from functools import cache
from typing import Any

from sae_variants.common.errors import UsageError
from sae_variants.language_model.folders import _folders
from sae_variants.language_model.hub import hub_errors


@cache
def reuse_freed_memory() -> None:
    """Ask glibc to keep large freed blocks: fresh pages for every activation take half the time on CPU."""
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, 2**31 - 1)
    libc.mallopt(m_top_pad, 2**28)


def load_model(name: str, device: str, dtype: str) -> Any:
    """A `HookedTransformer` without weight processing, as SAEBench loads it."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from sae_lens.util import str_to_dtype
    from safetensors import SafetensorError
    from transformer_lens import HookedTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()
    if device == "cpu":
        reuse_freed_memory()
    with hub_errors(f"the model {name}"), contextlib.redirect_stdout(io.StringIO()):
        if name not in _folders and not isinstance(try_to_load_from_cache(name, "config.json"), str):
            HfApi().model_info(name, timeout=10)  # fails at once where there is no network; a download retries first
        try:
            return HookedTransformer.from_pretrained_no_processing(name, device=device, dtype=str_to_dtype(dtype))
        except (ValueError, NotImplementedError, KeyError, RuntimeError, SafetensorError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise UsageError(f"TransformerLens cannot load the model {name}: {first[:200]}") from error


def free_memory(device: str) -> float:
    """Bytes."""
    import psutil
    import torch

    return torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else psutil.virtual_memory().available
