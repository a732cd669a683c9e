"""BatchTopK in training with a refined encoder, and with gradients of the firing latents only.

`refinement.steps` has the equations. In every step BatchTopK keeps k latents per token, averaged over the batch. In the
saved SAE each step has a threshold instead; they are calibrated in order, because the input of a step depends on those
before it. Without refinement steps the SAE is saved as a stock `jumprelu`.

Shapes: N tokens, D = d_in, S = d_sae, T refinement steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from sae_variants.ops.mostly_zero import decode_sparse, sparse_gradient_product
from sae_variants.ops.shards import HERE, Shards
from sae_variants.ops.threshold import calibrated_threshold
from sae_variants.refinement.steps import refined_input
from sae_variants.registry.batch_topk import BatchTopKVariant

Activate = Callable[[Tensor, int], Tensor]
"""Function from pre-activations [N, S] and the number of their step to activations [N, S]."""


def refined_pre_activations(
    x_ND: Tensor,
    step_sizes: Sequence[float],
    encoder: tuple[Tensor, Tensor],
    decoder: tuple[Tensor, Tensor],
    activate: Activate,
    shards: Shards = HERE,
) -> Tensor:
    """Return the pre-activations [N, S] of the last encoding, with gradients of the firing latents only.

    Args:
        x_ND: Inputs [N, D].
        step_sizes: η of the T refinement steps.
        encoder: Weights [D, S] and bias [S].
        decoder: Rows [S, D] and bias [D].
        activate: Gives the activations of the steps before the last encoding.
        shards: Where other latents lie.
    """
    (W_enc_DS, b_enc_S), (rows_SD, bias_D) = encoder, decoder
    shifted_ND = refined_input(
        x_ND,
        step_sizes,
        lambda shifted_ND, step: activate(sparse_gradient_product(shifted_ND, W_enc_DS, b_enc_S), step),
        lambda acts_NS: shards.join_within(decode_sparse(acts_NS, rows_SD)) + bias_D,
    )
    return sparse_gradient_product(shifted_ND, W_enc_DS, b_enc_S)


def jump_at(thresholds: Sequence[float]) -> Activate:
    """Return the activation function of an encoder whose steps have these thresholds."""
    return lambda pre_NS, step: pre_NS.relu() * (pre_NS > thresholds[step])


def calibrated_thresholds(
    pre: Callable[[Activate, int], Iterable[Tensor]],
    steps: int,
    k: float,
    known: Sequence[float] = (),
    shards: Shards = HERE,
) -> list[float]:
    """Return the threshold of each step of an encoder, the last encoding's at the end.

    Args:
        pre: Function from the activation function of the steps before a step, and its number, to batches [N, S] of its
            pre-activations.
        steps: Refinement steps T.
        k: Latents per token in every step.
        known: Thresholds of the first steps, if they are known.
        shards: Where other latents and tokens lie.
    """
    thresholds = list(known)
    for step in range(len(known), steps + 1):
        thresholds.append(calibrated_threshold(pre(jump_at(thresholds), step), k, shards))
    return thresholds


class RefinedBatchTopK(BatchTopKVariant):
    """BatchTopK in training, with a refined encoder."""

    inner_thresholds_T: Tensor

    def __init__(self, cfg: Any, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        if cfg.refine:
            zeros_T = torch.zeros(cfg.refine, dtype=torch.double, device=self.W_dec.device)
            self.register_buffer("inner_thresholds_T", zeros_T)

    @override
    def encode_with_hidden_pre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Encode as SAELens does, with norms folded into the weights and gradients of the firing latents only."""
        x = self.process_sae_in(x)
        pre_NS = self._pre_activations(x.reshape(-1, x.shape[-1]), self._activate_in_training, self.cfg.refine)
        pre = self.hook_sae_acts_pre(pre_NS.view(*x.shape[:-1], pre_NS.shape[1]))
        return self.hook_sae_acts_post(self.activation_fn(pre)), pre

    @override
    def decode(self, feature_acts: Tensor) -> Tensor:
        acts_NS = feature_acts.reshape(-1, feature_acts.shape[-1])
        out_ND = self.shards.join(decode_sparse(acts_NS, self._rows()) + self.shards.once(self.b_dec))
        out = out_ND.view(*feature_acts.shape[:-1], self.cfg.d_in)
        return self.reshape_fn_out(self.run_time_activation_norm_fn_out(self.hook_sae_recons(out)), self.d_head)

    @override
    @torch.no_grad()
    def calibrate(self, batches: Sequence[Tensor]) -> None:
        if not self.calibrates:
            return

        def pre(activate: Activate, step: int) -> Iterator[Tensor]:
            own = (self.process_sae_in(self.shards.rows(x_ND)) for x_ND in batches)
            return (self._pre_activations(x_ND, activate, step) for x_ND in own)

        *inner, last = calibrated_thresholds(pre, self.cfg.refine, self.cfg.k, shards=self.shards)
        self.topk_threshold.fill_(last)
        if inner:
            self.inner_thresholds_T[:] = self.inner_thresholds_T.new_tensor(inner)

    @override
    @torch.no_grad()
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        super().fold_activation_norm_scaling_factor(scaling_factor)
        if self.cfg.refine and self.cfg.rescale_acts_by_decoder_norm:
            self.inner_thresholds_T /= scaling_factor

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving_inference(state_dict)
        if self.cfg.refine:
            thresholds_T1 = state_dict.pop("inner_thresholds_T").to(self.b_enc)[:, None]
            state_dict["inner_thresholds"] = thresholds_T1 * torch.ones_like(self.b_enc)

    def _pre_activations(self, x_ND: Tensor, activate: Activate, step: int) -> Tensor:
        """Return the pre-activations [N, S] of a step from inputs without their bias."""
        step_sizes = [self.cfg.step_size] * step
        weights = self._encoder(), (self._rows(), self._bias())
        return refined_pre_activations(x_ND, step_sizes, *weights, activate, self.shards)

    def _encoder(self) -> tuple[Tensor, Tensor]:
        """Return the weights [D, S] and the bias [S] that give pre-activations in the units of the output."""
        if not self.cfg.rescale_acts_by_decoder_norm:
            return self.W_enc, self.b_enc
        norm_S = self.W_dec.norm(dim=-1)
        return self.W_enc * norm_S, self.b_enc * norm_S

    def _bias(self) -> Tensor:
        """Return what a reconstruction of the encoder's input adds [D]: nothing where the input lacks the bias."""
        return torch.zeros_like(self.b_dec) if self.cfg.apply_b_dec_to_input else self.b_dec

    def _rows(self) -> Tensor:
        """Return the decoder rows [S, D] by which activations are multiplied."""
        is_scaled = self.cfg.rescale_acts_by_decoder_norm
        return self.W_dec / self.W_dec.norm(dim=-1, keepdim=True) if is_scaled else self.W_dec

    def _activate_in_training(self, pre_NS: Tensor, step: int) -> Tensor:
        acts_NS: Tensor = self.activation_fn(pre_NS)
        if self.in_step:
            self._follow(self.inner_thresholds_T[step], acts_NS)
        return acts_NS
