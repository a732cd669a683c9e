"""Two levels of latents, both of which decode to the input.

    f = act(W_enc_lower (x - b) + b_enc_lower)      lower level      x̂_lower = f · W_dec_lower + b
    g = act(W_enc_upper f + b_enc_upper)            upper level      x̂_upper = g · W_dec + b_dec

The upper level reads the lower one and writes through it: f̂ = g · W_links + b_links. Hence

    W_dec = W_links · W_dec_lower                   b_dec = b_links · W_dec_lower + b

As in SAELens' BatchTopK, decoder rows of both levels count as if they had unit norm, so activations have the units of
the output. The parent of a lower latent is the upper latent that writes most to it, by |W_links| times mean activation.

Both levels are sparse by BatchTopK (arXiv 2412.06410) unless a variant overrides it; k is per token, averaged over the
batch. A trained SAE is saved as its upper level, of the architecture `hierarchical`, with the lower level in the
folder `lower`: as `refined`, or without refinement steps as a stock `jumprelu`.

Shapes: N tokens, D = d_in, L lower latents, U = d_sae upper latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sae_lens.saes.sae import TrainingSAE
from torch import Tensor, nn
from typing_extensions import override

from sae_variants.ops.batch_topk import BatchTopK
from sae_variants.ops.mostly_zero import decode_sparse
from sae_variants.refinement.training import Activate, refined_pre_activations
from sae_variants.two_level.config import TwoLevelTrainingSAEConfig
from sae_variants.two_level.folding import TINY, lower_state, save_lower_level, upper_state
from sae_variants.two_level.saved import NO_PARENT


@dataclass
class Level:
    """Activations of one level in a step, with what they are decoded by."""

    acts: Tensor
    """Latents [N, L] or [N, U], in the units of the output."""
    pre: Tensor
    """Pre-activations of the same shape."""
    rows: Tensor
    """Decoder rows of unit norm [L, D] or [U, D]."""
    bias: Tensor
    """Decoder bias [D]."""

    @cached_property
    def out(self) -> Tensor:
        """Reconstruction [N, D]."""
        return decode_sparse(self.acts, self.rows) + self.bias

    def detached(self) -> Level:
        """Return the level without gradient."""
        return Level(self.acts.detach(), self.pre.detach(), self.rows.detach(), self.bias.detach())


class TwoLevels(TrainingSAE[Any]):
    """Parameters of two levels, their encoders and decoders, and their saved form."""

    cfg: Any
    W_enc_lower: nn.Parameter
    b_enc_lower: nn.Parameter
    W_dec_lower: nn.Parameter
    W_enc_upper: nn.Parameter
    b_enc_upper: nn.Parameter
    W_links: nn.Parameter
    b_links: nn.Parameter
    thresholds: Tensor
    inner_thresholds_T: Tensor
    parent_L: Tensor
    activity_L: Tensor
    activity_U: Tensor

    def __init__(self, cfg: TwoLevelTrainingSAEConfig, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        L, U, device = cfg.d_lower, cfg.d_sae, self.b_dec.device
        self.register_buffer("thresholds", torch.zeros(2, dtype=torch.float64, device=device))
        if cfg.refine:
            self.register_buffer("inner_thresholds_T", torch.zeros(cfg.refine, dtype=torch.float64, device=device))
        self.register_buffer("parent_L", torch.full((L,), NO_PARENT, device=device))
        self.register_buffer("activity_L", torch.zeros(L, device=device))
        self.register_buffer("activity_U", torch.zeros(U, device=device))
        self.lower_activation = self.activation(cfg.k_of_lower)
        self.upper_activation = self.activation(cfg.k)

    @override
    def initialize_weights(self) -> None:
        cfg, options = self.cfg, {"dtype": self.dtype, "device": self.device}
        norm = cfg.decoder_init_norm or 1.0
        W_dec_LD = norm * F.normalize(torch.randn(cfg.d_lower, cfg.d_in, **options), dim=-1)
        W_links_UL = norm * F.normalize(torch.randn(cfg.d_sae, cfg.d_lower, **options), dim=-1)
        self.W_dec_lower, self.W_links = nn.Parameter(W_dec_LD), nn.Parameter(W_links_UL)
        self.W_enc_lower = nn.Parameter(W_dec_LD.T.clone().contiguous())
        self.W_enc_upper = nn.Parameter(W_links_UL.T.clone().contiguous())
        sizes = {"b_enc_lower": cfg.d_lower, "b_enc_upper": cfg.d_sae, "b_links": cfg.d_lower, "b_dec": cfg.d_in}
        for name, size in sizes.items():
            setattr(self, name, nn.Parameter(torch.zeros(size, **options)))

    def activation(self, k: float) -> nn.Module:
        """Return the activation function of a level of which k latents shall fire per token."""
        return BatchTopK(k)

    @property
    def W_dec(self) -> Tensor:  # type: ignore[override]
        """Decoder rows [U, D] of the upper level, not of unit norm."""
        return self.W_links @ F.normalize(self.W_dec_lower, dim=-1)

    @property
    def links_UL(self) -> Tensor:
        """Contribution [U, L] of an upper latent, in the units of the output, to each lower latent."""
        return self.W_links / self.W_dec.norm(dim=-1).clamp(min=TINY)[:, None]

    def lower(self, x: Tensor) -> Level:
        """Return the lower level of inputs [..., D]."""
        sae_in = self.run_time_activation_norm_fn_in(self.hook_sae_input(self.reshape_fn_in(x.to(self.dtype))))
        sae_in_ND = sae_in.reshape(-1, sae_in.shape[-1])
        rows_LD = self.lower_rows()
        pre_NL = self.lower_pre(sae_in_ND, rows_LD, self.activate_inner, self.cfg.refine)
        pre = pre_NL.view(*sae_in.shape[:-1], self.cfg.d_lower)
        return Level(self.lower_activation(pre), pre, rows_LD, self.b_dec)

    def lower_rows(self) -> Tensor:
        """Return the decoder rows [L, D] of the lower level, of unit norm."""
        return self.W_dec_lower / self.W_dec_lower.norm(dim=-1)[:, None]

    def lower_pre(self, x_ND: Tensor, rows_LD: Tensor, activate: Activate, step: int) -> Tensor:
        """Return the pre-activations [N, L] of a step of the lower level's encoder."""
        norm_L = self.W_dec_lower.norm(dim=-1)
        # Norms and the input bias are folded into the weights, which are far smaller than the latents of a batch.
        encoder = self.W_enc_lower * norm_L, self.lower_bias_L() * norm_L
        return refined_pre_activations(x_ND, [self.cfg.step_size] * step, encoder, (rows_LD, self.b_dec), activate)

    def activate_inner(self, pre_NL: Tensor, step: int) -> Tensor:
        """Return the lower latents [N, L] before the last encoding of a refined encoder."""
        acts_NL: Tensor = self.lower_activation(pre_NL)
        return acts_NL

    def lower_bias_L(self) -> Tensor:
        """Return the encoder bias [L] of the lower level with the input bias folded into it."""
        bias_L = self.b_enc_lower
        return bias_L - self.b_dec @ self.W_enc_lower if self.cfg.apply_b_dec_to_input else bias_L

    def upper(self, lower: Level) -> Level:
        """Return the upper level of a lower level."""
        W_dec_UD = self.W_links @ lower.rows
        norm_U = W_dec_UD.norm(dim=-1).clamp(min=TINY)
        pre = self.hook_sae_acts_pre(lower.acts @ (self.W_enc_upper * norm_U) + self.b_enc_upper * norm_U)
        acts = self.hook_sae_acts_post(self.upper_activation(pre))
        return Level(acts, pre, W_dec_UD / norm_U[:, None], self.b_links @ lower.rows + lower.bias)

    @override
    def encode_with_hidden_pre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        upper = self.upper(self.lower(x))
        return upper.acts, upper.pre

    @override
    def decode(self, feature_acts: Tensor) -> Tensor:
        b_dec = self.b_links @ F.normalize(self.W_dec_lower, dim=-1) + self.b_dec
        out = self.hook_sae_recons(feature_acts @ F.normalize(self.W_dec, dim=-1) + b_dec)
        return self.reshape_fn_out(self.run_time_activation_norm_fn_out(out), self.d_head)

    @torch.no_grad()
    def parents(self) -> Tensor:
        """Return the upper latent [L] that writes most to each lower one; by weight alone before any has fired."""
        weights_U = self.activity_U if self.activity_U.any() else torch.ones_like(self.activity_U)
        return (self.links_UL.abs() * weights_U[:, None].to(self.links_UL)).argmax(0)

    @override
    @torch.no_grad()
    def fold_W_dec_norm(self) -> None:
        """Give decoder rows of both levels unit norm; no output changes."""
        norm_L, norm_U = self.W_dec_lower.norm(dim=-1), self.W_dec.norm(dim=-1).clamp(min=TINY)
        self.W_dec_lower.data /= norm_L[:, None]
        self.W_links.data /= norm_U[:, None]
        for norms, weights in (
            (norm_L, (self.W_enc_lower, self.b_enc_lower)),
            (norm_U, (self.W_enc_upper, self.b_enc_upper)),
        ):
            for columns in weights:
                columns.data *= norms

    @override
    @torch.no_grad()
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        self.W_enc_lower.data *= scaling_factor
        for weights in (self.W_dec_lower, self.b_dec, self.b_enc_upper, self.b_links):
            weights.data /= scaling_factor
        self.thresholds /= scaling_factor
        if self.cfg.refine:
            self.inner_thresholds_T /= scaling_factor
        self.activity_L /= scaling_factor
        self.activity_U /= scaling_factor
        self.cfg.normalize_activations = "none"

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        state_dict.clear()
        state_dict.update({**lower_state(self), **upper_state(self)})

    @override
    def save_inference_model(self, path: str | Path) -> tuple[Path, Path]:
        saved = super().save_inference_model(path)
        save_lower_level(self, Path(path))
        return saved
