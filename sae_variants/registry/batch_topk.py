"""Base of the training SAEs that extend SAELens' BatchTopK: a threshold that fits trainings of any length.

Its latents and the tokens of a batch may lie in several processes (`ops.shards`).

Shapes: N tokens, D = d_in, S = d_sae, d dead latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from sae_lens.saes.topk_sae import act_times_W_dec
from torch import Tensor
from typing_extensions import override

from sae_variants.ops.shards import HERE, Shards
from sae_variants.ops.threshold import calibrated_threshold, follow_smallest, running_rate
from sae_variants.registry.contract import TrainingHooks


class BatchTopKVariant(TrainingHooks, BatchTopKTrainingSAE):
    """SAELens' BatchTopK in training, with a threshold that needs no long training."""

    cfg: Any
    shards: Shards = HERE
    """Where its latents and the tokens of a batch lie."""
    steps_before: int = 0
    """Training steps before the present one."""

    @property
    @override
    def calibrates(self) -> bool:
        return True

    @override
    @torch.no_grad()
    def calibrate(self, batches: Sequence[Tensor]) -> None:
        if self.calibrates:
            threshold = calibrated_threshold((self.encode_with_hidden_pre(x_ND)[1] for x_ND in batches), self.cfg.k)
            self.topk_threshold.fill_(threshold)

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        self.steps_before = step_input.n_training_steps
        with self.step_under_way():
            output = super().training_forward_pass(replace(step_input, sae_in=self.shards.rows(step_input.sae_in)))
        output.loss = self.shards.average(output.loss)
        output.losses = {name: self.shards.average(loss) for name, loss in output.losses.items()}
        return output

    @override
    def calculate_topk_aux_loss(
        self, sae_in: Tensor, sae_out: Tensor, hidden_pre: Tensor, dead_neuron_mask: Tensor | None
    ) -> Tensor:
        """Return SAELens' AuxK, of the largest of the dead latents of all shards."""
        if self.shards is HERE or dead_neuron_mask is None:
            return super().calculate_topk_aux_loss(sae_in, sae_out, hidden_pre, dead_neuron_mask)
        dead_S = self.shards.least(dead_neuron_mask.float()).bool()
        n_dead, k_aux = int(self.shards.over_latents(dead_S.sum())), sae_in.shape[-1] // 2
        if not n_dead:
            return sae_out.new_zeros(())
        dead_d, k = dead_S.nonzero().squeeze(1), min(k_aux, n_dead)
        pre_Nd = hidden_pre[:, dead_d]
        top = pre_Nd.topk(min(k, len(dead_d)), sorted=False)
        acts_Nd = torch.zeros_like(pre_Nd).scatter(-1, top.indices, self.shards.keep_largest(top.values, k))
        out_ND = act_times_W_dec(acts_Nd, self.W_dec[dead_d], self.cfg.rescale_acts_by_decoder_norm)
        error = (self.shards.join(out_ND) - (sae_in - sae_out).detach()).pow(2).sum(-1).mean()
        return self.cfg.aux_loss_coefficient * min(n_dead / k_aux, 1.0) * error

    @override
    def update_topk_threshold(self, acts_topk: Tensor) -> None:
        self._follow(self.topk_threshold, acts_topk)

    def _follow(self, threshold: Tensor, acts_NS: Tensor) -> None:
        """Let a threshold follow the smallest activation [N, S] that fires, without a bias towards 0."""
        if self.calibrates:
            rate = running_rate(self.cfg.topk_threshold_lr, self.steps_before)
            follow_smallest(threshold, acts_NS, rate, self.shards)
