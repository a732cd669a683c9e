"""Saved form of an SAE whose encoder is refined: the architecture `refined`.

    f_t = act_t((x_t - b) W_enc + b_enc),        x_(t+1) = x_t + η (x - f_t W_dec - b_dec)

act_t keeps what exceeds the thresholds of step t, or the k largest. Without refinement steps it is a stock `jumprelu`
or `topk`, and is saved as that. Shapes: D = d_in, S = d_sae, T refinement steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from sae_lens.registry import register_sae_class
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from torch import Tensor, nn
from typing_extensions import override

from sae_variants.ops.sparse import keep_largest
from sae_variants.refinement.steps import refined_input

ARCHITECTURE = "refined"


@dataclass
class RefinedSAEConfig(JumpReLUSAEConfig):
    """Config of the saved form."""

    fewest_steps: ClassVar[int] = 1
    """Fewest refinement steps; without any, other architectures do."""

    refine: int = 1
    """Refinement steps T."""
    step_size: float = 0.3
    """η, weight of what the code before left."""
    k_per_token: int = 0
    """Latents that fire per token; 0 where thresholds decide."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return ARCHITECTURE

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.refine < self.fewest_steps:
            raise ValueError(f"refine must be at least {self.fewest_steps}, not {self.refine}")
        if not 0 <= self.k_per_token <= self.d_sae:
            raise ValueError(f"k_per_token must be between 0 and d_sae = {self.d_sae}, not {self.k_per_token}")


class RefinedSAE(JumpReLUSAE):
    """A trained SAE with a refined encoder."""

    cfg: RefinedSAEConfig  # type: ignore[assignment]
    inner_thresholds: nn.Parameter

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        shape = (self.cfg.refine, self.cfg.d_sae)
        self.inner_thresholds = nn.Parameter(torch.zeros(shape, dtype=self.dtype, device=self.device))

    @override
    def encode(self, x: Tensor) -> Tensor:
        pre = self.hook_sae_acts_pre(self.last_input(x) @ self.W_enc + self.b_enc)
        return self.hook_sae_acts_post(self._activate(pre, self.threshold))

    def last_input(self, x: Tensor) -> Tensor:
        """Return the input [..., D] of the last encoding."""
        bias_D = torch.zeros_like(self.b_dec) if self.cfg.apply_b_dec_to_input else self.b_dec
        return refined_input(
            self.process_sae_in(x),
            [self.cfg.step_size] * self.cfg.refine,
            lambda shifted, step: self.encode_once(shifted, self.inner_thresholds[step]),
            lambda acts: acts @ self.W_dec + bias_D,
        )

    def encode_once(self, shifted: Tensor, threshold_S: Tensor) -> Tensor:
        """Return the latents [..., S] of one encoding of an input [..., D], by the thresholds of its step."""
        return self._activate(shifted @ self.W_enc + self.b_enc, threshold_S)

    def _activate(self, pre: Tensor, threshold_S: Tensor) -> Tensor:
        if not self.cfg.k_per_token:
            return pre.relu() * (pre > threshold_S).to(pre.dtype)
        return keep_largest(pre.reshape(-1, pre.shape[-1]), self.cfg.k_per_token).view(pre.shape)

    @override
    @torch.no_grad()
    def fold_W_dec_norm(self) -> None:
        norm_S = self.get_W_dec_norm()
        if self.cfg.k_per_token and not torch.allclose(norm_S, torch.ones_like(norm_S), atol=1e-3):
            raise NotImplementedError("norms other than 1 would change which k latents are the largest")
        self.inner_thresholds.data *= norm_S
        super().fold_W_dec_norm()


register_sae_class(ARCHITECTURE, RefinedSAE, RefinedSAEConfig)
