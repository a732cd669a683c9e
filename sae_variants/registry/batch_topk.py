"""Base of the training SAEs that extend SAELens' BatchTopK: a threshold that fits trainings of any length.

Shapes: N tokens, D = d_in, S = d_sae.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor
from typing_extensions import override

from sae_variants.ops.threshold import calibrated_threshold, follow_smallest, running_rate
from sae_variants.registry.contract import TrainingHooks


class BatchTopKVariant(TrainingHooks, BatchTopKTrainingSAE):
    """SAELens' BatchTopK in training, with a threshold that needs no long training."""

    cfg: Any
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
        return super().training_forward_pass(step_input)

    @override
    def update_topk_threshold(self, acts_topk: Tensor) -> None:
        self._follow(self.topk_threshold, acts_topk)

    def _follow(self, threshold: Tensor, acts_NS: Tensor) -> None:
        """Let a threshold follow the smallest activation [N, S] that fires, without a bias towards 0."""
        if self.calibrates:
            follow_smallest(threshold, acts_NS, running_rate(self.cfg.topk_threshold_lr, self.steps_before))
