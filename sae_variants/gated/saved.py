"""Saved form of a tree of latents: the architecture `tree`.

`gated.code` has the equations; every latent has a threshold for each encoding, and `refinement.steps` the steps.
Shapes: D = d_in, S = d_sae, P parents, T refinement steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sae_lens.registry import register_sae_class
from torch import Tensor
from typing_extensions import override

from sae_variants.gated.code import Tree, encode_tree
from sae_variants.refinement.saved import RefinedSAE, RefinedSAEConfig

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
        _ = self.tree  # checks its fields
        if self.k_per_token:
            raise ValueError("a tree has thresholds, and no k_per_token")

    @property
    def tree(self) -> Tree:
        """Which latent is whose child."""
        return Tree(self.d_sae, self.children, self.ungated)


class TreeSAE(RefinedSAE):
    """A trained SAE whose latents form a tree."""

    cfg: TreeSAEConfig  # type: ignore[assignment]

    @property
    def tree(self) -> Tree:
        """Which latent is whose child."""
        return self.cfg.tree

    @property
    def parent_S(self) -> Tensor:
        """Parent [S] of each latent; `NO_PARENT` for a parent."""
        return self.tree.parent_S

    @override
    def encode(self, x: Tensor) -> Tensor:
        acts, pre = self._code(self.last_input(x), self.threshold)
        self.hook_sae_acts_pre(pre)
        return self.hook_sae_acts_post(acts)

    @override
    def encode_once(self, shifted: Tensor, threshold_S: Tensor) -> Tensor:
        return self._code(shifted, threshold_S)[0]

    def _code(self, x: Tensor, threshold_S: Tensor) -> tuple[Tensor, Tensor]:
        tree = self.tree
        thresholds = threshold_S[tree.parents], threshold_S[tree.below]
        return encode_tree(
            x,
            tree,
            lambda x, part: x @ self.W_enc[:, part] + self.b_enc[part],
            lambda parents: parents @ self.W_dec[tree.parents],
            lambda pre, level: pre.relu() * (pre > thresholds[level]).to(pre.dtype),
        )


register_sae_class(ARCHITECTURE, TreeSAE, TreeSAEConfig)
