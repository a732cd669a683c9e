"""Weights and encoder of `topk`, and its saved form: weights averaged, rows of norm 1, the input's scale folded in.

Shapes: N tokens, D = d_in.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from sae_lens.saes.topk_sae import TopKTrainingSAE
from torch import Tensor
from typing_extensions import override

from sae_variants.ops.geometric_median import geometric_median
from sae_variants.ops.moving_average import average_of, update_averages
from sae_variants.ops.sparse import decode, encode, keep_largest
from sae_variants.refinement.steps import refined_input
from sae_variants.registry.contract import TrainingHooks

AVERAGED = ("W_enc", "b_enc", "W_dec", "b_dec")
"""Weights that a moving average may replace."""


class SavedTopK(TrainingHooks, TopKTrainingSAE):
    """TopK with the weights, the refined encoder and the saved form of `topk`."""

    cfg: Any

    @override
    def encode_with_hidden_pre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().encode_with_hidden_pre(self.refined(x) if self.cfg.refine else x)

    def refined(self, x_ND: Tensor) -> Tensor:
        """Return the input [N, D] of the last encoding."""
        return refined_input(
            x_ND,
            [self.cfg.step_size] * self.cfg.refine,
            lambda shifted_ND, _: encode(shifted_ND, *self.encoder, self.cfg.k)[:2],
            lambda code: decode(code[0], code[1], self.W_dec, self.b_dec, unit_rows=self.cfg.unit_rows)[0],
        )

    def encode_sparse(self, x_ND: Tensor, k: int, tokens: slice, some_d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `encode` returns, computed densely if SAELens' hooks need the latents of all tokens."""
        if not (self.hook_sae_acts_pre.has_hooks() or self.hook_sae_acts_post.has_hooks()):
            return encode(x_ND, *self.encoder, k, tokens, some_d)
        pre_NS = self.hook_sae_acts_pre((x_ND - self.b_in) @ self.W_enc + self.b_enc)
        acts_NS: Tensor = self.hook_sae_acts_post(keep_largest(pre_NS, k))
        values_Nk, ids_Nk = torch.topk(acts_NS, k, dim=-1, sorted=False)
        return values_Nk, ids_Nk, pre_NS[tokens][:, some_d]

    def prepare_weights(self, x_ND: Tensor, step: int) -> None:
        """Initialise b in the first step, average the weights that the last step left, and normalise decoder rows."""
        if step == 0:
            if self.cfg.median_start and not self.b_dec.any():
                self.b_dec.data[:] = geometric_median(x_ND)
        elif self.cfg.ema:
            update_averages(self, AVERAGED, self.cfg.ema)
        if self.cfg.unit_rows:
            self.W_dec.data /= self.W_dec.data.norm(dim=1, keepdim=True).clamp(min=1e-12)

    @property
    def encoder(self) -> tuple[Tensor, Tensor, Tensor]:
        """Encoder [D, S], its bias [S], and the bias [D] that is subtracted from the input."""
        return self.W_enc, self.b_enc, self.b_in

    @property
    def b_in(self) -> Tensor:
        """Bias [D] that is subtracted from the input."""
        return self.b_dec if self.cfg.apply_b_dec_to_input else torch.zeros_like(self.b_dec)

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
        if self.cfg.refine:  # the k largest are above no other threshold than 0
            state_dict["threshold"] = torch.zeros_like(state_dict["b_enc"])
            state_dict["inner_thresholds"] = state_dict["threshold"].repeat(self.cfg.refine, 1)
        if self.cfg.unit_rows:
            state_dict["W_dec"] = F.normalize(state_dict["W_dec"], dim=1)
