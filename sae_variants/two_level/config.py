"""How two levels are trained: their sizes, their sparsity, the weights of the losses, and the three phases.

The equations are in `two_level.training`.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from sae_lens.saes.sae import SAEConfig, TrainingSAEConfig
from typing_extensions import override

from sae_variants.refinement.config import RefinementConfig
from sae_variants.two_level.saved import LOWER, TwoLevelSAEConfig


@dataclass
class TwoLevelTrainingSAEConfig(RefinementConfig, TrainingSAEConfig, ABC):
    """Config that all variants with two levels share."""

    added: ClassVar[Mapping[str, Any]] = {**RefinementConfig.added, "separate": False}
    parts: ClassVar[tuple[str, ...]] = (LOWER,)

    refine: int = 1
    """Refinement steps of the lower level's encoder: each encodes what the code before left."""
    expansion: int = 4
    """Lower latents per upper latent; a target's recipe sets the width of the lower level."""
    k: float = 32
    """Upper latents that fire per token, averaged over the batch."""
    lower_k: float = 0
    """Lower latents that fire per token, averaged over the batch; must exceed k, and 0 is 2 k."""
    progressive: bool = True
    """Whether a lower level as sparse as the upper one is refused; false for an ablation."""
    lower_coefficient: float = 1.0
    """Weight of the lower level's reconstruction; 0 disables it."""
    upper_coefficient: float = 1.0
    """γ, weight of the upper level's reconstruction of the input."""
    latent_coefficient: float = 0.0
    """η, weight of the upper level's reconstruction of lower latents."""
    aux_loss_coefficient: float = 1.0
    """Weight of AuxK in both levels, which trains dead latents on the residual of the others."""
    separate: bool = True
    """Whether the upper level's losses have no gradient at the lower level: that one then trains throughout, and the
    upper level on top of it once the first phase has ended."""
    curriculum: bool = True
    """Whether the levels first train one after the other; otherwise both train together throughout, and `start` is not
    used: the upper level starts at random."""
    lower_share: float = 0.3
    """Share of the steps in which the lower level trains alone."""
    upper_share: float = 0.2
    """Share of the steps, after those of the lower level, in which the upper level trains alone."""
    start: Literal["groups", "copies", "random"] = "groups"
    """Initialisation of the upper level after the first phase: sums of groups of lower latents that fire together, then
    the children of an upper latent; copies of the most active lower latents; or random."""
    upper_learning_rate: float = 0.3
    """Factor of the learning rate while the upper level trains alone."""
    joint_learning_rate: float = 1.0
    """Factor of the learning rate while both levels train together after a curriculum."""
    topk_threshold_lr: float = 0.01
    """Rate at which the thresholds of the trained SAE follow the smallest latents that fire."""
    total_steps: int = 0
    """Total training steps. 0 means unknown: no curriculum, and parents are assigned when the SAE is saved."""
    dead_after_steps: int = 1000
    """Steps of a level's training without firing after which a latent is dead."""

    @property
    def d_lower(self) -> int:
        """Number of lower latents."""
        return self.expansion * self.d_sae

    @property
    @override
    def n_weights(self) -> int:
        return 2 * self.d_lower * (self.d_in + self.d_sae)

    @override
    def step_bytes(self, n_tokens: int, device: str) -> int:
        counts = 4 * self.d_lower**2 if self.start == "groups" else 0  # which lower latents fire together
        return 2 * n_tokens * (self.d_lower + self.d_sae) * 4 + counts

    @property
    def k_of_lower(self) -> float:
        """Lower latents that fire per token, averaged over the batch."""
        return self.lower_k or min(2 * self.k, self.d_lower)

    @classmethod
    @override
    def recipe(cls, train: Mapping[str, Any]) -> dict[str, Any]:
        """Give the lower level the width that the recipe gives to other SAEs."""
        return {"d_sae": max(1, train["d_sae"] // cls.expansion)} if "d_sae" in train else {}

    @classmethod
    @override
    def l0_fields(cls, part: str, l0: float) -> dict[str, float]:
        return {"k": l0 / 2, "lower_k": 0} if part == LOWER else {"k": l0}  # lower_k = 0 is twice k

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return TwoLevelSAEConfig

    @override
    def get_inference_sae_cfg_dict(self) -> dict[str, Any]:
        # The input bias of a saved SAE is folded into the encoder's.
        return {**super().get_inference_sae_cfg_dict(), "d_lower": self.d_lower, "apply_b_dec_to_input": False}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.expansion < 1:
            raise ValueError(f"expansion must be at least 1, not {self.expansion}")
        if not 0 < self.k_of_lower <= self.d_lower:
            raise ValueError(
                f"lower_k must be above 0 and at most the {self.d_lower} lower latents, not {self.lower_k}"
            )
        if min(self.lower_share, self.upper_share) < 0 or self.lower_share + self.upper_share > 1:
            raise ValueError("lower_share and upper_share must not be negative, nor more than 1 together")
        for field in ("upper_share", "upper_learning_rate") if self.separate else ():
            if getattr(self, field) != type(self).__dataclass_fields__[field].default:
                raise ValueError(f"{field} needs separate=false: else the upper level never trains alone")
        if self.start not in ("groups", "copies", "random"):
            raise ValueError(f"start must be groups, copies or random, not {self.start!r}")
        for field in ("upper_learning_rate", "joint_learning_rate"):
            if getattr(self, field) <= 0:
                raise ValueError(f"{field} must be positive, not {getattr(self, field)}")
        for field in self.__dataclass_fields__:
            if field.endswith("_coefficient") and getattr(self, field) < 0:
                raise ValueError(f"{field} must not be negative, not {getattr(self, field)}")
        if self.dead_after_steps < 1:
            raise ValueError(f"dead_after_steps must be at least 1, not {self.dead_after_steps}")
        if not 0 < self.topk_threshold_lr <= 1:
            raise ValueError(f"topk_threshold_lr must be above 0 and at most 1, not {self.topk_threshold_lr}")
        if self.normalize_activations not in ("none", "expected_average_only_in"):
            raise ValueError(
                "two levels train with normalize_activations none or expected_average_only_in, "
                f"not {self.normalize_activations!r}"
            )
        if self.progressive and (reason := self.not_progressive()):
            raise ValueError(f"{reason}: the upper level is the sparser one (progressive=false allows it)")

    def not_progressive(self) -> str:
        """Return why the lower level is as sparse as the upper one; empty if it is not."""
        return f"lower_k = {self.k_of_lower:g} must be above k = {self.k:g}" if self.k_of_lower <= self.k else ""

    def phase(self, step: int) -> int:
        """Return the phase of a step: 1 trains the lower level, 2 the upper level, 3 both."""
        if not self.curriculum or not self.total_steps or step >= self.joint_from:
            return 3
        if step < self.lower_alone_until:
            return 1
        return 3 if self.separate else 2

    def steps_of(self, name: str) -> int:
        """Return the number of steps in which a level trains."""
        frozen_phase = 2 if name == LOWER else 1
        return sum(self.phase(step) != frozen_phase for step in range(self.total_steps))

    def steps_before(self, step: int) -> list[int]:
        """Return the number of steps before this one in which the lower and the upper level trained."""
        if not self.curriculum or not self.total_steps:
            return [step, step]
        lower_alone = min(step, self.lower_alone_until)
        upper_alone = 0 if self.separate else min(step, self.joint_from) - lower_alone
        return [step - upper_alone, step - lower_alone]

    @property
    def lower_alone_until(self) -> int:
        """The step at which the first phase ends."""
        return round(self.lower_share * self.total_steps)

    @property
    def joint_from(self) -> int:
        """The step at which parents are fixed and, with a curriculum, the third phase begins."""
        return (
            self.lower_alone_until if self.separate else round((self.lower_share + self.upper_share) * self.total_steps)
        )

    def learning_rate_scale(self, step: int) -> float:
        """Return the factor of the learning rate at a step."""
        if not self.curriculum or not self.total_steps:
            return 1.0
        return (1.0, self.upper_learning_rate, self.joint_learning_rate)[self.phase(step) - 1]
