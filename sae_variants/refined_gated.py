"""A gated SAE whose encoder encodes again what its first code left, and whose penalty holds L0 at k.

    π_t = (x_t - b) W_enc + b_gate,      m_t = exp(r) · (π_t - b_gate) + b_mag,      f_t = 1[π_t > 0] · ReLU(m_t)
    x_0 = x,      x_(t+1) = x_t + η (x - f_t W_dec - b)      T = `refine` times,      f = f_T
    L = |x - f W_dec - b|² + |x - ReLU(π_T) W_dec - b|² + λ s Σ_i ReLU(π_T)_i |W_dec,i| + AuxK

A penalty lets the number of latents that fire differ from token to token, and keeps latents apart where more may fire
than features are active; a refined encoder makes up for what the penalty and the shared dimensions cost. AuxK revives
dead latents. s is the mean distance of the first inputs from their mean, so that λ has no unit.

No coefficient is to be found: λ follows L0 (`ops.l0_control`), whose target falls from the first L0 to `k`, per token,
averaged over the batch. With the share a of the descent that is still to go, log target = log k + a³ log(first L0 / k).

Gate and magnitude share their weights, so 1[π > 0] = 1[m > b_mag - exp(r) b_gate], and the SAE is saved as the
architecture `refined` with a threshold for each latent, the same in each step; with T = 0 as a stock `jumprelu`.

Source: gated SAEs (arXiv 2404.16014) as SAELens trains them, where no gradient is stopped; LISTA (Gregor and LeCun,
ICML 2010) for the step, with the matrices of the SAE itself.

Shapes: N tokens, D = d_in, S = d_sae, T refinement steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from sae_lens.saes.gated_sae import GatedTrainingSAE, GatedTrainingSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUSAEConfig
from sae_lens.saes.sae import SAEConfig, TrainStepInput, TrainStepOutput
from torch import Tensor
from typing_extensions import override

from sae_variants.ops.errors import squared_error
from sae_variants.ops.host import reads_are_free
from sae_variants.ops.l0_control import follow_l0, l0_error
from sae_variants.ops.mostly_zero import decode_sparse, sparse_gradient_product
from sae_variants.refinement.config import RefinementConfig
from sae_variants.refinement.saved import RefinedSAEConfig
from sae_variants.refinement.steps import refined_input
from sae_variants.registry.contract import TrainingHooks
from sae_variants.registry.variants import register

FIRST_STEPS = 10
"""Steps in which λ is constant and the first L0 is measured."""
POWER = 3
"""Power of the share of the descent that is left, with which log target - log k falls."""
RATE = 0.05
"""Rise of log λ per step while L0 exceeds its target by a factor of e or more."""
GAIN = 1.0
"""Term of log λ that is proportional to the present error, for an error by a factor of e or more."""


@dataclass
class RefinedGatedTrainingSAEConfig(RefinementConfig, GatedTrainingSAEConfig):
    """Config of `refined_gated`."""

    added: ClassVar[Mapping[str, Any]] = {}

    k: float = 32
    """Latents that fire per token, averaged over the batch."""
    refine: int = 1
    """Refinement steps of the encoder: each encodes what the code before left, at the cost of another encoding."""
    l1_coefficient: float = 0.03
    """λ at the start; a large one kills latents before it falls."""
    aux_loss_coefficient: float = 0.1
    """Weight of AuxK, which trains latents that do not fire any more on the residual of the others; 0 disables it."""
    descent_share: float = 0.4
    """Share of the training over which the target L0 falls from the first L0 to k, fast at first."""
    total_steps: int = 0
    """Total training steps. 0 means unknown: the target is k from the start."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.k <= self.d_sae:
            raise ValueError(f"k must be above 0 and at most d_sae = {self.d_sae}, not {self.k:g}")
        if self.l1_coefficient <= 0:
            raise ValueError(f"l1_coefficient must be positive, not {self.l1_coefficient:g}: λ starts there")
        if self.l1_warm_up_steps:
            raise ValueError(f"l1_warm_up_steps must be 0, not {self.l1_warm_up_steps}: λ follows L0 instead")
        if self.aux_loss_coefficient < 0:
            raise ValueError(f"aux_loss_coefficient must not be negative, not {self.aux_loss_coefficient:g}")
        if not 0 <= self.descent_share <= 1:
            raise ValueError(f"descent_share must be between 0 and 1, not {self.descent_share:g}")

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return RefinedSAEConfig if self.refine else JumpReLUSAEConfig


