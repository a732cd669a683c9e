"""A control whose decoder rows stay near their random start: a little training, but no search for directions.

    f = BatchTopK_k(W_enc (x - b) + b_enc),      x̂ = f W_dec + b,      cos(W_dec,i, W_dec,i at the start) ≥ c

After every step a row that has left the cone of cosine c = 0.8 around its start is turned back to its edge. A metric
that does not tell a trained SAE from this one does not need learned directions. The SAE is saved as a stock SAELens
`jumprelu`. `k` counts latents per token, averaged over a batch. Source: arXiv 2602.14111.

Shapes: x, b [D], f, b_enc [S], W_dec [S, D].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAEConfig
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor
from typing_extensions import override

from sae_variants.registry.batch_topk import BatchTopKVariant
from sae_variants.registry.contract import VariantConfig
from sae_variants.registry.variants import register


@dataclass
class SoftFrozenDecoderTrainingSAEConfig(VariantConfig, BatchTopKTrainingSAEConfig):
    """Config of `soft_frozen_decoder`."""

    k: float = 32  # type: ignore[assignment]
    """Latents that fire per token, averaged over the batch."""
    decoder_init_norm: float | None = 1.0
    """Norm of decoder rows at the start."""
    least_cosine: float = 0.8
    """Smallest cosine between a decoder row and its start, from 0 to below 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.least_cosine < 1:
            raise ValueError(f"least_cosine must be from 0 to below 1, not {self.least_cosine}")


@register(SoftFrozenDecoderTrainingSAEConfig)
class SoftFrozenDecoderTrainingSAE(BatchTopKVariant):
    """BatchTopK whose decoder rows stay in a cone around their start."""

    cfg: SoftFrozenDecoderTrainingSAEConfig
    start_SD: Tensor

    def __init__(self, cfg: SoftFrozenDecoderTrainingSAEConfig, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        self.register_buffer("start_SD", torch.nn.functional.normalize(self.W_dec.detach().clone(), dim=1))

    @torch.no_grad()
    def turn_back(self) -> None:
        """Turn the decoder rows outside the cone to its edge, at their norm."""
        norm_S1 = self.W_dec.norm(dim=1, keepdim=True)
        along_S1 = (self.W_dec * self.start_SD).sum(1, keepdim=True)
        across_SD = self.W_dec - along_S1 * self.start_SD
        c = self.cfg.least_cosine
        sideways_SD = across_SD / across_SD.norm(dim=1, keepdim=True).clamp(min=1e-12)
        edge_SD = norm_S1 * (c * self.start_SD + (1 - c**2) ** 0.5 * sideways_SD)
        self.W_dec.copy_(torch.where(along_S1 < c * norm_S1, edge_SD, self.W_dec))

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        self.turn_back()
        return super().training_forward_pass(step_input)

    @override
    def calibrate(self, batches: Sequence[Tensor]) -> None:
        self.turn_back()
        super().calibrate(batches)

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving_inference(state_dict)
        del state_dict["start_SD"]
