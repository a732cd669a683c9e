"""A control whose encoder is never trained: random directions decide what fires, and the decoder makes the best of it.

    f = BatchTopK_k(W_enc (x - b)),      x̂ = f W_dec + b,      columns of W_enc random unit vectors, fixed

A metric that does not tell a trained SAE from this one says nothing about when its latents fire. The SAE is saved as a
stock SAELens `jumprelu`. `k` counts latents per token, averaged over a batch. Source: arXiv 2602.14111.

Shapes: x, b [D], f [S], W_enc [D, S], W_dec [S, D].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAEConfig
from torch import Tensor
from typing_extensions import override

from sae_variants.registry.batch_topk import BatchTopKVariant
from sae_variants.registry.contract import VariantConfig
from sae_variants.registry.variants import register


@dataclass
class FrozenEncoderTrainingSAEConfig(VariantConfig, BatchTopKTrainingSAEConfig):
    """Config of `frozen_encoder`."""

    k: float = 32  # type: ignore[assignment]
    """Latents that fire per token, averaged over the batch."""
    decoder_init_norm: float | None = 1.0
    """Norm of decoder rows at the start, which the columns of the encoder keep."""
    rescale_acts_by_decoder_norm: bool = False
    """Whether the norms of decoder rows decide what fires; they are trained, so they do not."""
    aux_loss_coefficient: float = 0.0
    """Weight of AuxK, which could revive no latent, because the encoder is fixed."""


@register(FrozenEncoderTrainingSAEConfig)
class FrozenEncoderTrainingSAE(BatchTopKVariant):
    """BatchTopK with a fixed encoder."""

    def __init__(self, cfg: FrozenEncoderTrainingSAEConfig, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        for weights in (self.W_enc, self.b_enc):
            frozen: Any = weights
            frozen.requires_grad_(False)

    @override
    def calculate_aux_loss(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        return {}
