"""Training of two levels of latents: losses, phases and parents.

    L = lower · |x - x̂_lower|² + upper · |x - x̂_upper|² + η · |sg(f) - f̂|² + sparsity of both + AuxK of both

`two_level.levels` defines f, f̂ and the reconstructions. The lower level trains alone for a share of the steps. Then, by
default (`separate`), both train, and the upper level's losses have no gradient at the lower one. Without, there are two
more phases: the upper level alone, with the lower level frozen bitwise, and both levels; these two have learning-rate
factors. Parents are fixed when the last phase begins.

Shapes: N tokens, D = d_in, L lower latents, U = d_sae upper latents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from sae_lens.saes.topk_sae import calculate_topk_aux_acts
from torch import Tensor
from typing_extensions import override

from sae_variants.ops.batch_topk import BatchTopK
from sae_variants.ops.errors import squared_error
from sae_variants.ops.host import Counted
from sae_variants.ops.threshold import calibrated_threshold, follow_smallest, running_rate
from sae_variants.refinement.training import Activate, calibrated_thresholds, jump_at
from sae_variants.registry.contract import TrainingHooks
from sae_variants.two_level.config import TwoLevelTrainingSAEConfig
from sae_variants.two_level.groups import GroupedLevels
from sae_variants.two_level.levels import Level
from sae_variants.two_level.saved import LOWER, NO_PARENT

SEPARATE_SCALE = 0.01
"""Scale of the upper level's losses where it has no gradient at the lower level. The trainer clips the gradients of all
weights by their common norm, of which the lower level's must remain the larger part; to Adam the scale is nothing."""
ACTIVITY_RATE = 0.05
"""Rate at which the running mean activations follow those of a step."""


