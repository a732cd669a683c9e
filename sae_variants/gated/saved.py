"""Saved form of a tree of latents: the architecture `tree`.

`gated.code` has the equations; every latent has a threshold for each encoding, and `refinement.steps` the steps.
Shapes: D = d_in, S = d_sae, P parents, T refinement steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from sae_lens.registry import register_sae_class
from torch import Tensor
from typing_extensions import override

from sae_variants.gated.code import Tree, encode_tree
from sae_variants.refinement.saved import RefinedSAE, RefinedSAEConfig
from sae_variants.refinement.steps import refined_input

ARCHITECTURE = "tree"


@dataclass
class TreeSAEConfig(RefinedSAEConfig):
    """Config of the saved form."""

    fewest_steps: ClassVar[int] = 0

    children: int = 3
    """Children of a parent."""
    ungated: float = 0.0
    """Factor by which a child without its parent is selected; 0 closes the gate."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return ARCHITECTURE

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.children < self.d_sae:
            raise ValueError(f"children must be at least 1 and below d_sae = {self.d_sae}, not {self.children}")
        if not 0 <= self.ungated <= 1:
            raise ValueError(f"ungated must be between 0 and 1, not {self.ungated:g}")
        if self.k_per_token:
            raise ValueError("a tree has thresholds, and no k_per_token")


class TreeSAE(RefinedSAE):
    """A trained SAE whose latents form a tree."""

    cfg: TreeSAEConfig  # type: ignore[assignment]

    @property
    def tree(self) -> Tree:
        """Which latent is whose child."""
        return Tree(self.cfg.d_sae, self.cfg.children)

    @property
    def parent_S(self) -> Tensor:
        """Parent [S] of each latent; `NO_PARENT` for a parent."""
        return self.tree.parent_S

    @override
    def encode(self, x: Tensor) -> Tensor:
        bias_D = torch.zeros_like(self.b_dec) if self.cfg.apply_b_dec_to_input else self.b_dec
        shifted = refined_input(
            self.process_sae_in(x),
            [self.cfg.step_size] * self.cfg.refine,
            lambda shifted, step: self._encode(shifted, self.inner_thresholds[step])[0],
            lambda acts: acts @ self.W_dec + bias_D,
        )
        acts, pre = self._encode(shifted, self.threshold)
        self.hook_sae_acts_pre(pre)
        return self.hook_sae_acts_post(acts)

    def _encode(self, x: Tensor, threshold_S: Tensor) -> tuple[Tensor, Tensor]:
        tree = self.tree
        thresholds = threshold_S[tree.parents], threshold_S[tree.below]
        return encode_tree(
            x,
            tree,
            self.cfg.ungated,
            lambda x, part: x @ self.W_enc[:, part] + self.b_enc[part],
            lambda parents: parents @ self.W_dec[tree.parents],
            lambda pre, level: pre.relu() * (pre > thresholds[level]).to(pre.dtype),
        )


register_sae_class(ARCHITECTURE, TreeSAE, TreeSAEConfig)
