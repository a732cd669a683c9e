"""A dictionary of parents, each with a few children of its own, which fire only where it does.

    p = BatchTopK(x W_P + b_P)                                          parents
    c = BatchTopK(where(parent fires, (x - p D_P) W_C + b_C, 0))        children
    L = |x - p D_P - c D_C - b|² + γ · |x - p D_P - b|² + AuxK

A child encodes what the parents left, so it has to explain something that its parent does not; the second loss has the
parents explain what they can without their children. The parents are the first latents, their children follow in
order. The encoder is refined (`refinement.steps`), with both levels in each step. `k` is per token, averaged over the
batch, for both levels together; `parent_share` of it is for parents.

Where features form no trees, a closed gate keeps children from firing where they should (results/ground_truth.md);
with `ungated` above 0, a child whose parent does not fire can fire all the same, selected by that much of its
pre-activation.

AuxK takes dead children by their pre-activations, whether or not their parent fires: so they come back to life. Hooks
on pre-activations can read them, but what they return is not used, as parents fire before their children are encoded.

The SAE is saved as the architecture `tree`, with thresholds for each level and encoding.

Source: H-SAE (arXiv 2506.01197) for children that fire under their parent; Tree SAE (arXiv 2605.07922) for the
condition that a child explains what its parent leaves; the base is BatchTopK (arXiv 2412.06410).

Shapes: N tokens, D = d_in, S = d_sae = P parents + C children, T refinement steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAEConfig
from sae_lens.saes.sae import SAEConfig, TrainStepInput
from torch import Tensor
from typing_extensions import override

from sae_variants.gated.code import CHILDREN, PARENTS, Tree, encode_tree
from sae_variants.gated.saved import TreeSAEConfig
from sae_variants.ops.batch_topk import BatchTopK
from sae_variants.ops.errors import squared_error
from sae_variants.ops.mostly_zero import decode_sparse, sparse_gradient_product
from sae_variants.ops.threshold import calibrated_threshold
from sae_variants.refinement.config import RefinementConfig
from sae_variants.refinement.steps import refined_input
from sae_variants.refinement.training import RefinedBatchTopK
from sae_variants.registry.variants import register


@dataclass
class TreeTrainingSAEConfig(RefinementConfig, BatchTopKTrainingSAEConfig):
    """Config of `tree`."""

    added: ClassVar[Mapping[str, Any]] = {"ungated": 0.0}

    k: float = 32  # type: ignore[assignment]
    """Latents that fire per token, averaged over the batch."""
    refine: int = 1
    """Refinement steps of the encoder: each encodes what the code before left, at the cost of another encoding."""
    children: int = 3
    """Children of each parent; d_sae / (children + 1) latents are parents with children."""
    parent_share: float = 0.5
    """Share of k that is for parents, above 0 and below 1."""
    ungated: float = 0.0
    """Factor by which a child whose parent does not fire is selected: 0 closes the gate, 1 removes it."""
    parent_coefficient: float = 1.0
    """γ, weight of the reconstruction by the parents alone; 0 disables it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.parent_share < 1:
            raise ValueError(f"parent_share must be above 0 and below 1, not {self.parent_share:g}")
        if self.parent_coefficient < 0:
            raise ValueError(f"parent_coefficient must not be negative, not {self.parent_coefficient:g}")
        for name, k, size in zip(("parents", "children"), self.k_by_level, self.sizes, strict=True):
            if k > size:
                raise ValueError(f"{k:g} of {size} {name} cannot fire per token: lower k, or change parent_share")

    @property
    def tree(self) -> Tree:
        """Which latent is whose child."""
        return Tree(self.d_sae, self.children, self.ungated)

    @property
    def sizes(self) -> tuple[int, int]:
        """Numbers of parents and of children."""
        return self.tree.n_parents, self.tree.n_children

    @property
    def k_by_level(self) -> tuple[float, float]:
        """Parents, and children, that fire per token."""
        parents = self.parent_share * self.k
        return parents, self.k - parents

    @override
    @classmethod
    def latent_groups(cls, d_sae: int, fields: Mapping[str, Any]) -> dict[str, slice]:
        tree = Tree(d_sae, fields.get("children", cls.children))
        return {"parents": tree.parents, "children": tree.below}

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return TreeSAEConfig


