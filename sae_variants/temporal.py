"""Latents of which a slow share changes little from token to token, so that it does not depend on position.

The first `slow_fraction` of the latents are slow, the others are free:

    L = |x - x̂|² + λ · L_consistency(f_slow) + ν · |x - x̂_slow|² + AuxK

With ν > 0 the slow latents alone also reconstruct x. T-SAE has ν = 1. The default here is 0: with 1, slow latents carry
most of the reconstruction and change as fast as x does; with 0, they do not become constant at λ = 1.

`L_consistency` is a mean over windows of W consecutive tokens of one context, in one of three forms:

    contrastive  symmetric InfoNCE: z_t identifies its own z_{t-1} among those of all windows, and the reverse
    variance     mean over windows and active latents of Var_t(f) / Mean_t(f²), which does not depend on scale
    similarity   mean of 1 - cos(z_t, z_{t-1})

With `pairs = "earlier"`, the default, every earlier token of the window replaces t-1 in the first and the last form.
Windows with a special token count for the reconstruction only. `k` is per token, averaged over the batch. Only training
differs from the base, so the SAE is saved as a stock SAELens `jumprelu`.

Source: T-SAE (arXiv 2511.05541) for the split, the nested loss and the contrast; the base is BatchTopK (arXiv
2412.06410), or ReLU with L1 (arXiv 2309.08600).

Shapes: N rows = n windows x W tokens, D = d_in, S = d_sae, L slow latents, P pairs of tokens of a window.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAEConfig
from sae_lens.saes.sae import TrainStepInput
from sae_lens.saes.topk_sae import act_times_W_dec
from torch import Tensor, nn
from typing_extensions import override

from sae_variants.ops.batch_topk import BatchTopK, split_windows
from sae_variants.ops.errors import squared_error
from sae_variants.ops.mostly_zero import decode_sparse, sparse_gradient_product
from sae_variants.registry.batch_topk import BatchTopKVariant
from sae_variants.registry.contract import VariantConfig
from sae_variants.registry.variants import register

EPSILON = 1e-6


@dataclass
class TemporalTrainingSAEConfig(VariantConfig, BatchTopKTrainingSAEConfig):
    """Config of `temporal`."""

    k: float = 32  # type: ignore[assignment]
    """Latents that fire per token, averaged over the batch."""
    base: Literal["batchtopk", "relu"] = "batchtopk"
    """Source of sparsity: BatchTopK, or ReLU with an L1 penalty."""
    l1_coefficient: float = 1.0
    """Weight of the L1 penalty with base relu, which determines L0 instead of k."""
    slow_fraction: float = 0.1
    """Share of the latents, the first ones, to which the consistency term applies."""
    nested_coefficient: float = 0.0
    """ν, weight of the reconstruction by the slow latents alone; 0 disables it, T-SAE uses 1."""
    consistency: Literal["contrastive", "variance", "similarity"] = "contrastive"
    """Form of the consistency term."""
    consistency_coefficient: float = 1.0
    """λ, weight of the consistency term; 0 disables it."""
    window: int = 8
    """W, tokens in a window, at least 2; the windows of the training stream must be a multiple of it."""
    pairs: Literal["adjacent", "earlier"] = "earlier"
    """Tokens of a window that are compared: neighbours, or each with every earlier one; variance ignores it."""
    contrast: Literal["cosine", "dot"] = "cosine"
    """Similarity in the contrastive form: cosine, or the raw dot product of T-SAE's released code."""
    temperature: float = 0.1
    """Divisor of the cosine in the contrastive form."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "temporal_consistency"

    @property
    def n_slow(self) -> int:
        """Number of slow latents."""
        return round(self.slow_fraction * self.d_sae)

    @override
    @classmethod
    def latent_groups(cls, d_sae: int, fields: Mapping[str, Any]) -> dict[str, slice]:
        n_slow = round(fields.get("slow_fraction", cls.slow_fraction) * d_sae)
        return {"slow": slice(0, n_slow), "fast": slice(n_slow, d_sae)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 2:
            raise ValueError(f"window must be at least 2 tokens, not {self.window}: one token has no neighbour")
        if not 0 < self.slow_fraction <= 1 or self.n_slow < 1:
            raise ValueError(f"slow_fraction must leave between 1 and d_sae slow latents, not {self.slow_fraction}")
        if self.base not in ("batchtopk", "relu"):
            raise ValueError(f"base must be batchtopk or relu, not {self.base!r}")
        if self.consistency not in CONSISTENCY:
            raise ValueError(f"consistency must be one of {', '.join(CONSISTENCY)}, not {self.consistency!r}")
        if self.pairs not in ("adjacent", "earlier"):
            raise ValueError(f"pairs must be adjacent or earlier, not {self.pairs!r}")
        if self.contrast not in ("cosine", "dot"):
            raise ValueError(f"contrast must be cosine or dot, not {self.contrast!r}")
        for field in ("consistency_coefficient", "nested_coefficient", "l1_coefficient"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field} must not be negative, it is {getattr(self, field)}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, not {self.temperature}")


def split_pairs(codes_nWL: Tensor, pairs: str) -> tuple[Tensor, Tensor]:
    """Return the codes [n, P, L] of the later and of the earlier token of P pairs of tokens of every window."""
    if pairs == "adjacent":
        return codes_nWL[:, 1:], codes_nWL[:, :-1]
    later, earlier = torch.tril_indices(codes_nWL.shape[1], codes_nWL.shape[1], offset=-1)
    return codes_nWL[:, later], codes_nWL[:, earlier]


def contrastive_loss(
    slow_nWL: Tensor, contrast: str = "cosine", temperature: float = 0.1, pairs: str = "adjacent"
) -> Tensor:
    """Return the symmetric InfoNCE loss over pairs of tokens.

    The negatives of a window are the other windows, at the same two positions.

    Args:
        slow_nWL: Slow latents [n, W, L].
        contrast: `cosine` or `dot`.
        temperature: Divisor of the cosine.
        pairs: `adjacent` or `earlier`.
    """
    windows = len(slow_nWL)
    codes = F.normalize(slow_nWL, dim=-1, eps=EPSILON) if contrast == "cosine" else slow_nWL
    scale = 1 / temperature if contrast == "cosine" else 1.0
    later_nPL, earlier_nPL = split_pairs(codes, pairs)
    logits_Pnn = scale * later_nPL.transpose(0, 1) @ earlier_nPL.permute(1, 2, 0)
    target = torch.arange(windows, device=codes.device).expand(len(logits_Pnn), windows)
    forward = F.cross_entropy(logits_Pnn.flatten(0, 1), target.flatten())
    backward = F.cross_entropy(logits_Pnn.transpose(1, 2).flatten(0, 1), target.flatten())
    return (forward + backward) / 2


def variance_loss(slow_nWL: Tensor) -> Tensor:
    """Return the variance over the mean square within a window, averaged over windows and latents that fire in them.

    The result is between 0 and 1, and does not depend on the scale of the latents.
    """
    largest_n1L = slow_nWL.detach().amax(1, keepdim=True)
    active_nL = largest_n1L.squeeze(1) > 0
    scaled_nWL = slow_nWL / torch.where(largest_n1L > 0, largest_n1L, 1.0)
    square_nL = torch.where(active_nL, scaled_nWL.pow(2).mean(1), 1.0)
    return (scaled_nWL.var(1, unbiased=False) / square_nL).sum() / active_nL.sum().clamp(min=1)


def similarity_loss(slow_nWL: Tensor, pairs: str = "adjacent") -> Tensor:
    """Return the mean of 1 - cos between the codes of pairs of tokens; between 0 and 1 for non-negative codes."""
    later_nPL, earlier_nPL = split_pairs(slow_nWL, pairs)
    return (1 - F.cosine_similarity(later_nPL, earlier_nPL, dim=-1, eps=EPSILON)).mean()


CONSISTENCY = {"contrastive": contrastive_loss, "variance": variance_loss, "similarity": similarity_loss}


@register(TemporalTrainingSAEConfig)
class TemporalTrainingSAE(BatchTopKVariant):
    """BatchTopK or ReLU in training, with the consistency term."""

    cfg: TemporalTrainingSAEConfig  # type: ignore[assignment]

    @override
    def get_activation_fn(self) -> nn.Module:
        return BatchTopK(self.cfg.k) if self.cfg.base == "batchtopk" else nn.ReLU()

    @override
    def encode_with_hidden_pre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Encode as SAELens does, with norms folded into the weights and gradients of the firing latents only."""
        x = self.process_sae_in(x)
        x_ND = x.reshape(-1, x.shape[-1])
        W_enc, b_enc = self.W_enc, self.b_enc
        if self.cfg.rescale_acts_by_decoder_norm:
            norm_S = self.W_dec.norm(dim=-1)
            W_enc, b_enc = W_enc * norm_S, b_enc * norm_S
        pre = self.hook_sae_acts_pre(sparse_gradient_product(x_ND, W_enc, b_enc).view(*x.shape[:-1], W_enc.shape[1]))
        return self.hook_sae_acts_post(self.activation_fn(pre)), pre

    @override
    def decode(self, feature_acts: Tensor) -> Tensor:
        rows = self.W_dec
        if self.cfg.rescale_acts_by_decoder_norm:
            rows = rows / rows.norm(dim=-1, keepdim=True)
        acts_NS = feature_acts.reshape(-1, feature_acts.shape[-1])
        out = decode_sparse(acts_NS, rows).view(*feature_acts.shape[:-1], rows.shape[1]) + self.b_dec
        return self.reshape_fn_out(self.run_time_activation_norm_fn_out(self.hook_sae_recons(out)), self.d_head)

    @property
    @override
    def calibrates(self) -> bool:
        """Whether the base is BatchTopK; a ReLU is saved as a JumpReLU with threshold 0."""
        return self.cfg.base == "batchtopk"

    @override
    def calculate_aux_loss(
        self, step_input: TrainStepInput, feature_acts: Tensor, hidden_pre: Tensor, sae_out: Tensor
    ) -> dict[str, Tensor]:
        losses = super().calculate_aux_loss(step_input, feature_acts, hidden_pre, sae_out)
        if self.cfg.base == "relu":
            is_scaled = self.cfg.rescale_acts_by_decoder_norm  # to the units of the output
            acts_NS = feature_acts if is_scaled else feature_acts * self.W_dec.norm(dim=1)
            losses["l1_loss"] = self.cfg.l1_coefficient * acts_NS.sum(-1).mean()
        slow_NL = feature_acts[:, : self.cfg.n_slow]
        if self.cfg.nested_coefficient:
            W_slow = self.W_dec[: self.cfg.n_slow]
            slow_out = act_times_W_dec(slow_NL, W_slow, self.cfg.rescale_acts_by_decoder_norm) + self.b_dec
            losses["slow_mse_loss"] = self.cfg.nested_coefficient * squared_error(step_input.sae_in, slow_out)
        if self.cfg.consistency_coefficient:
            losses["consistency_loss"] = self.cfg.consistency_coefficient * self.consistency(slow_NL)
        return losses

    def consistency(self, slow_NL: Tensor) -> Tensor:
        """Return the consistency term over the windows without special tokens; 0 if there are fewer than two."""
        slow_nWL = split_windows(slow_NL, self.cfg.window)
        if self.special_N is None:
            warnings.warn(
                "temporal does not know which rows are special tokens: it treats each "
                f"{self.cfg.window} consecutive rows as neighbours of one context. Under SAELens' own runner that "
                "holds only with activations_mixing_fraction=0; `python -m sae_variants train temporal` ensures it.",
                stacklevel=2,
            )
            self.special_N = torch.zeros(len(slow_NL), dtype=torch.bool, device=slow_NL.device)
        clean_n = ~split_windows(self.special_N, self.cfg.window).any(1)
        slow_nWL = slow_nWL[clean_n]
        if len(slow_nWL) < 2:
            return slow_NL.sum() * 0.0
        options: dict[str, Any] = {} if self.cfg.consistency == "variance" else {"pairs": self.cfg.pairs}
        if self.cfg.consistency == "contrastive":
            options |= {"contrast": self.cfg.contrast, "temperature": self.cfg.temperature}
        return CONSISTENCY[self.cfg.consistency](slow_nWL, **options)
