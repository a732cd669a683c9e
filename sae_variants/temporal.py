"""temporal: features that do not depend on where the token stands.

Latents are split. The first `slow_fraction` of them must change little from one token to the next, the rest are free:

    L = |x - x̂|² + λ · L_consistency(f_slow) + ν · |x - x̂_slow|² + AuxK

With ν > 0 the slow latents reconstruct on their own as well. T-SAE has ν = 1; here it is 0, since it makes slow latents
do most of the work and change as fast as it does, and without it they do not become constant at λ = 1.

`L_consistency` looks at windows of W consecutive tokens of one context and is one of

    contrastive  symmetric InfoNCE: z_t must pick its own z_{t-1} among those of all other windows, and the reverse
    variance     mean over windows and active latents of Var_t(f) / (Mean_t(f²) + ε), which scaling f cannot lower
    similarity   mean of 1 - cos(z_t, z_{t-1})

With `pairs = "earlier"`, which is the default, the first and the last take every earlier token of the window in place
of t-1.

Windows with a special token count for reconstruction only. Sources: the split, the nested loss and the contrast are
those of T-SAE (arXiv 2511.05541); the base is BatchTopK (arXiv 2412.06410), or ReLU with L1 (arXiv 2309.08600). It
changes training only, so it saves as a stock SAELens `jumprelu`. `k` is per token, averaged over the batch.

Shapes: N rows = n windows x W tokens, D = d_in, S = d_sae, L = slow latents.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.sae import TrainStepInput
from sae_lens.saes.topk_sae import act_times_W_dec
from torch import Tensor, nn
from typing_extensions import override

from sae_variants.ops.batch_topk import BatchTopK, split_windows
from sae_variants.ops.sparse import decode_sparse, sparse_gradient_product
from sae_variants.registry.contract import TrainingHooks, VariantConfig
from sae_variants.registry.variants import register

EPSILON = 1e-6


@dataclass
class TemporalTrainingSAEConfig(VariantConfig, BatchTopKTrainingSAEConfig):
    k: float = 32  # type: ignore[assignment]
    """Latents that fire, per token, averaged over the batch."""
    base: Literal["batchtopk", "relu"] = "batchtopk"
    """What makes codes sparse: BatchTopK, or ReLU with an L1 penalty."""
    l1_coefficient: float = 1.0
    """Weight of the L1 penalty of base relu, which sets its L0 in place of k."""
    slow_fraction: float = 0.1
    """Share of latents, the first ones, that carry the consistency term."""
    nested_coefficient: float = 0.0
    """Weight of the reconstruction by the slow latents alone; 0 switches it off, 1 is T-SAE's."""
    consistency: Literal["contrastive", "variance", "similarity"] = "contrastive"
    """Form of the consistency term."""
    consistency_coefficient: float = 1.0
    """λ, the weight of the consistency term; 0 switches it off."""
    window: int = 8
    """W, tokens in a window; at least 2. The training stream's windows must be a multiple of it."""
    pairs: Literal["adjacent", "earlier"] = "earlier"
    """Which tokens of a window are compared: neighbours, or each with every earlier one; not for variance."""
    contrast: Literal["cosine", "dot"] = "cosine"
    """Similarity inside the contrastive form: cosine, or the raw dot product of T-SAE's released code."""
    temperature: float = 0.1
    """Divides the cosine in the contrastive form."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "temporal_consistency"

    @property
    def n_slow(self) -> int:
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


def paired(codes_nWL: Tensor, pairs: str) -> tuple[Tensor, Tensor]:
    """(later, earlier) codes [n, P, L] of P pairs of tokens of every window."""
    if pairs == "adjacent":
        return codes_nWL[:, 1:], codes_nWL[:, :-1]
    later, earlier = torch.tril_indices(codes_nWL.shape[1], codes_nWL.shape[1], offset=-1)
    return codes_nWL[:, later], codes_nWL[:, earlier]


def contrastive_loss(
    slow_nWL: Tensor, contrast: str = "cosine", temperature: float = 0.1, pairs: str = "adjacent"
) -> Tensor:
    """Symmetric InfoNCE over pairs; the negatives of a window are the other windows, at the same two offsets."""
    windows = len(slow_nWL)
    codes = F.normalize(slow_nWL, dim=-1, eps=EPSILON) if contrast == "cosine" else slow_nWL
    scale = 1 / temperature if contrast == "cosine" else 1.0
    later_nPL, earlier_nPL = paired(codes, pairs)
    logits_Pnn = scale * later_nPL.transpose(0, 1) @ earlier_nPL.permute(1, 2, 0)
    target = torch.arange(windows, device=codes.device).expand(len(logits_Pnn), windows)
    forward = F.cross_entropy(logits_Pnn.flatten(0, 1), target.flatten())
    backward = F.cross_entropy(logits_Pnn.transpose(1, 2).flatten(0, 1), target.flatten())
    return (forward + backward) / 2


def variance_loss(slow_nWL: Tensor) -> Tensor:
    """Variance within a window over mean square, averaged over the (window, latent) pairs that fire. In [0, 1]."""
    active_nL = (slow_nWL > 0).any(1)
    relative_nL = slow_nWL.var(1, unbiased=False) / (slow_nWL.pow(2).mean(1) + EPSILON)
    return (relative_nL * active_nL).sum() / active_nL.sum().clamp(min=1)


def similarity_loss(slow_nWL: Tensor, pairs: str = "adjacent") -> Tensor:
    """Mean of 1 - cos between the slow codes of a pair. In [0, 1] for codes that are not negative."""
    later_nPL, earlier_nPL = paired(slow_nWL, pairs)
    return (1 - F.cosine_similarity(later_nPL, earlier_nPL, dim=-1, eps=EPSILON)).mean()


CONSISTENCY = {"contrastive": contrastive_loss, "variance": variance_loss, "similarity": similarity_loss}


@register(TemporalTrainingSAEConfig)
class TemporalTrainingSAE(TrainingHooks, BatchTopKTrainingSAE):
    cfg: TemporalTrainingSAEConfig  # type: ignore[assignment]

    @override
    def get_activation_fn(self) -> nn.Module:
        return BatchTopK(self.cfg.k) if self.cfg.base == "batchtopk" else nn.ReLU()

    @override
    def encode_with_hidden_pre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As SAELens' own; norms go into the weights, and gradients touch what fires."""
        x = self.process_sae_in(x)
        W_enc, b_enc = self.W_enc, self.b_enc
        if self.cfg.rescale_acts_by_decoder_norm:
            norm_S = self.W_dec.norm(dim=-1)
            W_enc, b_enc = W_enc * norm_S, b_enc * norm_S
        pre = self.hook_sae_acts_pre(sparse_gradient_product(x.flatten(0, -2), W_enc, b_enc).unflatten(0, x.shape[:-1]))
        return self.hook_sae_acts_post(self.activation_fn(pre)), pre

    @override
    def decode(self, feature_acts: Tensor) -> Tensor:
        rows = self.W_dec
        if self.cfg.rescale_acts_by_decoder_norm:
            rows = rows / rows.norm(dim=-1, keepdim=True)
        out = decode_sparse(feature_acts.flatten(0, -2), rows).unflatten(0, feature_acts.shape[:-1]) + self.b_dec
        return self.reshape_fn_out(self.run_time_activation_norm_fn_out(self.hook_sae_recons(out)), self.d_head)

    @override
    def update_topk_threshold(self, acts_topk: Tensor) -> None:
        """A JumpReLU with threshold 0, as which a ReLU is saved, is that ReLU."""
        if self.cfg.base == "batchtopk":
            super().update_topk_threshold(acts_topk)

    @override
    def calculate_aux_loss(
        self, step_input: TrainStepInput, feature_acts: Tensor, hidden_pre: Tensor, sae_out: Tensor
    ) -> dict[str, Tensor]:
        losses = super().calculate_aux_loss(step_input, feature_acts, hidden_pre, sae_out)
        if self.cfg.base == "relu":
            written_NS = (
                feature_acts if self.cfg.rescale_acts_by_decoder_norm else feature_acts * self.W_dec.norm(dim=1)
            )
            losses["l1_loss"] = self.cfg.l1_coefficient * written_NS.sum(-1).mean()
        slow_NL = feature_acts[:, : self.cfg.n_slow]
        if self.cfg.nested_coefficient:
            W_slow = self.W_dec[: self.cfg.n_slow]
            slow_out = act_times_W_dec(slow_NL, W_slow, self.cfg.rescale_acts_by_decoder_norm) + self.b_dec
            slow_mse = (slow_out - step_input.sae_in).pow(2).sum(-1).mean()
            losses["slow_mse_loss"] = self.cfg.nested_coefficient * slow_mse
        if self.cfg.consistency_coefficient:
            losses["consistency_loss"] = self.cfg.consistency_coefficient * self.consistency(slow_NL)
        return losses

    def consistency(self, slow_NL: Tensor) -> Tensor:
        """The consistency term over the windows that hold no special token; 0 where there are fewer than two."""
        slow_nWL = split_windows(slow_NL, self.cfg.window)
        if self.special_N is None:
            warnings.warn(
                "temporal is fed rows without knowing which are special tokens: it takes each run of "
                f"{self.cfg.window} rows for neighbours of one context. Under SAELens' own runner that holds only with "
                "activations_mixing_fraction=0; `python -m sae_variants train temporal` takes care of it.",
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
