"""Folders of Gemma Scope: `params.npz` with a JumpReLU SAE.

Source: https://arxiv.org/abs/2408.05147; https://huggingface.co/google/gemma-scope
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_variants.common.errors import UsageError
from sae_variants.formats.saved import make_saved_config

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "params.npz"
TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")


def read_folder(
    path: str | Path, device: str = "cpu", cfg_overrides: dict[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the config and the weights of an SAE, as SAELens' loaders do.

    Args:
        path: Folder with `params.npz`.
        device: Device of the weights.
        cfg_overrides: Config fields that replace those of the folder.

    Raises:
        UsageError: A tensor is missing, or the file holds a transcoder.
    """
    import numpy as np
    import torch

    file = Path(path) / WEIGHTS
    if not zipfile.is_zipfile(file):
        raise UsageError(f"{file} is no archive of NumPy arrays, or it is incomplete: download it again")
    with np.load(file, allow_pickle=False) as saved:
        try:
            # Early files write w_enc and w_dec.
            arrays = {"W_" + name[2:] if name.startswith("w_") else name: saved[name] for name in saved.files}
        except ValueError as error:
            raise UsageError(f"{file} holds Python objects, which may run any code and are never loaded") from error
    if missing := [name for name in TENSORS if name not in arrays]:
        raise UsageError(f"{file} has no {', '.join(missing)}, only {', '.join(arrays)}")
    if extra := arrays.keys() - set(TENSORS):
        raise UsageError(f"{file} holds {', '.join(sorted(extra))} beside an SAE's tensors, so it is none")
    weights = {name: torch.from_numpy(array).float().to(device) for name, array in arrays.items()}
    d_in, d_sae = weights["W_enc"].shape
    if weights["b_dec"].shape != (d_in,):
        raise UsageError(f"{file} holds a transcoder from width {d_in} to {len(weights['b_dec'])}, not an SAE")
    fields = {"apply_b_dec_to_input": False, **(cfg_overrides or {})}
    return make_saved_config("jumprelu", d_in, d_sae, device, fields, {}), weights
