"""Latents of which a slow share changes little from token to token, so that it does not depend on position.

A share `slow_fraction` of the latents is slow, the others are free:

    L = |x - x̂|² + λ · L_consistency(f_slow) + ν · |x - x̂_slow|² + AuxK

The slow latents are those whose activations at two tokens of a window have correlated most so far, or the first ones
throughout (`slow = first`, as in T-SAE). They are saved as the first ones.

With ν > 0 the slow latents alone also reconstruct x. T-SAE has ν = 1. The default here is 0: with 1, slow latents carry
most of the reconstruction and change as fast as x does; with 0, they do not become constant at λ = 1.

`L_consistency` is a mean over windows of W consecutive tokens of one context, in one of three forms:

    contrastive  symmetric InfoNCE: z_t identifies its own z_{t-1} among those of all windows, and the reverse
    variance     mean over windows and active latents of Var_t(f) / Mean_t(f²), which does not depend on scale
    similarity   mean of 1 - cos(z_t, z_{t-1})

With `pairs = "earlier"`, the default, every earlier token of the window replaces t-1 in the first and the last form.
Windows with a special token count for the reconstruction only. `k` is per token, averaged over the batch. The encoder
is refined (`refinement.steps`), and the SAE saved as `refined`; with `refine = 0`, as a stock SAELens `jumprelu`.

Source: T-SAE (arXiv 2511.05541) for the split, the nested loss and the contrast; the base is BatchTopK (arXiv
2412.06410), or ReLU with L1 (arXiv 2309.08600).

Shapes: N rows = n windows x W tokens, D = d_in, S = d_sae, L slow latents, P pairs of tokens of a window.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAEConfig
from sae_lens.saes.sae import TrainStepInput
from sae_lens.saes.topk_sae import act_times_W_dec
from torch import Tensor, nn
from typing_extensions import override

from sae_variants.ops.batch_topk import BatchTopK, split_windows
from sae_variants.ops.consistency import contrastive_loss, similarity_loss, variance_loss
from sae_variants.ops.errors import squared_error
from sae_variants.ops.host import move
from sae_variants.ops.threshold import running_rate
from sae_variants.refinement.config import RefinementConfig
from sae_variants.refinement.training import RefinedBatchTopK
from sae_variants.registry.variants import register

MEASURED_EVERY = 4
"""Correlations within windows are measured in one of so many steps."""
MEASURED_RATE = 0.02
"""Rate at which they follow those of a step."""


@dataclass
class TemporalTrainingSAEConfig(RefinementConfig, BatchTopKTrainingSAEConfig):
    """Config of `temporal`."""

    added: ClassVar[Mapping[str, Any]] = {**RefinementConfig.added, "slow": "first"}

    k: float = 32  # type: ignore[assignment]
    """Latents that fire per token, averaged over the batch."""
    base: Literal["batchtopk", "relu"] = "batchtopk"
    """Source of sparsity: BatchTopK, or ReLU with an L1 penalty."""
    l1_coefficient: float = 1.0
    """Weight of the L1 penalty with base relu, which determines L0 instead of k."""
    slow_fraction: float = 0.05
    """Share of the latents that are slow, to which the consistency term applies; they are saved as the first ones."""
    slow: Literal["measured", "first"] = "measured"
    """Which latents are slow: those that so far correlate most within windows, or the first ones throughout."""
    refine: int = 1
    """Refinement steps of the encoder: each encodes what the code before left, at the cost of another encoding."""
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
        if self.slow not in ("measured", "first"):
            raise ValueError(f"slow must be measured or first, not {self.slow!r}")
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


CONSISTENCY = {"contrastive": contrastive_loss, "variance": variance_loss, "similarity": similarity_loss}


@register(TemporalTrainingSAEConfig)
class TemporalTrainingSAE(RefinedBatchTopK):
    """BatchTopK or ReLU in training, with the consistency term."""

    in_shards: ClassVar[dict[str, Any] | None] = {
        "base": "batchtopk",
        "nested_coefficient": 0.0,
        "consistency": "contrastive",
    }
    cfg: TemporalTrainingSAEConfig  # type: ignore[assignment]
    moments_3S: Tensor

    def __init__(self, cfg: TemporalTrainingSAEConfig, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        if cfg.slow == "measured":
            self.register_buffer("moments_3S", torch.zeros(3, cfg.d_sae, device=self.W_dec.device))

    @override
    def get_activation_fn(self) -> nn.Module:
        return BatchTopK(self.cfg.k) if self.cfg.base == "batchtopk" else nn.ReLU()

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
        if self.cfg.slow == "measured":
            self._measure(feature_acts.detach(), step_input.n_training_steps)
        slow_L = self.slow_L
        slow_NL = feature_acts[:, slow_L]
        if self.cfg.nested_coefficient:
            W_slow = self.W_dec[slow_L]
            slow_out = act_times_W_dec(slow_NL, W_slow, self.cfg.rescale_acts_by_decoder_norm) + self.b_dec
            losses["slow_mse_loss"] = self.cfg.nested_coefficient * squared_error(step_input.sae_in, slow_out)
        if self.cfg.consistency_coefficient:
            losses["consistency_loss"] = self.cfg.consistency_coefficient * self.consistency(slow_NL)
        return losses

    @property
    def slow_L(self) -> Tensor | slice:
        """Indices of the slow latents."""
        shards, d_sae = self.shards, self.cfg.d_sae  # of this shard
        n_slow = round(self.cfg.slow_fraction * (d_sae * shards.count))
        if self.cfg.slow == "measured":
            return shards.top_k_ids(self.correlation_S, n_slow)
        return slice(0, max(0, min(n_slow - shards.index * d_sae, d_sae)))

    @property
    def correlation_S(self) -> Tensor:
        """Correlation [S] of a latent's activations at two tokens of a window; 0 for one that does not vary."""
        mean_S, square_S, product_S = self.moments_3S
        variance_S = square_S - mean_S.pow(2)
        return torch.where(variance_S > 0, (product_S - mean_S.pow(2)) / variance_S.clamp(min=1e-30), 0.0)

    @torch.no_grad()
    def _measure(self, acts_NS: Tensor, step: int) -> None:
        """Update the running means of f_t, f_t² and f_t f_u over pairs of tokens t, u of a window."""
        if step % MEASURED_EVERY:
            return
        acts_nWS, W = split_windows(acts_NS.to(self.moments_3S), self.cfg.window), self.cfg.window
        sum_nS, square_S = acts_nWS.sum(1), acts_nWS.pow(2).mean((0, 1))
        product_S = (sum_nS.pow(2).mean(0) / W - square_S) / (W - 1)
        rate = running_rate(MEASURED_RATE, step // MEASURED_EVERY)
        moments_3S = self.shards.over_tokens(torch.stack([sum_nS.mean(0) / W, square_S, product_S]), "moments")
        self.moments_3S.lerp_(moments_3S / self.shards.groups, rate)

    @override
    def in_saved_order(self, values: Tensor, axis: int = 0) -> Tensor:
        if self.cfg.slow == "first":
            return values
        is_slow_S = torch.zeros(self.cfg.d_sae, dtype=torch.bool, device=self.moments_3S.device)
        is_slow_S[self.slow_L] = True
        return self.shards.put_first(values, axis, is_slow_S)

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving_inference(state_dict)
        state_dict.pop("moments_3S", None)
        for name, values in state_dict.items():
            axis = {"W_dec": 0, "b_dec": None}.get(name, values.ndim - 1)
            state_dict[name] = values if axis is None else self.in_saved_order(values, axis)

    def consistency(self, slow_NL: Tensor) -> Tensor:
        """Return the consistency term over the windows without special tokens; 0 if there are fewer than two."""
        special_N = self.special_N  # of all groups
        if special_N is None:
            warnings.warn(
                "temporal does not know which rows are special tokens: it treats each "
                f"{self.cfg.window} consecutive rows as neighbours of one context. Under SAELens' own runner that "
                "holds only with activations_mixing_fraction=0; `python -m sae_variants train temporal` ensures it.",
                stacklevel=2,
            )
            special_N = torch.zeros(len(slow_NL), dtype=torch.bool)
        is_clean_n = ~split_windows(special_N, self.cfg.window).any(1)
        clean_n = is_clean_n.nonzero().squeeze(1)
        if len(clean_n) < 2:
            return slow_NL.sum() * 0.0
        own_clean_m = self.shards.rows(is_clean_n).nonzero().squeeze(1)
        slow_nWL = split_windows(slow_NL, self.cfg.window)[move(own_clean_m, slow_NL.device)]
        options: dict[str, Any] = {} if self.cfg.consistency == "variance" else {"pairs": self.cfg.pairs}
        if self.cfg.consistency == "contrastive":
            options |= {"contrast": self.cfg.contrast, "temperature": self.cfg.temperature, "shards": self.shards}
            if self.context_N is not None:
                context_n = split_windows(self.context_N, self.cfg.window)[clean_n, 0]
                options["context_n"] = move(context_n, slow_NL.device)
        return CONSISTENCY[self.cfg.consistency](slow_nWL, **options)
