"""A control whose decoder is never trained: random unit directions with a learned BatchTopK encoder.

    f = BatchTopK_k(W_enc (x - b) + b_enc),      x̂ = f W_dec + b,      rows of W_dec random unit vectors, fixed

A metric that does not tell a trained SAE from this one says nothing about its directions. The SAE is saved as a stock
SAELens `jumprelu`. `k` counts latents per token, averaged over a batch. Source: arXiv 2602.14111.

Shapes: x, b [D], f, b_enc [S], W_dec [S, D].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAEConfig

from sae_variants.registry.batch_topk import BatchTopKVariant
from sae_variants.registry.contract import VariantConfig
from sae_variants.registry.variants import register


@dataclass
class FrozenDecoderTrainingSAEConfig(VariantConfig, BatchTopKTrainingSAEConfig):
    """Config of `frozen_decoder`."""

    k: float = 32  # type: ignore[assignment]
    """Latents that fire per token, averaged over the batch."""
    decoder_init_norm: float | None = 1.0
    """Norm of decoder rows, which stay as they are."""


@register(FrozenDecoderTrainingSAEConfig)
class FrozenDecoderTrainingSAE(BatchTopKVariant):
    """BatchTopK with a fixed decoder."""

    def __init__(self, cfg: FrozenDecoderTrainingSAEConfig, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        frozen: Any = self.W_dec
        frozen.requires_grad_(False)
