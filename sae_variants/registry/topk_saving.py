"""Saved form of `topk`: averaged weights, rows of unit norm, and the scale of the input folded into the biases."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from sae_lens.saes.topk_sae import TopKTrainingSAE
from typing_extensions import override

from sae_variants.ops.moving_average import average_of
from sae_variants.registry.contract import TrainingHooks

AVERAGED = ("W_enc", "b_enc", "W_dec", "b_dec")
"""Weights that a moving average may replace."""


class SavedTopK(TrainingHooks, TopKTrainingSAE):
    """TopK with the saved form of `topk`."""

    cfg: Any

    @override
    @torch.no_grad()
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        """Express latents in the units of the input, so that rows keep their norm."""
        scaled = ("b_enc", "b_dec", *(f"average_{name}" for name in ("b_enc", "b_dec") if self.cfg.ema))
        for name in scaled:
            getattr(self, name).data /= scaling_factor
        self.cfg.normalize_activations = "none"

    @override
    @torch.no_grad()
    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving(state_dict)
        state_dict.update({name: values.contiguous() for name, values in state_dict.items()})

    @override
    @torch.no_grad()
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving_inference(state_dict)
        if self.cfg.ema:
            state_dict.update({name: average_of(self, name, self.cfg.ema).contiguous() for name in AVERAGED})
        for name in set(state_dict) - set(AVERAGED):
            del state_dict[name]
        if self.cfg.unit_rows:
            state_dict["W_dec"] = F.normalize(state_dict["W_dec"], dim=1)