@register(RefinedGatedTrainingSAEConfig)
class RefinedGatedTrainingSAE(TrainingHooks, GatedTrainingSAE):
    """Gated SAE in training, with a refined encoder and a controlled L0."""

    cfg: Any
    first_l0: Tensor
    log_lambda: Tensor
    scale: Tensor
    """s, in units of the inputs; 0 until the first step."""
    step: int = 0
    """The present training step."""

    def __init__(self, cfg: RefinedGatedTrainingSAEConfig, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        self.register_buffer("first_l0", torch.zeros((), device=self.device))
        start = torch.tensor(cfg.l1_coefficient, dtype=torch.float64, device=self.device)
        self.register_buffer("log_lambda", start.log())
        self.register_buffer("scale", torch.zeros((), device=self.device))

    @override
    def get_coefficients(self) -> dict[str, Any]:
        if not self.cfg.total_steps:
            self.warn_of_other_trainer("total_steps is 0, so the target L0 is k from the start")
        return {}

    @override
    def encode_with_hidden_pre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the latents [..., S] and the gates' pre-activations [..., S] of the last encoding."""
        x = self.process_sae_in(x)
        bias_D = torch.zeros_like(self.b_dec) if self.cfg.apply_b_dec_to_input else self.b_dec
        last_ND = refined_input(
            x.reshape(-1, x.shape[-1]),
            [self.cfg.step_size] * self.cfg.refine,
            lambda shifted_ND, step: self._acts(self._magnitudes(self._gates(shifted_ND))),
            lambda acts_NS: decode_sparse(acts_NS, self.W_dec) + bias_D,
        )
        gates = self._gates(last_ND).view(*x.shape[:-1], self.cfg.d_sae)
        return self.hook_sae_acts_post(self._acts(self.hook_sae_acts_pre(self._magnitudes(gates)))), gates

    @override
    def decode(self, feature_acts: Tensor) -> Tensor:
        acts_NS = feature_acts.reshape(-1, feature_acts.shape[-1])
        out = (decode_sparse(acts_NS, self.W_dec) + self.b_dec).view(*feature_acts.shape[:-1], self.cfg.d_in)
        return self.reshape_fn_out(self.run_time_activation_norm_fn_out(self.hook_sae_recons(out)), self.d_head)

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        self.step = step_input.n_training_steps
        return super().training_forward_pass(step_input)

    @override
    def calculate_aux_loss(
        self, step_input: TrainStepInput, feature_acts: Tensor, hidden_pre: Tensor, sae_out: Tensor
    ) -> dict[str, Tensor]:
        gates_NS = hidden_pre.flatten(0, -2)
        open_NS = gates_NS.relu()
        x_ND = step_input.sae_in.flatten(0, -2)
        penalty = (open_NS @ self.W_dec.norm(dim=1)).mean()
        by_gates_ND = decode_sparse(open_NS, self.W_dec) + self.b_dec
        losses = {
            "l1_loss": self._lambda(feature_acts) * self._scale(x_ND) * penalty,
            "auxiliary_reconstruction_loss": squared_error(x_ND, by_gates_ND),
        }
        if self.cfg.aux_loss_coefficient and step_input.dead_neuron_mask is not None:
            left_ND = (x_ND - sae_out.flatten(0, -2)).detach()
            losses["dead_latents_loss"] = self._aux(left_ND, gates_NS, step_input.dead_neuron_mask)
        return losses

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving_inference(state_dict)
        for name in ("first_l0", "log_lambda", "scale"):
            del state_dict[name]
        scale_S, b_gate_S, b_mag_S = (state_dict.pop(name) for name in ("r_mag", "b_gate", "b_mag"))
        scale_S = scale_S.exp()
        state_dict["W_enc"] = (state_dict["W_enc"] * scale_S).contiguous()
        state_dict["b_enc"] = b_mag_S
        state_dict["threshold"] = b_mag_S - scale_S * b_gate_S
        if self.cfg.refine:
            state_dict["inner_thresholds"] = state_dict["threshold"].repeat(self.cfg.refine, 1)

    def _gates(self, shifted_ND: Tensor) -> Tensor:
        return sparse_gradient_product(shifted_ND, self.W_enc, self.b_gate)

    def _magnitudes(self, gates: Tensor) -> Tensor:
        return (gates - self.b_gate) * self.r_mag.exp() + self.b_mag

    def _acts(self, magnitudes: Tensor) -> Tensor:
        threshold_S = self.b_mag - self.r_mag.exp() * self.b_gate
        return magnitudes.relu() * (magnitudes > threshold_S).to(magnitudes.dtype)

    def _aux(self, left_ND: Tensor, gates_NS: Tensor, dead_S: Tensor) -> Tensor:
        """AuxK (arXiv 2406.04093, A.2): the dead latents nearest to firing reconstruct what the others left."""
        k = self.cfg.d_in // 2
        if reads_are_free(dead_S) and not dead_S.any():
            return left_ND.new_zeros(())
        top = gates_NS.masked_fill(~dead_S.bool(), -math.inf).topk(min(k, self.cfg.d_sae), sorted=False)
        values_Nk = top.values.masked_fill(top.values == -math.inf, 0.0)  # fewer are dead
        acts_NS = torch.zeros_like(gates_NS).scatter(-1, top.indices, values_Nk)
        share = (dead_S.sum() / k).clamp(max=1.0)
        error = squared_error(left_ND, decode_sparse(acts_NS, self.W_dec))
        return self.cfg.aux_loss_coefficient * share * error

    @torch.no_grad()
    def _scale(self, x_ND: Tensor) -> Tensor:
        """Return s, which the first step measures."""
        distance = (x_ND - x_ND.mean(0)).norm(dim=1).mean()
        self.scale.copy_(torch.where(self.scale > 0, self.scale, distance))
        return self.scale

    @torch.no_grad()
    def _lambda(self, acts: Tensor) -> Tensor:
        """Return λ of this step, and let it follow L0."""
        l0 = (acts > 0).sum(-1).float().mean()
        if self.step < FIRST_STEPS:
            self.first_l0.copy_(l0)
            return self.log_lambda.exp().float()
        steps = self.cfg.descent_share * self.cfg.total_steps
        ahead = max(0.0, 1 - (self.step - FIRST_STEPS) / steps) if steps else 0.0
        return follow_l0(self.log_lambda, l0_error(l0, self.cfg.k, self.first_l0, ahead**POWER), RATE, GAIN)
