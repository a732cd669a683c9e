"""Saved form of two levels in training: norms, biases and thresholds are folded into the weights of `saved`.

Shapes: D = d_in, L lower latents, U = d_sae upper latents.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from sae_lens.saes.jumprelu_sae import JumpReLUSAEConfig
from safetensors.torch import save_file
from torch import Tensor

from sae_variants.refinement.saved import RefinedSAEConfig
from sae_variants.two_level.saved import DIGITS, LOWER, NO_PARENT

if TYPE_CHECKING:
    from sae_variants.two_level.levels import TwoLevels

TINY = 1e-12
"""Smallest norm by which a decoder row is divided, because a row may be all zero."""


@torch.no_grad()
def lower_state(sae: TwoLevels) -> dict[str, Tensor]:
    """Return the weights of the lower level by their names in the saved SAE."""
    norm_L = sae.W_dec_lower.norm(dim=-1)
    return {
        "W_enc_lower": sae.W_enc_lower * norm_L,
        "b_enc_lower": sae.lower_bias_L() * norm_L,
        "threshold_lower": torch.full_like(norm_L, float(sae.thresholds[0])),
        "W_dec_lower": sae.W_dec_lower / norm_L[:, None],
        "b_dec_lower": sae.b_dec.detach().clone(),
        **(
            {"inner_thresholds_lower": sae.inner_thresholds_T[:, None].to(norm_L) * torch.ones_like(norm_L)}
            if sae.cfg.refine
            else {}
        ),
    }


@torch.no_grad()
def upper_state(sae: TwoLevels) -> dict[str, Tensor]:
    """Return the weights of the upper level, its links and its parents by their names in the saved SAE."""
    rows_LD = F.normalize(sae.W_dec_lower, dim=-1)
    W_dec_UD = sae.W_links @ rows_LD
    norm_U = W_dec_UD.norm(dim=-1).clamp(min=TINY)
    regroups = sae.cfg.start == "groups" and sae.cfg.total_steps
    parent_L = sae.parents() if regroups or (sae.parent_L == NO_PARENT).all() else sae.parent_L
    return {
        "W_enc_upper": sae.W_enc_upper * norm_U,
        "b_enc": sae.b_enc_upper * norm_U,
        "threshold": torch.full_like(norm_U, float(sae.thresholds[1])),
        "W_links": sae.W_links / norm_U[:, None],
        "W_dec": W_dec_UD / norm_U[:, None],
        "b_dec": sae.b_links @ rows_LD + sae.b_dec,
        "parent_digits_3L": (parent_L // DIGITS.to(parent_L.device)[:, None] % 256).to(norm_U),
    }


def save_lower_level(sae: TwoLevels, folder: Path) -> None:
    """Save the lower level, `refined` or a stock `jumprelu`, in the folder `lower` beside the upper level."""
    (folder / LOWER).mkdir(exist_ok=True)
    state = {name.removesuffix("_lower"): tensor.contiguous() for name, tensor in lower_state(sae).items()}
    save_file(state, folder / LOWER / SAE_WEIGHTS_FILENAME)
    upper_config = sae.cfg.get_inference_sae_cfg_dict()
    lower_class = RefinedSAEConfig if sae.cfg.refine else JumpReLUSAEConfig
    known = {field.name for field in fields(lower_class)} | {"metadata"}
    config = {name: value for name, value in upper_config.items() if name in known}
    config |= {"architecture": lower_class.architecture(), "d_sae": sae.cfg.d_lower}
    (folder / LOWER / SAE_CFG_FILENAME).write_text(json.dumps(config))