class TwoLevelTrainingSAE(TrainingHooks, GroupedLevels):
    """Two levels in training."""

    cfg: Any
    lower_silent_L: Tensor
    upper_silent_U: Tensor
    steps_before: Sequence[int] = (0, 0)
    """Training steps of the lower and the upper level before the present one."""
    _started: tuple[int, bool] | None = None
    """Phase of the last step, and whether parents were due."""

    def __init__(self, cfg: TwoLevelTrainingSAEConfig, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        self._n_dead = Counted(), Counted()
        self.register_buffer("lower_silent_L", torch.zeros(cfg.d_lower, device=self.b_dec.device))
        self.register_buffer("upper_silent_U", torch.zeros(cfg.d_sae, device=self.b_dec.device))

    @override
    def learning_rate_scale(self, step: int) -> float:
        return self.cfg.learning_rate_scale(step)

    @property
    def is_batch_topk(self) -> bool:
        """Whether BatchTopK makes the levels sparse."""
        return isinstance(self.lower_activation, BatchTopK)

    @property
    @override
    def calibrates(self) -> bool:
        return self.is_batch_topk

    @override
    @torch.no_grad()
    def calibrate(self, batches: Sequence[Tensor]) -> None:
        """Set the thresholds of the lower level, then that of the upper level, which reads latents above the former."""
        if not self.calibrates:
            return
        rows_LD, steps = self.lower_rows(), self.cfg.refine

        def lower_pre(activate: Activate, step: int) -> Iterator[Tensor]:
            return (
                self.lower_pre(self.run_time_activation_norm_fn_in(x_ND), rows_LD, activate, step) for x_ND in batches
            )

        known = () if self.is_batch_topk else [0.0] * steps
        *inner, last = calibrated_thresholds(lower_pre, steps, self.cfg.k_of_lower, known)
        self.thresholds[0] = last
        if inner:
            self.inner_thresholds_T[:] = self.inner_thresholds_T.new_tensor(inner)
        jump = jump_at([*inner, last])
        read = (Level(jump(pre_NL, steps), pre_NL, rows_LD, self.b_dec) for pre_NL in lower_pre(jump, steps))
        upper = (self.upper(level).pre for level in read)
        self.thresholds[1] = calibrated_threshold(upper, self.cfg.k)

    @override
    def activate_inner(self, pre_NL: Tensor, step: int) -> Tensor:
        acts_NL = super().activate_inner(pre_NL, step)
        if self.in_step:
            self._follow(self.inner_thresholds_T[step], acts_NL, 0)
        return acts_NL

    @override
    def get_coefficients(self) -> dict[str, Any]:
        if not self.cfg.total_steps:
            self.warn_of_other_trainer("total_steps is 0, so both levels train together without a curriculum")
        return {}

    @override
    def calculate_aux_loss(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        raise NotImplementedError("a two-level SAE has its own training_forward_pass")

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        cfg, x_ND, step = self.cfg, step_input.sae_in, step_input.n_training_steps
        phase = cfg.phase(step)
        self._start_phase(phase, step)
        self.steps_before = cfg.steps_before(step)
        losses: dict[str, Tensor] = {}
        upper_losses: dict[str, Tensor] = {}
        if phase == 2:
            with torch.no_grad():
                lower = self.lower(x_ND).detached()  # its bias is a parameter
        else:
            with self.step_under_way():
                lower = self.lower(x_ND)
            losses |= self._lower_losses(lower, x_ND)
        self.count_pairs(lower.acts, step)
        upper = None
        if phase != 1:
            lower = lower.detached() if cfg.separate else lower
            upper = self.upper(lower)
            upper.out = self.hook_sae_recons(upper.out)
            dead_U = None if self.is_ours else step_input.dead_neuron_mask
            upper_losses |= self._upper_losses(upper, lower, x_ND, dead_U)
        if phase == 3 and upper is not None:
            upper_losses |= self.joint_losses(lower, upper)
        # With all terms of a phase disabled there is no loss, and nothing is learned.
        scale = SEPARATE_SCALE if cfg.separate else 1.0
        terms = [*losses.values(), *(scale * loss for loss in upper_losses.values())]
        loss = torch.stack(terms).sum() if terms else self.W_links.sum() * 0.0
        shown, silent = (lower, self.lower_silent_L) if upper is None else (upper, self.upper_silent_U)
        metrics: dict[str, Any] = {
            "phase": phase,
            "l0": lambda: (shown.acts > 0).sum(-1).float().mean().item(),
            "dead": lambda: (silent > cfg.dead_after_steps).float().mean().item(),
        }
        none_NU = x_ND.new_zeros(len(x_ND), cfg.d_sae)  # SAELens counts firing latents of the saved, upper, level
        acts_NU, pre_NU = (none_NU, none_NU) if upper is None else (upper.acts, upper.pre)
        return TrainStepOutput(x_ND, shown.out, acts_NU, pre_NU, loss, losses | upper_losses, metrics)

    def _start_phase(self, phase: int, step: int) -> None:
        """Initialise the upper level after the first phase, and fix the parents when the third phase begins."""
        cfg = self.cfg
        at = phase, cfg.total_steps > 0 and step >= cfg.joint_from
        if at == self._started:  # what follows reads numbers of the device
            return
        is_fresh = phase != 1 and cfg.curriculum and not self.activity_U.any()
        if is_fresh and self.activity_L.any():
            if cfg.start == "copies":
                self._copy_most_active()
            elif cfg.start == "groups":
                self.start_from_groups()
        has_no_parents = at[1] and bool((self.parent_L == NO_PARENT).all())
        if has_no_parents:
            self.parent_L = self.parents()
        if not is_fresh and not has_no_parents:
            self._started = at

    def _lower_losses(self, lower: Level, x_ND: Tensor) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        if self.cfg.lower_coefficient:
            losses["lower_mse_loss"] = self.cfg.lower_coefficient * squared_error(x_ND, lower.out)
        losses |= {f"lower_{name}": loss for name, loss in self.sparsity_losses(lower, LOWER, x_ND).items()}
        losses |= self._aux("lower", lower, x_ND, self.lower_silent_L)
        self._update_statistics(0, lower, self.lower_silent_L, self.activity_L)
        return losses

    def _upper_losses(self, upper: Level, lower: Level, x_ND: Tensor, dead_U: Tensor | None) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        if self.cfg.upper_coefficient:
            losses["mse_loss"] = self.cfg.upper_coefficient * squared_error(x_ND, upper.out)
        if self.cfg.latent_coefficient:
            decoded_NL = upper.acts @ self.links_UL + self.b_links
            losses["latent_mse_loss"] = self.cfg.latent_coefficient * squared_error(lower.acts.detach(), decoded_NL)
        losses |= self.sparsity_losses(upper, "upper", x_ND)
        losses |= self._aux("upper", upper, x_ND, self.upper_silent_U, dead_U)
        self._update_statistics(1, upper, self.upper_silent_U, self.activity_U)
        return losses

    def sparsity_losses(self, level: Level, name: str, x_ND: Tensor) -> dict[str, Tensor]:
        """Return the terms that make a level sparse, beside its activation function.

        Args:
            level: The level in this step.
            name: `lower` or `upper`.
            x_ND: The input [N, D].
        """
        return {}

    def joint_losses(self, lower: Level, upper: Level) -> dict[str, Tensor]:
        """Return the terms of a variant while both levels train; parents are fixed, unless the steps are unknown."""
        return {}

    def _aux(
        self, name: str, level: Level, x_ND: Tensor, silent: Tensor, mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """AuxK (arXiv 2406.04093, A.2): the dead latents nearest to firing reconstruct the residual.

        Another trainer's mask of dead latents replaces ours, which is those silent for `dead_after_steps`.
        """
        dead = silent > self.cfg.dead_after_steps if mask is None else mask.bool()
        counted = self._n_dead[name == "upper"]
        n_dead = counted.number(dead, silent if mask is None else mask) if self.cfg.aux_loss_coefficient else 0
        if not n_dead:
            return {}
        k = self.cfg.d_in // 2
        acts = calculate_topk_aux_acts(min(k, n_dead), level.pre, dead)
        loss = squared_error((x_ND - level.out).detach(), acts @ level.rows)
        return {f"{name}_aux_loss": self.cfg.aux_loss_coefficient * min(n_dead / k, 1.0) * loss}

    @torch.no_grad()
    def _update_statistics(self, index: int, level: Level, silent: Tensor, activity: Tensor) -> None:
        """Update the steps since each latent fired, the running mean activations, and the threshold of BatchTopK."""
        silent += 1
        silent[(level.acts > 0).any(0)] = 0
        self._n_dead[index].count(silent > self.cfg.dead_after_steps, silent)
        activity += ACTIVITY_RATE * (level.acts.mean(0).float() - activity)
        self._follow(self.thresholds[index], level.acts, index)

    def _follow(self, threshold: Tensor, acts: Tensor, index: int) -> None:
        """Let a threshold of the lower (0) or the upper level (1) follow the smallest activation that fires."""
        if self.is_batch_topk:
            follow_smallest(threshold, acts, running_rate(self.cfg.topk_threshold_lr, self.steps_before[index]))

    @torch.no_grad()
    def _copy_most_active(self) -> None:
        """Initialise upper latents as copies of the most active lower ones."""
        chosen_U = self.activity_L.topk(self.cfg.d_sae).indices
        upper_U = torch.arange(self.cfg.d_sae, device=chosen_U.device)
        for weights in (self.W_links.data, self.W_enc_upper.data.T):
            weights.zero_()
            weights[upper_U, chosen_U] = 1.0