@register(TreeTrainingSAEConfig)
class TreeTrainingSAE(RefinedBatchTopK):
    """A tree of latents in training."""

    cfg: TreeTrainingSAEConfig  # type: ignore[assignment]
    thresholds_T2: Tensor

    def __init__(self, cfg: TreeTrainingSAEConfig, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        zeros_T2 = torch.zeros(cfg.refine + 1, 2, dtype=torch.double, device=self.W_dec.device)
        self.register_buffer("thresholds_T2", zeros_T2)
        self.levels = [BatchTopK(k) for k in cfg.k_by_level]

    @override
    def encode_with_hidden_pre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.process_sae_in(x)
        acts_NS, pre_NS = self._encode(x.reshape(-1, x.shape[-1]), self._keep_largest)
        shape = (*x.shape[:-1], self.cfg.d_sae)
        return self.hook_sae_acts_post(acts_NS.view(shape)), self.hook_sae_acts_pre(pre_NS.view(shape))

    def _encode(self, x_ND: Tensor, keep: Any) -> tuple[Tensor, Tensor]:
        """Return activations and pre-activations [N, S] of inputs without their bias.

        Args:
            x_ND: The inputs.
            keep: Function from pre-activations, the number of the encoding and that of the level to activations.
        """
        tree, rows_SD, bias_D = self.cfg.tree, self._rows(), self._bias()
        W_enc_DS, b_enc_S = self._encoder()

        def encode(shifted_ND: Tensor, step: int) -> tuple[Tensor, Tensor]:
            return encode_tree(
                shifted_ND,
                tree,
                lambda x, part: sparse_gradient_product(x, W_enc_DS[:, part], b_enc_S[part]),
                lambda parents_NP: decode_sparse(parents_NP, rows_SD[tree.parents]),
                lambda pre, level: keep(pre, step, level),
            )

        shifted_ND = refined_input(
            x_ND,
            [self.cfg.step_size] * self.cfg.refine,
            lambda shifted_ND, step: encode(shifted_ND, step)[0],
            lambda acts_NS: decode_sparse(acts_NS, rows_SD) + bias_D,
        )
        return encode(shifted_ND, self.cfg.refine)

    def _keep_largest(self, pre_NL: Tensor, step: int, level: int) -> Tensor:
        acts_NL: Tensor = self.levels[level](pre_NL)
        if self.in_step:
            self._follow(self.thresholds_T2[step, level], acts_NL)
        return acts_NL

    @override
    def update_topk_threshold(self, acts_topk: Tensor) -> None:
        """Do nothing: `_keep_largest` updates the thresholds."""

    @override
    def calculate_aux_loss(
        self, step_input: TrainStepInput, feature_acts: Tensor, hidden_pre: Tensor, sae_out: Tensor
    ) -> dict[str, Tensor]:
        losses = super().calculate_aux_loss(step_input, feature_acts, hidden_pre, sae_out)
        if self.cfg.parent_coefficient:
            parents = self.cfg.tree.parents
            out_ND = decode_sparse(feature_acts[:, parents].contiguous(), self._rows()[parents]) + self.b_dec
            losses["parent_mse_loss"] = self.cfg.parent_coefficient * squared_error(step_input.sae_in, out_ND)
        return losses

    @override
    @torch.no_grad()
    def calibrate(self, batches: Sequence[Tensor]) -> None:
        """Set the thresholds in the order of the code: each depends on those before it."""
        for step in range(self.cfg.refine + 1):
            for level in (PARENTS, CHILDREN):
                pre = self._pre_of(batches, step, level)
                self.thresholds_T2[step, level] = calibrated_threshold(pre, self.cfg.k_by_level[level])

    def _pre_of(self, batches: Sequence[Tensor], step: int, level: int) -> Iterable[Tensor]:
        """Yield the pre-activations [N, P] or [N, C] of a level in an encoding, by the thresholds before it."""
        seen: dict[tuple[int, int], Tensor] = {}

        def keep(pre_NL: Tensor, at_step: int, at_level: int) -> Tensor:
            seen[at_step, at_level] = pre_NL
            return pre_NL.relu() * (pre_NL > self.thresholds_T2[at_step, at_level])

        for x_ND in batches:
            self._encode(self.process_sae_in(x_ND), keep)
            yield seen[step, level]

    @override
    @torch.no_grad()
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        super().fold_activation_norm_scaling_factor(scaling_factor)
        if self.cfg.rescale_acts_by_decoder_norm:
            self.thresholds_T2 /= scaling_factor

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving_inference(state_dict)
        thresholds_T2 = state_dict.pop("thresholds_T2").to(self.b_enc)
        sizes = torch.tensor(self.cfg.sizes, device=thresholds_T2.device)
        thresholds_TS = thresholds_T2.repeat_interleave(sizes, dim=1)
        state_dict["inner_thresholds"], state_dict["threshold"] = thresholds_TS[:-1], thresholds_TS[-1].clone()
